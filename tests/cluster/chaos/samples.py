"""Inputs that differ, each with what the whole model answers to it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deploy.exactness import relative_error
from edge_agent.preprocess import preprocess
from shared.client.inputs import encode_input
from shared.errors import ModelError
from shared.manifest import TOLERANCE
from shared.tensor import Array

COUNT = 16
_EDGE = 224
_CELLS = 8
"""Cells along an edge of the pattern that an image is made of."""
_EVERY_TENSOR = 4
"""One input in so many is a tensor (602 KB); the others are JPEGs of some 15 KB."""
_PROBABILITY_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Sample:
    """A job's payload, and the original module's scores [classes] for it, float32."""

    payload: bytes
    image: bytes | Array
    """The same as `amp4ec.Client` takes it."""
    expected: Array

    def error_of(self, tensor: Array) -> float:
        """The largest difference over the largest expected score."""
        return relative_error(tensor.reshape(-1), self.expected)

    def right_tensor(self, tensor: Array) -> bool:
        """Whether raw scores are the whole model's."""
        return self.error_of(tensor) <= TOLERANCE

    def right_label(self, index: int, probability: float) -> bool:
        """Whether a label's probability is what the whole model gives that class."""
        scores = self.expected.astype(np.float64)
        share = np.exp(scores - scores.max())
        return abs(share[index] / share.sum() - probability) <= _PROBABILITY_TOLERANCE


def make_samples(model: str, seed: int) -> tuple[Sample, ...]:
    """`COUNT` inputs for one of torchvision's models with random weights, and eager torch's answers.

    Raises:
        ModelError: two inputs have answers so alike that mixing them up would not be seen.
    """
    import torch

    from orchestrator.models.threads import one_thread
    from orchestrator.models.zoo import build

    built = build(model, "none", 0)
    random = np.random.default_rng(seed)
    found = []
    with one_thread(), torch.inference_mode():
        for index in range(COUNT):
            photo = _jpeg(random)
            tensor = preprocess(photo, built.transform)
            image: bytes | Array = tensor if index % _EVERY_TENSOR == 0 else photo
            scores = built.module(torch.from_numpy(tensor)).numpy().reshape(-1)
            found.append(Sample(bytes(encode_input(image).data), image, scores))
    for index, sample in enumerate(found):
        for other in found[:index]:
            if sample.error_of(other.expected) <= 10 * TOLERANCE:
                raise ModelError(f"two inputs of {model} have nearly the same answer")
    return tuple(found)


def _jpeg(random: np.random.Generator) -> bytes:
    """Smooth patches of colour with some noise, as large as the model looks at."""
    cells = random.integers(0, 256, (_CELLS, _CELLS, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(cells).resize((_EDGE, _EDGE), Image.Resampling.BICUBIC))
    noisy = smooth.astype(np.int16) + random.integers(-12, 13, smooth.shape)
    target = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(target, "JPEG", quality=85)
    return target.getvalue()

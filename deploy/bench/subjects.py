"""The models of the figures: where each comes from, what is asked of it, and how it is prepared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

import deploy
from deploy.bench.cells import Kind
from deploy.library import ModelLibrary, Prepared
from orchestrator.models.source import NONE, InputShape, ModelSource, parse_source
from shared.client.inputs import encode_input
from shared.errors import ConfigurationError
from shared.graph import Kernels
from shared.manifest import Level

PHOTO = Path(str(deploy.__file__)).parent / "photo" / "cat.jpg"
_SAMPLES = 36
"""To take int8 ranges from. Weights are random, so that many more would say no more."""
_TOKENS = 128
_VOCABULARY = 30_522
_SEED = 5
_EDGE, _SCALES = 256, (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as `amp4ec serve` would take it, and what it is called in tables."""

    name: str
    title: str
    reference: str
    asks: Literal["photograph", "text"]
    """A photograph of 47 KB, read by the first stage; or `_TOKENS` tokens of text with their mask."""

    def source(self) -> ModelSource:
        """Where it comes from; weights are random, since nothing here depends on them."""
        if self.asks == "photograph":
            return parse_source(self.reference, weights=NONE, name=self.name)
        shapes = [InputShape.parse(f"{name}:1x{_TOKENS}:int64") for name in ("ids", "mask")]
        return parse_source(self.reference, inputs=shapes, name=self.name)

    def payload(self) -> bytes:
        """A job's."""
        if self.asks == "photograph":
            return PHOTO.read_bytes()
        texts = _texts(1)
        return encode_input({name: array[0] for name, array in texts.items()}).data

    def samples(self, folder: Path) -> Path:
        """Written below `folder`: what int8 ranges are taken from; equal in every run."""
        target = folder / self.asks
        target.mkdir(parents=True, exist_ok=True)
        if self.asks == "photograph":
            _write_pictures(target)
        else:
            texts = _texts(_SAMPLES)
            np.savez(target / "texts.npz", ids=texts["ids"][:, 0], mask=texts["mask"][:, 0])
        return target


SUBJECTS: Mapping[str, Subject] = {
    subject.name: subject
    for subject in (
        Subject("mobilenet_v2", "MobileNetV2", "mobilenet_v2", "photograph"),
        Subject("efficientnet_b0", "EfficientNet-B0", "efficientnet_b0", "photograph"),
        Subject("encoder", "BERT-like encoder", "orchestrator.models.encoder:encoder", "text"),
        Subject("resnet50", "ResNet-50", "resnet50", "photograph"),
        Subject("vit_b_16", "ViT-B/16", "vit_b_16", "photograph"),
    )
}
"""Smaller ones first: what a larger one leaves behind in a process is not the smaller one's memory."""


def subject_of(name: str) -> Subject:
    """The subject `name`; any other name is a model of torchvision.

    Raises:
        ConfigurationError: it is no such name.
    """
    known = SUBJECTS.get(name)
    if known is not None:
        return known
    if not name.isidentifier():
        raise ConfigurationError(
            f"--models {name}: figures are made of torchvision's models and of our encoder",
            expected=f"names such as {', '.join(SUBJECTS)}",
            got=name,
        )
    return Subject(name, name, name, "photograph")


def title_of(name: str) -> str:
    """What a model is called in tables."""
    known = SUBJECTS.get(name)
    return name if known is None else known.title


def prepare(
    library: ModelLibrary, subject: Subject, kind: Kind, folder: Path, step: Callable[[str], None]
) -> Prepared:
    """The model for this runtime and level; takes seconds to minutes of CPU the first time on a machine.

    Args:
        library: keeps it.
        subject: which.
        kind: for what.
        folder: scratch, for samples.
        step: gets a line per step.

    Raises:
        Amp4ecError: as `ModelLibrary.prepare` does.
    """
    quantised = kind.level == Level.O2
    return library.prepare(
        subject.source(),
        step,
        level=kind.level,
        samples=[subject.samples(folder)] if quantised else (),
        # Of random weights it says nothing.
        min_agreement=0.0,
        # Timed with all runtimes at once, unless only one can run it.
        runtime=kind.runtime if kind.plain else "auto",
        kernels=Kernels.PLAIN if kind.plain else None,
    )


def _texts(count: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """`ids` and `mask`, int64 [count, 1, tokens]; the last eighth of the tokens is hidden."""
    random = np.random.default_rng(_SEED)
    ids = random.integers(0, _VOCABULARY, (count, 1, _TOKENS), np.int64)
    mask = np.ones_like(ids)
    mask[:, :, _TOKENS - _TOKENS // 8 :] = 0
    return {"ids": ids, "mask": mask}


def _write_pictures(folder: Path) -> None:
    """JPEGs with as much power at every scale, as photographs have."""
    from PIL import Image

    random = np.random.default_rng(_SEED)
    for index in range(_SAMPLES):
        total = np.zeros((_EDGE, _EDGE, 3), np.float32)
        for cells in _SCALES:
            grid = random.standard_normal((cells, cells, 3), np.float32)
            total += np.kron(grid, np.ones((_EDGE // cells, _EDGE // cells, 1), np.float32))
        pixels = np.clip(128 + 40 * total / total.std(), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.jpg", quality=90)

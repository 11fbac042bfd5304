"""A model as PyTorch runs it unasked: the module as torchvision makes it, no graph, nothing folded or fused.

What the paper compares with. Nothing is served with it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.models.zoo import build
from shared.transform import Transform


class EagerModel:
    """A torchvision classifier in eager mode. `threads` is for the whole process.

    Raises:
        ModelError: no such model, or weights that cannot be had.
    """

    def __init__(self, name: str, weights: str, *, threads: int, seed: int = 0) -> None:
        torch.set_num_threads(threads)
        built = build(name, weights, seed)
        self.transform: Transform = built.transform
        self._module = built.module

    def run(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits [N, classes] of images [N, 3, height, width]."""
        with torch.inference_mode():
            output: npt.NDArray[np.float32] = self._module(torch.from_numpy(images)).numpy()
        return output

"""A classifier with something to be right about: shapes in noise, learned within seconds.

What a quantised model agrees with its original about means something only where classes are apart, as
training puts them; random weights put them anywhere.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from orchestrator.models.threads import one_thread

EDGE = 32
CLASSES = ("disc", "square", "cross", "rows", "columns", "ring")
_STEPS, _BATCH = 80, 24


class ShapeNet(nn.Module):
    """What int8 has to deal with, in small: a depthwise and a pointwise convolution, a residual, a gate
    (squeeze and excitation with SiLU), a concatenation, pools, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _block(3, 16, 3, stride=2)
        self.deep = _block(16, 16, 3, groups=16, activation=nn.ReLU6())
        self.point = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.wide = _block(16, 24, 3, stride=2, activation=nn.SiLU())
        self.squeeze, self.excite = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.side = _block(16, 8, 3, stride=2)
        self.hidden, self.head = nn.Linear(32, 32), nn.Linear(32, len(CLASSES))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        x = x + self.point(self.deep(x))
        y = self.wide(x)
        gate = torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))
        y = y * torch.sigmoid(self.excite(gate))
        both = nn.functional.max_pool2d(torch.cat([y, self.side(x)], 1), 2)
        pooled = nn.functional.adaptive_avg_pool2d(both, 1).flatten(1)
        return self.head(torch.relu(self.hidden(pooled)))


def _block(
    inputs: int, outputs: int, kernel: int, activation: nn.Module | None = None, **options: Any
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outputs),
        activation or nn.ReLU(),
    )


def draw(label: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of a class, uint8 [EDGE, EDGE, 3]."""
    y, x = np.mgrid[:EDGE, :EDGE] - random.uniform(12, 20, (2, 1, 1))
    size, r = random.uniform(7, 11), np.hypot(x, y)
    inside = (np.abs(x) < size) & (np.abs(y) < size)
    shape = [
        r < size,
        inside,
        inside & ((np.abs(x) < 3) | (np.abs(y) < 3)),
        inside & (y % 6 < 3),
        inside & (x % 6 < 3),
        (r < size) & (r > size - 4),
    ][label]
    paper, ink = random.uniform(0, 90, 3), random.uniform(150, 255, 3)
    picture = np.where(shape[:, :, None], ink, paper) + random.normal(0, 18, (EDGE, EDGE, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


def tensor(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """As the model takes it: float32 [1, 3, EDGE, EDGE], as `TRANSFORM` makes it of the same picture."""
    scaled = (picture.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


TRANSFORM: dict[str, Any] = {"resize": None, "crop": EDGE, "mean": (0.5,) * 3, "std": (0.25,) * 3}
"""The fields of `shared.transform.Transform`."""


def png(picture: NDArray[np.uint8]) -> bytes:
    """A picture as a file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def write_samples(folder: Path, count: int, seed: int = 7) -> Path:
    """A folder of pictures of all classes."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for at in range(count):
        (folder / f"{at:03}.png").write_bytes(png(draw(at % len(CLASSES), random)))
    return folder


@cache
def trained() -> nn.Module:
    """The classifier, after some seconds on one core; the same every time."""
    random = np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(0)
        net = ShapeNet().train()
        optimiser = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(_STEPS):
            labels = random.integers(0, len(CLASSES), _BATCH)
            images = np.concatenate([tensor(draw(label, random)) for label in labels])
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(
                net(torch.from_numpy(images)), torch.from_numpy(labels)
            )
            loss.backward()
            optimiser.step()
    return net.eval()

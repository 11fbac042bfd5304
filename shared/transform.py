"""What turns a decoded image into a model's input, as data.

The steps are those of torchvision's `ImageClassification` preset, in its order: convert to RGB, resize the
shorter edge, crop the centre, divide by 255, normalise per channel. An agent runs them with Pillow and
NumPy (`edge_agent.preprocess`), so no torchvision is needed where a model runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from shared.errors import ConfigurationError

MAX_EDGE = 8192


class Interpolation(StrEnum):
    """How the resize samples; Pillow's filters of these names, always antialiased."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


@dataclass(frozen=True, slots=True)
class Transform:
    """A model's own preprocessing.

    `resize` is the length of the shorter edge in pixels (null: none), `crop` the edge of the square that is
    cut out of the centre (padded with zeros where the image is smaller), `mean` and `std` are per
    channel, on values in 0..1. The result is float32 [1, 3, crop, crop].
    """

    resize: int | None
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = Interpolation.BILINEAR

    def __post_init__(self) -> None:
        for name, edge in (("resize", self.resize), ("crop", self.crop)):
            if edge is not None and not 0 < edge <= MAX_EDGE:
                raise ConfigurationError(
                    f"transform: {name}", expected=f"1..{MAX_EDGE} pixels", got=str(edge)
                )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise ConfigurationError(
                    f"transform: {name}", expected="three finite numbers", got=str(values)
                )
        if min(self.std) <= 0:
            raise ConfigurationError("transform: std", expected="above 0", got=str(self.std))


IMAGENET = Transform(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""The transform of most classifiers trained on ImageNet."""

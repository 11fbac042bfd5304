"""The inputs of the experiments: photographs of 256 x 256 pixels, each another, as a camera sends them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from deploy.photo import PHOTO

EDGE = 256
"""As much as the usual transforms look at: a device scales before it sends."""


def photos(count: int, seed: int) -> list[bytes]:
    """So many different JPEG files; the same seed gives the same ones."""
    random = np.random.default_rng(seed)
    with Image.open(PHOTO) as image:
        base = np.asarray(image.convert("RGB").resize((EDGE, EDGE)), np.int16)
    made = []
    for _ in range(count):
        shade = random.integers(-24, 25, (8, 8, 3)).repeat(EDGE // 8, 0).repeat(EDGE // 8, 1)
        pixels = np.clip(base + shade, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made

"""A photograph to try things with; whose it is stands in LICENCE.txt beside it."""

from __future__ import annotations

import os
from pathlib import Path

PHOTO = Path(__file__).parent / "cat.jpg"
"""Chelsea the cat, 451 x 300 pixels, by Stefan van der Walt (CC0)."""


def photo_to_type() -> str:
    """The photograph's path as somebody in the present folder would type it."""
    relative = os.path.relpath(PHOTO)
    return relative if not relative.startswith("..") else str(PHOTO)

"""A picture with its answer below it: what the model sees, how sure it is, how long it took, and where."""

from __future__ import annotations

import os
import re
from bisect import bisect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from shared.client import Result
from shared.errors import Amp4ecError, ConfigurationError

NARROWEST = 320
"""Pixels: a narrower picture gets a margin, so that a label fits."""
LABELS = 3
_INK, _QUIET, _BAR, _WRONG, _GROUND = "#f4f4f5", "#a1a1aa", "#2563eb", "#f87171", "#18181b"
_QUALITY = 90


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    size: int
    ink: str = _INK
    right: str = ""
    share: float = 0.0
    """Of the width, drawn as a bar behind the text."""


def annotated(image: Image.Image, outcome: Result | Amp4ecError) -> Image.Image:
    """A copy in RGB with a panel below it; text is at least 14 pixels high, and grows with the picture."""
    width = max(image.width, NARROWEST)
    size = min(max(width // 28, 16), 56)
    lines = _lines(outcome, size)
    gap = size // 2
    heights = [round(line.size * 1.5) for line in lines]
    sheet = Image.new("RGB", (width, image.height + sum(heights) + 2 * gap), _GROUND)
    # Dropped, not blended, as the model does: what it saw is what is shown.
    sheet.paste(image.convert("RGB"), ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    top = image.height + gap
    for line, height in zip(lines, heights, strict=True):
        _draw_line(draw, line, top=top, height=height, width=width, gap=gap)
        top += height
    return sheet


def _lines(outcome: Result | Amp4ecError, size: int) -> Sequence[_Line]:
    small = max(size * 2 // 3, 14)
    if isinstance(outcome, Amp4ecError):
        return [_Line("no answer", size, _WRONG), _Line(str(outcome), small, _QUIET)]
    lines = [
        _Line(
            label.label,
            small if place else size,
            right=f"{label.probability:.1%}",
            share=label.probability,
        )
        for place, label in enumerate(outcome.top[:LABELS])
    ] or [_Line("no labels: the model is no classifier", size)]
    where = " > ".join(outcome.nodes)
    notes = [
        f"{outcome.latency_s * 1e3:.0f} ms",
        outcome.model,
        *([f"on {where}"] if where else []),
        *(["from the cache"] if outcome.cached else []),
        *([] if outcome.exact else ["not exact"]),
    ]
    lines.append(_Line(", ".join(notes), small, _QUIET))
    if outcome.random_weights:
        lines.append(_Line("random weights: the labels mean nothing", small, _WRONG))
    return lines


def _draw_line(
    draw: ImageDraw.ImageDraw, line: _Line, *, top: int, height: int, width: int, gap: int
) -> None:
    font = ImageFont.load_default(line.size)
    middle = top + height / 2
    room = width - 2 * gap
    if line.right:
        draw.text((width - gap, middle), line.right, line.ink, font, anchor="rm")
        room -= round(draw.textlength("100.0%", font)) + gap
    if line.share > 0:
        end = gap / 2 + (room + gap / 2) * min(line.share, 1.0)
        draw.rounded_rectangle((gap / 2, top + 1, end, top + height - 2), height // 6, _BAR)
    draw.text((gap, middle), _fitting(draw, line.text, font, room), line.ink, font, anchor="lm")


def _fitting(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    room: float,
) -> str:
    text = " ".join(text.split())  # a line break of an error would be drawn as one
    if draw.textlength(text, font) <= room:
        return text
    beginnings = range(1, len(text))
    fitting = bisect(beginnings, room, key=lambda size: draw.textlength(text[:size] + "...", font))
    return text[:fitting].rstrip() + "..."


class Album:
    """A folder of annotated pictures; a viewer that watches it sees whole files only."""

    def __init__(self, directory: Path, *, keep: int | None = None) -> None:
        """Make the folder, where there is none.

        Args:
            directory: for the pictures.
            keep: so many of the latest that were added here; None: all.

        Raises:
            ConfigurationError: it cannot be made, or not be written into.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"--annotate {directory}: {error.strerror or error}", expected="a folder"
            ) from error
        if not os.access(directory, os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"--annotate {directory}: no permission to write there",
                expected="a folder of yours",
            )
        self.directory = directory
        self._keep = keep
        self._added: deque[Path] = deque()
        self._names: set[str] = set()

    def add(self, name: str, image: Image.Image, outcome: Result | Amp4ecError) -> Path:
        """Write `image` with its answer, as a JPEG file named after `name`; a name taken here gets a number.

        Raises:
            OSError: it cannot be written: the disk is full, or the folder gone.
        """
        path = self.directory / self._free(re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "picture")
        hidden = path.with_name(f".{path.name}.part")
        annotated(image, outcome).save(hidden, "JPEG", quality=_QUALITY)
        hidden.replace(path)
        self._added.append(path)
        while self._keep is not None and len(self._added) > self._keep:
            old = self._added.popleft()
            self._names.discard(old.name)
            old.unlink(missing_ok=True)
        return path

    def _free(self, stem: str) -> str:
        name, number = f"{stem}.jpg", 1
        while name in self._names:
            number += 1
            name = f"{stem}-{number}.jpg"
        self._names.add(name)
        return name

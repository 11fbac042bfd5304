"""What every picture has in common: where it goes, how it looks, and that it is drawn without a display."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, PAPER = "#22303c", "#8a97a3", "#ffffff"
BLUE, ORANGE, GREEN, RED, PURPLE = "#3b7dd8", "#e08a2e", "#3a9d6e", "#d1495b", "#8561c5"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, "#4aa8b8", "#b8923a", "#a8547d", "#6f7f8f")
_DPI = 150


def figure(width: float, height: float, *, arranged: bool = True) -> Figure:
    """An empty picture of so many inches; `arranged` makes room for what stands beside its axes."""
    return Figure(
        figsize=(width, height), facecolor=PAPER, layout="constrained" if arranged else None
    )


def plain(axes: Axes) -> Axes:
    """Axes without a frame, their figures in a quiet grey."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=8)
    return axes


def label(name: str) -> str:
    """A name as it is: dollar signs would begin a formula."""
    return name.replace("$", r"\$")


def save(picture: Figure, path: Path) -> None:
    """Write it in the format that the name says; equal pictures give equal SVG files."""
    from matplotlib import rc_context

    stamp = {"Date": None} if path.suffix.lower() == ".svg" else None
    with rc_context({"svg.hashsalt": "amp4ec", "svg.fonttype": "none"}):
        picture.savefig(path, dpi=_DPI, metadata=stamp)

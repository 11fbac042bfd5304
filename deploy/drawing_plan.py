"""A plan as a picture: a row per pipeline, a box per stage, the bytes on each link, the bottleneck in red."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from deploy.drawing import BLUE, FAINT, INK, PAPER, RED, figure, label, save
from deploy.plan_tables import figures, headline
from deploy.plan_view import LinkView, PipelineView, StageView, view
from deploy.planning import Answer
from deploy.text import milliseconds, percent, size

_MOST_ROWS = 8
"""Pipelines that differ; of more, the first are drawn and the rest counted."""
_MOST_NAMED = 3
_BOX, _LINK, _ROW, _HEIGHT, _END = 2.1, 1.25, 1.75, 1.25, 0.55
"""Inches: a stage's width, a link's length, a row, a stage's height, the ends of a row."""


def draw_plan(answer: Answer, path: Path) -> None:
    """Write the picture to `path` (.png, .svg or .pdf).

    Raises:
        OSError: it cannot be written.
    """
    views = view(answer.request.profile, answer.plan.pipelines)
    shown = views[:_MOST_ROWS]
    longest = max(len(pipeline.stages) for pipeline in shown)
    width = max(2 * _END + longest * _BOX + (longest + 1) * _LINK, 7.5)
    left = sum(pipeline.copies for pipeline in views[_MOST_ROWS:])
    height = _ROW * len(shown) + 0.75 + (0.3 if left else 0.0)
    picture = figure(width, height, arranged=False)
    axes = picture.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    title, told = label(headline(answer.plan, answer.request)), figures(answer.plan.predicted)
    axes.text(0.2, height - 0.3, title, fontsize=11, color=INK, weight="bold", va="center")
    axes.text(0.2, height - 0.55, f"predicted: {told}", fontsize=9, color=INK, va="center")
    for row, pipeline in enumerate(shown):
        _row(axes, pipeline, height - 0.75 - _ROW * (row + 0.5))
    if left:
        axes.text(0.2, 0.15, f"and {left} more pipelines", fontsize=9, color=INK, va="center")
    save(picture, path)


def _row(axes: Axes, pipeline: PipelineView, y: float) -> None:
    """One pipeline, at this height."""
    if pipeline.others:
        text = f"{pipeline.copies} of these, also on {', '.join(pipeline.others[:_MOST_NAMED])}"
        more = len(pipeline.others) - _MOST_NAMED
        text += f" and {more} more" if more > 0 else ""
        axes.text(0.2, y + _HEIGHT / 2 + 0.13, label(text), fontsize=8, color=FAINT, va="center")
    x = _END
    axes.text(x - 0.05, y, "input", fontsize=9, color=INK, ha="right", va="center")
    for link, stage in zip(pipeline.links, pipeline.stages, strict=False):
        _link(axes, link, x, y)
        _stage(axes, stage, x + _LINK, y)
        x += _LINK + _BOX
    _link(axes, pipeline.links[-1], x, y)
    axes.text(x + _LINK + 0.05, y, "result", fontsize=9, color=INK, ha="left", va="center")


def _stage(axes: Axes, stage: StageView, x: float, y: float) -> None:
    """A box, filled from the left as far as its CPU is busy."""
    colour = RED if stage.bottleneck else BLUE
    bottom = y - _HEIGHT / 2
    frame = FancyBboxPatch(
        (x, bottom),
        _BOX,
        _HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor=PAPER,
        edgecolor=colour,
        linewidth=2.0 if stage.bottleneck else 1.2,
    )
    axes.add_patch(frame)
    filling = Rectangle(
        (x, bottom),
        _BOX * min(stage.busy_ratio, 1.0),
        _HEIGHT,
        color=colour,
        alpha=0.16,
        linewidth=0,
    )
    axes.add_patch(filling)
    filling.set_clip_path(frame)
    start, stop = stage.blocks
    blocks = f"block {start}" if stop == start + 1 else f"blocks {start} to {stop - 1}"
    lines = (
        (0.42, _short(stage.node), 10, "bold"),
        (0.18, blocks, 9, "normal"),
        (-0.06, f"{milliseconds(stage.seconds)}, {percent(stage.busy_ratio)} busy", 9, "normal"),
        (-0.28, f"{size(stage.weight_bytes)} of weights", 8, "normal"),
        (-0.47, f"{size(stage.memory_bytes)} in memory", 8, "normal"),
    )
    for above, text, points, weight in lines:
        axes.text(
            x + _BOX / 2, y + above, text, fontsize=points, weight=weight, color=INK,
            ha="center", va="center",
        )  # fmt: skip
    if stage.bottleneck:
        axes.text(
            x + _BOX / 2, bottom - 0.12, "bottleneck", fontsize=8, color=RED, weight="bold",
            ha="center", va="center",
        )  # fmt: skip


def _link(axes: Axes, link: LinkView, x: float, y: float) -> None:
    """An arrow with its bytes above and its time below."""
    colour = RED if link.bottleneck else FAINT
    axes.annotate(
        "",
        xy=(x + _LINK - 0.04, y),
        xytext=(x + 0.04, y),
        arrowprops={
            "arrowstyle": "-|>",
            "color": colour,
            "linewidth": 2.0 if link.bottleneck else 1.2,
        },
    )
    middle = x + _LINK / 2
    axes.text(middle, y + 0.14, link.sent, fontsize=8, color=INK, ha="center", va="center")
    time = f"{milliseconds(link.seconds)}, {percent(link.busy_ratio)}"
    axes.text(
        middle, y - 0.14, time, fontsize=7, color=colour if link.bottleneck else FAINT,
        ha="center", va="center",
    )  # fmt: skip
    if link.bottleneck:
        axes.text(
            middle, y - 0.32, "bottleneck", fontsize=8, color=RED, weight="bold",
            ha="center", va="center",
        )  # fmt: skip


def _short(name: str) -> str:
    """A node's name that fits its box."""
    return label(name if len(name) <= 22 else f"{name[:10]}...{name[-9:]}")

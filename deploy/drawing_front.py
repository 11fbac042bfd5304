"""The Pareto front as a picture: a point per plan over two objectives, a third as colour, the plan marked.

What kind of plan a point is shows in its form. With two objectives a line joins the points; with a third the
front is a surface, and a line over it would say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.lines import Line2D

from deploy.drawing import BLUE, FAINT, INK, RED, figure, label, plain, save
from deploy.plan_tables import axis_title, axis_value, figures, headline
from deploy.planning import Answer
from orchestrator.core.plan import PipelinePlan, Priced

_FORMS = {
    "one node": "o",
    "copies": "s",
    "one pipeline": ">",
    "several pipelines, or a mixture": "D",
}
_COLOURS = "viridis_r"
_SIZE = 7.0


def draw_front(answer: Answer, path: Path) -> None:
    """Write the picture to `path` (.png, .svg or .pdf).

    Raises:
        OSError: it cannot be written.
    """
    front = answer.front
    assert front is not None
    across, up, *third = front.objectives
    picture = figure(8.5, 5.5)
    axes = plain(picture.add_subplot())
    shades = [BLUE] * len(front.points)
    if third:
        values = [axis_value(point.predicted, third[0]) for point in front.points]
        scale = ScalarMappable(Normalize(min(values), max(values)), _COLOURS)
        shades = [to_hex(shade) for shade in scale.to_rgba(np.array(values))]
        bar = picture.colorbar(scale, ax=axes)
        bar.outline.set_visible(False)
        bar.set_label(axis_title(third[0]), color=INK, fontsize=9)
        bar.ax.tick_params(labelsize=8, colors=FAINT, labelcolor=INK)
    else:
        spots = sorted(
            (axis_value(point.predicted, across), axis_value(point.predicted, up))
            for point in front.points
        )
        axes.plot(*zip(*spots, strict=True), color=FAINT, linewidth=0.8, zorder=1)
    for point, shade in zip(front.points, shades, strict=True):
        axes.plot(
            axis_value(point.predicted, across), axis_value(point.predicted, up),
            marker=_FORMS[_kind(point.pipelines)], markersize=_SIZE, color=shade,
            markeredgecolor=INK, markeredgewidth=0.5, zorder=3,
        )  # fmt: skip
    chosen = answer.plan.predicted
    axes.plot(
        axis_value(chosen, across), axis_value(chosen, up), marker="o", markersize=2 * _SIZE,
        markerfacecolor="none", markeredgecolor=RED, markeredgewidth=1.8, zorder=4,
    )  # fmt: skip
    axes.set_xlabel(axis_title(across), color=INK, fontsize=9)
    axes.set_ylabel(axis_title(up), color=INK, fontsize=9)
    axes.margins(0.06)
    picture.suptitle(
        f"{label(headline(answer.plan, answer.request))}\npredicted: {figures(chosen)} (in the red ring)",
        x=0.01, ha="left", fontsize=9, color=INK,
    )  # fmt: skip
    _legend(axes, front.points)
    save(picture, path)


def _legend(axes: Axes, points: Sequence[Priced]) -> None:
    """The forms that occur, above the axes."""
    there = {_kind(point.pipelines) for point in points}
    axes.legend(
        handles=[
            Line2D([], [], marker=form, linestyle="", color=FAINT, markersize=_SIZE, label=kind)
            for kind, form in _FORMS.items()
            if kind in there
        ],
        fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 0.99),
    )  # fmt: skip


def _kind(pipelines: Sequence[PipelinePlan]) -> str:
    """One of `_FORMS`."""
    whole = all(len(pipeline.stages) == 1 for pipeline in pipelines)
    if len(pipelines) == 1:
        return "one node" if whole else "one pipeline"
    return "copies" if whole else "several pipelines, or a mixture"

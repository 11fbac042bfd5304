"""The Pareto front as a picture: a point per plan over two objectives, a third as colour, the plan marked."""

from __future__ import annotations

from pathlib import Path

from deploy.drawing import BLUE, FAINT, INK, RED, figure, plain, save
from deploy.plan_tables import axis_title, axis_value, figures, headline
from deploy.planning import Answer, kind_of

_MOST_NAMED = 14
"""Points that are named; of more, only some are."""


def draw_front(answer: Answer, path: Path) -> None:
    """Write the picture to `path` (.png, .svg or .pdf).

    Raises:
        OSError: it cannot be written.
    """
    front = answer.front
    assert front is not None
    across, up, *colour = front.objectives
    points = [point.predicted for point in front.points]
    xs = [axis_value(predicted, across) for predicted in points]
    ys = [axis_value(predicted, up) for predicted in points]
    picture = figure(8.5, 5.5)
    axes = plain(picture.add_subplot())
    axes.plot(xs, ys, color=FAINT, linewidth=0.8, zorder=1)
    if colour:
        shades = [axis_value(predicted, colour[0]) for predicted in points]
        dots = axes.scatter(xs, ys, c=shades, cmap="viridis", s=42, zorder=3)
        bar = picture.colorbar(dots, ax=axes)
        bar.set_label(axis_title(colour[0]), color=INK, fontsize=9)
        bar.ax.tick_params(labelsize=8, colors=FAINT, labelcolor=INK)
    else:
        axes.scatter(xs, ys, color=BLUE, s=42, zorder=3)
    chosen = answer.plan.predicted
    axes.scatter(
        [axis_value(chosen, across)], [axis_value(chosen, up)], facecolors="none",
        edgecolors=RED, linewidths=1.8, s=150, zorder=4, label=f"the plan: {figures(chosen)}",
    )  # fmt: skip
    every = -(-len(points) // _MOST_NAMED)
    for index, point in enumerate(front.points):
        if index % every == 0 or index == len(points) - 1:
            axes.annotate(
                kind_of(point.pipelines),
                (xs[index], ys[index]),
                xytext=(6, -11),
                textcoords="offset points",
                fontsize=7.5,
                color=INK,
            )
    axes.set_xlabel(axis_title(across), color=INK, fontsize=9)
    axes.set_ylabel(axis_title(up), color=INK, fontsize=9)
    axes.margins(0.12)
    axes.set_title(headline(answer.plan, answer.request), loc="left", fontsize=10, color=INK)
    axes.legend(fontsize=8, frameon=False, loc="best")
    save(picture, path)

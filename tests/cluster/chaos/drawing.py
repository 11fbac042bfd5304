"""A picture of a run: answers over time with the faults marked, and how long it took to get over each."""

from __future__ import annotations

from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes

from deploy.drawing import BLUE, FAINT, INK, ORANGE, figure, plain, save
from tests.cluster.chaos.checks import Struck
from tests.cluster.chaos.report import timeline
from tests.cluster.chaos.run import Outcomes


def draw_run(outcomes: Outcomes, path: Path) -> None:
    """Draw it into `path`, in the format that its name says."""
    picture = figure(13.0, 8.0)
    grid = picture.add_gridspec(3, 1, height_ratios=(2, 2, 3))
    kinds = sorted({each.fault.kind for each in outcomes.struck})
    colours = {kind: colormaps["tab20"](index) for index, kind in enumerate(kinds)}
    seconds = timeline(outcomes)
    times = [second.at_s for second in seconds]
    rate = plain(picture.add_subplot(grid[0]))
    rate.step(times, [second.answered for second in seconds], where="post", color=BLUE, lw=1.0)
    rate.set_ylabel("answers per s", fontsize=9, color=INK)
    latency = plain(picture.add_subplot(grid[1], sharex=rate))
    known = [second for second in seconds if second.latency_median_ms is not None]
    latency.plot(
        [second.at_s for second in known],
        [second.latency_median_ms or 0.0 for second in known],
        color=ORANGE,
        lw=1.0,
    )
    latency.set_yscale("log")
    latency.set_ylabel("median latency, ms", fontsize=9, color=INK)
    latency.set_xlabel("seconds; shaded: a fault, coloured as below", fontsize=8, color=FAINT)
    for axes in (rate, latency):
        for each in outcomes.struck:
            axes.axvspan(
                each.began_at - outcomes.began_at,
                max(each.mended_at, each.began_at + 0.3) - outcomes.began_at,
                color=colours[each.fault.kind],
                alpha=0.25,
                lw=0,
            )
    below = plain(picture.add_subplot(grid[2]))
    for row, kind in enumerate(reversed(kinds)):
        of_kind = [each for each in outcomes.struck if each.fault.kind is kind]
        _recoveries(below, row, of_kind, colours[kind])
    below.set_yticks(range(len(kinds)), [str(kind) for kind in reversed(kinds)], fontsize=8)
    below.set_xscale("symlog", linthresh=0.1)
    below.set_xlim(left=0)
    below.set_xlabel(
        "seconds: from a fault to the first answer of a job sent after it (dots), longest gap (bars)",
        fontsize=8,
        color=FAINT,
    )
    save(picture, path)


def _recoveries(axes: Axes, row: int, struck: list[Struck], colour: tuple[float, ...]) -> None:
    recovery = [each.recovery_s for each in struck if each.recovery_s is not None]
    gaps = [each.gap_s for each in struck if each.gap_s is not None]
    axes.scatter(recovery, [row + 0.12] * len(recovery), color=colour, s=14, alpha=0.8, lw=0)
    axes.scatter(gaps, [row - 0.12] * len(gaps), color=colour, s=26, alpha=0.6, marker="|")

"""A profile as a picture: time, multiply-adds, bytes at each cut, and three measures of work."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from deploy.drawing import BLUE, FAINT, GREEN, INK, ORANGE, PALETTE, RED, figure, label, plain, save
from deploy.profile_report import ProfileReport
from deploy.profile_tables import summary
from deploy.text import amount, size

_OTHER = "other"


def draw_profile(report: ProfileReport, path: Path) -> None:
    """Write the picture to `path` (.png, .svg or .pdf).

    Raises:
        OSError: it cannot be written.
    """
    blocks = report.profile.blocks
    kinds = [row.kind.split(" ")[0] or _OTHER for row in report.rows()]
    seconds = [block.seconds * 1e3 for block in blocks]
    macs = [float(block.macs) for block in blocks]
    picture = figure(min(max(8.0, 0.14 * len(blocks) + 3), 20), 9)
    time, work, cuts, shares = (
        plain(axes) for axes in picture.subplots(4, 1, sharex=True, height_ratios=(3, 2, 2, 2))
    )
    picture.suptitle(label("\n".join(summary(report))), x=0.01, ha="left", fontsize=9, color=INK)
    _bars(time, seconds, kinds, "ms")
    _legend(time)
    _bars(work, macs, kinds, "multiply-adds")
    work.yaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    _cuts(cuts, report)
    _shares(shares, report)
    shares.set_xlabel("block", color=INK, fontsize=9)
    shares.set_xlim(-1, len(blocks))
    shares.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20))
    save(picture, path)


def _bars(axes: Axes, heights: list[float], kinds: list[str], title: str) -> None:
    known = sorted(set(kinds), key=kinds.index)
    for kind in known:
        at = [index for index, each in enumerate(kinds) if each == kind]
        axes.bar(
            at,
            [heights[index] for index in at],
            color=PALETTE[known.index(kind) % len(PALETTE)],
            label=kind,
            width=0.8,
        )
    axes.set_ylabel(title, color=INK, fontsize=9)


def _cuts(axes: Axes, report: ProfileReport) -> None:
    """Bytes that cross each cut, drawn between its two blocks; several tensors stand out."""
    profile = report.profile
    for tensors, colour, told in ((False, BLUE, "one tensor"), (True, RED, "several tensors")):
        cuts = [cut for cut in profile.cuts if (cut.tensors > 1) == tensors]
        if cuts:
            axes.bar(
                [cut.index - 0.5 for cut in cuts],
                [cut.bytes for cut in cuts],
                width=0.5,
                color=colour,
                label=told,
            )
    axes.axhline(profile.input_bytes, color=FAINT, linewidth=1, linestyle=":", label="the input")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    axes.set_ylabel("bytes at each cut", color=INK, fontsize=9)
    _legend(axes)


def _shares(axes: Axes, report: ProfileReport) -> None:
    """How much of the whole lies before each cut: by time, by multiply-adds, by the paper's cost."""
    blocks = report.profile.blocks
    measures = [
        ("measured time", BLUE, [block.seconds for block in blocks]),
        ("multiply-adds", GREEN, [float(block.macs) for block in blocks]),
        ("the paper's cost", ORANGE, [float(row.paper_cost or 0) for row in report.rows()]),
    ]
    for told, colour, values in measures:
        total = sum(values)
        if total:
            done = [100 * part / total for part in accumulate(values)]
            axes.plot([-0.5, *(i + 0.5 for i in range(len(done)))], [0, *done], color=colour,
                      label=told, linewidth=1.5)  # fmt: skip
    axes.set_ylim(0, 100)
    axes.set_ylabel("% done before", color=INK, fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def _legend(axes: Axes) -> None:
    """Above the axes, where no bar is."""
    axes.legend(
        fontsize=8, frameon=False, ncols=6, loc="lower right", bbox_to_anchor=(1, 0.98), borderpad=0
    )

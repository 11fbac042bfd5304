"""Drawings of the experiments: a bar for each case, or a figure over time for each of its rounds."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from deploy.drawing import BLUE, FAINT, INK, PALETTE, RED, figure, label, plain, save
from deploy.experiments.summary import Summary

_HIGHEST = 12.0


def bars(summary: Summary, name: str, path: Path) -> bool:
    """A bar for each case, its thin line from the least round to the largest; False without values."""
    found = [(case, value) for case in summary.cases if (value := summary.figure(case, name))]
    if not found:
        return False
    picture = figure(8.0, min(1.2 + 0.34 * len(found), _HIGHEST))
    axes = plain(picture.subplots())
    at = range(len(found))
    medians = [value.median for _, value in found]
    axes.barh(at, medians, color=[_colour(summary, case) for case, _ in found], height=0.62)
    axes.hlines(
        at, [v.least for _, v in found], [v.largest for _, v in found], color=INK, linewidth=1.2
    )
    axes.set_yticks(at, [label(case) for case, _ in found])
    axes.invert_yaxis()
    axes.set_xlabel(name.replace("_", " "), fontsize=9)
    # Room for the number beside the longest bar.
    axes.set_xlim(0, (max(value.largest for _, value in found) or 1.0) * 1.12)
    for index, (_, value) in enumerate(found):
        axes.annotate(
            f"{value.median:.3g}",
            (value.largest, index),
            textcoords="offset points",
            xytext=(4, 0),
            va="center",
            fontsize=8,
            color=INK,
        )
    _sign(picture, summary)
    save(picture, path)
    return True


def over_time(summary: Summary, name: str, path: Path) -> bool:
    """A picture for each case under each other, a line for each round; False without values."""
    cases = [case for case in summary.cases if any(r.series.get(name) for r in summary.of(case))]
    if not cases:
        return False
    picture = figure(8.0, 2.3 * len(cases))
    for row, case in enumerate(cases, 1):
        axes = plain(picture.add_subplot(len(cases), 1, row))
        for record, colour in zip(summary.of(case), PALETTE, strict=False):
            if values := record.series.get(name):
                axes.stairs(values, baseline=None, color=colour, linewidth=1)
            for at in record.series.get("event_s", []):
                axes.axvline(at, color=RED, linewidth=0.8, linestyle="--")
        axes.set_title(label(case), fontsize=9, loc="left")
        axes.set_ylabel(name.replace("_", " "), fontsize=8)
        axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds", fontsize=9)
    _sign(picture, summary)
    save(picture, path)
    return True


def _sign(picture: Figure, summary: Summary) -> None:
    """Where and when it was measured: a drawing is often looked at away from its page."""
    days = dict.fromkeys(at.partition("T")[0] for at in summary.dates)
    settings = ", ".join(f"{name} {value}" for name, value in summary.settings.items())
    text = f"{label(summary.machines)}; {settings}; {' to '.join(days)}"
    picture.supxlabel(text, x=0.99, ha="right", fontsize=6, color=FAINT)


def _colour(summary: Summary, case: str) -> str:
    """Ours, and what stands beside it: ours has baselines, or our name."""
    ours = any(summary.beside.get(case, ())) or "amp4ec" in case.lower()
    return BLUE if ours else FAINT

"""An overload as a picture: what was done, how long accepted jobs took, and how much memory all that was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from deploy.drawing import BLUE, FAINT, ORANGE, PALETTE, figure, plain, save


class Samples(Protocol):
    """Seconds since the start, and MiB by process at each."""

    at: list[float]
    mib: dict[str, list[float]]


def draw(
    rates: Sequence[float],
    saturated_per_s: float,
    memory: Samples,
    latencies: Sequence[tuple[float, float]],
    path: Path,
) -> None:
    """Three pictures under each other, over the same seconds."""
    picture = figure(9.0, 8.0)
    top, middle, bottom = (plain(axes) for axes in picture.subplots(3, 1, sharex=True))
    top.step(range(len(rates)), rates, where="post", color=BLUE, label="results per second")
    top.axhline(saturated_per_s, color=ORANGE, linewidth=1, label="saturated")
    top.set_ylim(bottom=0)
    top.set_title("three times the capacity is asked for", fontsize=10)
    middle.scatter(
        [at for at, _ in latencies], [latency for _, latency in latencies], s=2, color=BLUE
    )
    middle.set_ylabel("seconds to the result", fontsize=9)
    middle.set_ylim(bottom=0)
    for (name, samples), colour in zip(memory.mib.items(), PALETTE, strict=False):
        bottom.plot(memory.at, samples, color=colour, linewidth=1, label=name)
    bottom.set_ylabel("resident MiB", fontsize=9)
    bottom.set_xlabel("seconds", fontsize=9)
    bottom.set_ylim(bottom=0)
    for axes in (top, middle, bottom):
        axes.grid(color=FAINT, alpha=0.2)
    for axes in (top, bottom):
        axes.legend(fontsize=8, frameon=False)
    save(picture, path)

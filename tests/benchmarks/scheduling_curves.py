"""Decision and plan time over the number of candidates and nodes, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes

from deploy.drawing import FAINT, PALETTE, RED, figure, plain, save
from tests.benchmarks.stats import Summary


@dataclass(slots=True)
class Curve:
    """Milliseconds over n, one summary for each."""

    name: str
    counts: list[int] = field(default_factory=list)
    values: list[Summary] = field(default_factory=list)

    def add(self, count: int, values: Summary) -> None:
        """One more point, at a larger n."""
        self.counts.append(count)
        self.values.append(values)


def draw(
    decisions: Sequence[Curve], aims_ms: Mapping[int, float], plans: Curve, path: Path
) -> None:
    """Both curves side by side, medians with their spread, and what was aimed at."""
    picture = figure(10.0, 4.0)
    left, right = picture.subplots(1, 2)
    for curve, colour in zip(decisions, PALETTE, strict=False):
        _line(plain(left), curve, colour)
    left.scatter(list(aims_ms), list(aims_ms.values()), marker="v", color=RED, label="aimed at")
    left.set_title("which pipeline takes a job", fontsize=10)
    left.set_xlabel("candidates", fontsize=9)
    _line(plain(right), plans, PALETTE[0])
    right.set_title("a plan for MobileNetV2", fontsize=10)
    right.set_xlabel("nodes", fontsize=9)
    for axes in (left, right):
        axes.set_ylabel("milliseconds", fontsize=9)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(color=FAINT, alpha=0.2)
        axes.legend(fontsize=8, frameon=False)
    save(picture, path)


def _line(axes: Axes, curve: Curve, colour: str) -> None:
    medians = [each.median for each in curve.values]
    axes.plot(curve.counts, medians, marker="o", markersize=3, color=colour, label=curve.name)
    axes.fill_between(
        curve.counts,
        [each.low for each in curve.values],
        [each.high for each in curve.values],
        color=colour,
        alpha=0.15,
        linewidth=0,
    )

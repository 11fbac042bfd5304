"""Whether a series grows: Theil-Sen's slope over its second half, against a stated bound.

Theil-Sen takes the median of the slopes between all pairs of points, so that a garbage collection or a guest
in the cluster that happens to be there at a look does not make a trend (Sen, JASA 63, 1968).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MAX_POINTS = 600
"""Of more, evenly chosen ones: pairs are their square."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A series' growth over its second half, in its own unit, and how much it may be."""

    name: str
    unit: str
    start: float
    """The median of the second half's first tenth; `stop` of its last."""
    stop: float
    growth: float
    allowed: float
    points: int

    @property
    def flat(self) -> bool:
        """Whether it grows no more than it may. Shrinking is no fault."""
        return self.growth <= self.allowed


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Theil-Sen's slope, in units of `values` per unit of `times`; 0 for fewer than two moments."""
    step = -(-len(times) // _MAX_POINTS) or 1
    x, y = np.asarray(times[::step], float), np.asarray(values[::step], float)
    first, second = np.triu_indices(len(x), 1)
    apart = x[second] - x[first]
    kept = apart > 0
    if not kept.any():
        return 0.0
    return float(np.median((y[second] - y[first])[kept] / apart[kept]))


def trend(
    name: str,
    unit: str,
    times: Sequence[float],
    values: Sequence[float],
    *,
    allowed: float,
    allowed_ratio: float = 0.0,
) -> Trend:
    """The trend of a series.

    Args:
        name: of the series.
        unit: of its values.
        times: seconds, growing.
        values: as many as there are times, two or more.
        allowed: the growth that is none, in the unit of the values.
        allowed_ratio: the same as a share of the half's median; the larger of the two counts.
    """
    half = len(times) // 2
    x, y = times[half:], values[half:]
    tenth = max(1, len(y) // 10)
    return Trend(
        name=name,
        unit=unit,
        start=float(np.median(y[:tenth])),
        stop=float(np.median(y[-tenth:])),
        growth=slope(x, y) * (x[-1] - x[0]),
        allowed=max(allowed, allowed_ratio * float(np.median(y))),
        points=len(y),
    )

"""How long answers took, in the cumulative buckets that Prometheus takes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds, inclusive; what takes longer is in the last, which has none."""


class LatencyHistogram:
    """Of one model, since its orchestrator began to lead."""

    __slots__ = ("_counts", "sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, latencies_s: Iterable[float]) -> None:
        """Take these in."""
        for latency_s in latencies_s:
            self._counts[bisect_left(BOUNDS_S, latency_s)] += 1
            self.sum_s += latency_s

    def cumulative(self) -> list[tuple[float, int]]:
        """How many took at most so long, by bound; the last bound is infinite."""
        buckets, total = [], 0
        for bound, count in zip((*BOUNDS_S, float("inf")), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        return buckets

"""How much of a node's CPU neighbours leave it, from how long its stages took beside the CPU that they used.

A stage that uses 10 ms of CPU at a share of 0.5 takes 20 ms. One that takes 40 ms was kept from its share:
half of it is left. A node on which nothing runs any more would never be looked at again; so what its
neighbours took is forgotten when telemetry says that the machine around it is idle.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

WINDOWS = 9
"""The median of so many counts, so that bursts of a few seconds do not."""
TOLERANCE_RATIO = 1.05
"""A share is granted in periods of 100 ms: so much longer a stage may take by chance."""
LEAST_LEFT = 0.1
"""Of the CPU; what is kept from more than that has other troubles."""
UNSEEN_S = 60.0
IDLE_SAMPLES = 30
IDLE_RATIO = 0.2
"""A machine of which others use less than that, over so many samples, takes nothing from us."""


@dataclass(slots=True)
class Contention:
    """One node's. `left_ratio` is in (0, 1]: multiply the CPU that the node may use by it."""

    left_ratio: float = 1.0
    _longer: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOWS))
    _others: deque[float] = field(default_factory=lambda: deque(maxlen=IDLE_SAMPLES))
    _seen: float = float("-inf")

    def measured(self, now: float, cpu_s: float, wall_s: float, cpu_share: float) -> None:
        """A window of one stage: mean CPU and wall seconds per item; its thread's share is at most 1."""
        if cpu_s <= 0:
            return
        self._seen = now
        self._longer.append(wall_s * cpu_share / cpu_s)
        longer = statistics.median(self._longer) / TOLERANCE_RATIO
        self.left_ratio = max(min(1.0 / longer, 1.0), LEAST_LEFT) if longer > 0 else 1.0

    def heard(self, now: float, others_ratio: float | None) -> None:
        """Telemetry: the share of the machine's CPU time that others used."""
        if others_ratio is None:
            return
        self._others.append(others_ratio)
        idle = len(self._others) == IDLE_SAMPLES and max(self._others) < IDLE_RATIO
        if idle and now - self._seen > UNSEEN_S:
            self._longer.clear()
            self.left_ratio = 1.0

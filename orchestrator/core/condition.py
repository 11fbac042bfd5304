"""What telemetry says of a node over the last seconds: its link's bandwidth, and the memory left to us."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

from shared.messages.node import Telemetry

SAMPLES = 5
"""The median of so many counts: one strange sample says nothing."""
MEMORY_HOLD_S = 120.0
"""Memory counts as taken for so long after it was last seen taken: what comes and goes is not to be used."""
MEMORY_STEP_RATIO = 0.05
"""Less than this is no news."""


def _recent() -> deque[float]:
    return deque(maxlen=SAMPLES)


@dataclass(slots=True)
class Condition:
    """One node's; None until known. `take` each telemetry in order."""

    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None
    memory_bytes: int | None = None
    """What the agent may take in all, what it holds included: the least of the last `MEMORY_HOLD_S`."""
    _up: deque[float] = field(default_factory=_recent)
    _down: deque[float] = field(default_factory=_recent)
    _memory: deque[float] = field(default_factory=_recent)
    _least: deque[tuple[float, int]] = field(default_factory=deque)
    """(when, bytes), both growing: each may yet be the least of what is remembered."""
    _told_bytes: int | None = None

    def born(self, memory_limit_bytes: int) -> None:
        """What a birth says of the memory: planned with until telemetry says more."""
        if self.memory_bytes is None:
            self._told_bytes = memory_limit_bytes

    def take(self, now: float, telemetry: Telemetry) -> bool:
        """One sample; whether the memory has become noticeably less since that was last said."""
        if telemetry.up_bytes_per_s is not None:
            self._up.append(telemetry.up_bytes_per_s)
            self.up_bytes_per_s = statistics.median(self._up)
        if telemetry.down_bytes_per_s is not None:
            self._down.append(telemetry.down_bytes_per_s)
            self.down_bytes_per_s = statistics.median(self._down)
        if telemetry.memory_available_bytes is None:
            return False
        self._memory.append(telemetry.memory_available_bytes)
        return self._remember(now, int(statistics.median(self._memory)))

    def _remember(self, now: float, available_bytes: int) -> bool:
        while self._least and self._least[-1][1] >= available_bytes:
            self._least.pop()
        self._least.append((now, available_bytes))
        while now - self._least[0][0] > MEMORY_HOLD_S:
            self._least.popleft()
        self.memory_bytes = self._least[0][1]
        told = self._told_bytes
        if told is None or self.memory_bytes > told:
            self._told_bytes = self.memory_bytes
            return False
        if self.memory_bytes >= told * (1.0 - MEMORY_STEP_RATIO):
            return False
        self._told_bytes = self.memory_bytes
        return True

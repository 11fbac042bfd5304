"""How fast control messages are taken: a token bucket per kind and sender, so that no one starves the others.

A sender is the node or verb that the topic names. Names are free to invent, so a name that is new takes a
token of its kind's newcomers first: a flood of invented names is one flood, and leaves the known alone.
No clock: `now` is the caller's, in seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final


@dataclass(frozen=True, slots=True)
class Rate:
    """So many messages a second, and `burst` of them at once."""

    per_s: float
    burst: float


RATES: Final = {
    "node_state": Rate(5, 50),
    "telemetry": Rate(50, 200),
    "report": Rate(50, 500),
    "ping": Rate(10, 100),
    "request": Rate(50, 200),
    "artifact_want": Rate(2000, 4000),
    "artifact_piece": Rate(2000, 4000),
}
"""By row of the topic table; many times what an honest sender needs. Rows that are not here are read only
while they are retained, or come from ourselves."""
NEWCOMERS: Final = Rate(200, 4000)
"""Of names that were not heard of, per kind: a restart hears of the whole cluster at once."""
MOST_BUCKETS: Final = 32_768
_LINES: Final = Rate(1, 20)
"""Of those on `event` that say who sends too fast."""


class Admission(Enum):
    """What is to become of a message."""

    TAKEN = auto()
    DROPPED = auto()
    FIRST_DROPPED = auto()
    """And somebody should be told: the sender's first since it last kept its rate."""


@dataclass(slots=True)
class _Bucket:
    rate: Rate
    at: float
    tokens: float = field(init=False)
    told: bool = False

    def __post_init__(self) -> None:
        self.tokens = self.rate.burst

    def take(self, now: float) -> bool:
        self.tokens = min(self.rate.burst, self.tokens + (now - self.at) * self.rate.per_s)
        self.at = now
        if self.tokens >= self.rate.burst:
            self.told = False
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class RateLimits:
    """The buckets; those used least recently go when there are too many."""

    def __init__(self, most_buckets: int = MOST_BUCKETS) -> None:
        self._most = most_buckets
        self._buckets: OrderedDict[tuple[str, str], _Bucket] = OrderedDict()
        self._newcomers: dict[str, _Bucket] = {}
        self._lines: _Bucket | None = None

    def __len__(self) -> int:
        return len(self._buckets)

    def admit(self, now: float, kind: str, sender: str) -> Admission:
        """Whether a message of `kind` (a row of the topic table) by `sender` is taken at `now`."""
        rate = RATES.get(kind)
        if rate is None:
            return Admission.TAKEN
        key = (kind, sender)
        bucket = self._buckets.get(key)
        if bucket is None:
            newcomers = self._newcomers.setdefault(kind, _Bucket(NEWCOMERS, now))
            if not newcomers.take(now):
                return self._drop(now, newcomers)
            bucket = self._buckets[key] = _Bucket(rate, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return Admission.TAKEN if bucket.take(now) else self._drop(now, bucket)

    def _drop(self, now: float, bucket: _Bucket) -> Admission:
        if bucket.told:
            return Admission.DROPPED
        self._lines = self._lines or _Bucket(_LINES, now)
        if not self._lines.take(now):
            return Admission.DROPPED
        bucket.told = True
        return Admission.FIRST_DROPPED

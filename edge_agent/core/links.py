"""Bandwidth from timed transfers of a probe, robust to what is not the link's doing; and which value counts.

Whatever disturbs a transfer makes it longer: other traffic, a process that stands still below its CPU quota,
a broker that is busy. An estimate that is too low would move stages about, one that is too high does little.
So the best of a few transfers counts, our own standstill is taken off, and over time the median counts.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

from shared.link_rates import Rate

SIZES_BYTES = (16 * 1024, 64 * 1024, 256 * 1024)
"""Tried in this order, so that a slow link is not taken up for longer than it must be."""
LONG_ENOUGH_S = 0.02
"""A transfer of this length can be told from noise: no larger one is needed."""
RESOLUTION_S = 0.002
"""No transfer can be told from one of this length: the largest in it, 131 MB/s, is as fast as can be told."""
TELLING_S = 0.005
"""Of a smaller payload: what is shorter says nothing."""
REPEATS = 3
FRESH_S = 60.0
"""For so long what traffic has shown is true, whatever a probe says, and none is needed."""
REMEMBERED = 3
"""Rounds of which the median is the estimate."""
SURPRISE_RATIO = 0.25
"""A round that differs by more from the estimate asks for another one soon."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One timed transfer in one direction.

    Args:
        size_bytes: of the payload.
        elapsed_s: from sending it to knowing that it was there.
        round_trip_s: of an empty message.
        standstill_s: the longest time in which our own process did not get to run.
    """

    size_bytes: int
    elapsed_s: float
    round_trip_s: float
    standstill_s: float

    @property
    def link_s(self) -> float:
        """The part that is the link's, at least `RESOLUTION_S`."""
        return max(self.elapsed_s - self.round_trip_s - self.standstill_s, RESOLUTION_S)

    def bytes_per_s(self) -> float | None:
        """The rate; None where most of the time was ours, or a small payload was too fast to tell."""
        shortest_s = RESOLUTION_S if self.size_bytes == SIZES_BYTES[-1] else TELLING_S
        ours = self.standstill_s > self.link_s > RESOLUTION_S
        return None if ours or self.link_s < shortest_s else self.size_bytes / self.link_s


@dataclass(slots=True)
class Round:
    """One measurement of both directions: ever larger payloads, then the telling size a few times."""

    _step: int = 0
    _repeats: int = 0
    _up: list[float] = field(default_factory=list)
    _down: list[float] = field(default_factory=list)

    def next_bytes(self) -> int | None:
        """The size to send next, or None when the round is over."""
        return SIZES_BYTES[self._step] if self._repeats < REPEATS else None

    def take(self, up: Transfer, down: Transfer) -> None:
        """The transfer of that size there and back."""
        for transfer, rates in ((up, self._up), (down, self._down)):
            rate = transfer.bytes_per_s()
            if rate is not None:
                rates.append(rate)
        is_last = self._step + 1 == len(SIZES_BYTES)
        # One direction that is slow is enough: the payload would have to go through it again.
        if is_last or max(up.link_s, down.link_s) >= LONG_ENOUGH_S:
            self._repeats += 1
        else:
            self._up.clear()
            self._down.clear()
            self._step += 1

    def up(self) -> float | None:
        """Bytes/s to the broker; None where it could not be told."""
        return max(self._up, default=None)

    def down(self) -> float | None:
        """Bytes/s from the broker; None where it could not be told."""
        return max(self._down, default=None)


@dataclass(slots=True)
class Estimate:
    """One direction over time; None until known."""

    rate: Rate | None = None
    _rounds: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    @property
    def bytes_per_s(self) -> float | None:
        """The median of the last rounds."""
        return None if self.rate is None else self.rate.bytes_per_s

    def take(self, rate: float | None, now: float) -> bool:
        """A round's result; whether it was a surprise, which another round has to confirm."""
        if rate is None:
            return False
        known = self.bytes_per_s
        self._rounds.append(rate)
        self.rate = Rate(statistics.median_low(self._rounds), now)
        return known is not None and abs(rate - known) > SURPRISE_RATIO * known


def is_fresh(traffic: Rate | None, now: float) -> bool:
    """Whether traffic shows this direction, so that no probe is needed."""
    return traffic is not None and now - traffic.at_s <= FRESH_S


def counts(traffic: Rate | None, probed: Rate | None, now: float) -> float | None:
    """Bytes/s to plan with: what traffic shows while that is fresh, else what was measured last."""
    if traffic is None or probed is None:
        found = traffic or probed
    else:
        newer = is_fresh(traffic, now) or traffic.at_s >= probed.at_s
        found = traffic if newer else probed
    return None if found is None else found.bytes_per_s

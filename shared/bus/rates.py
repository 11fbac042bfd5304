"""A link's bandwidth from a connection's own traffic, both directions apart; pure.

What disturbs traffic makes it look slow: a process that stands still below its CPU quota, a broker that is
busy. An estimate that is too low would move stages about, one that is too high does little. So the better of
recent measurements counts, and of a second with small messages only nothing is said.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from shared.bus.tcp_info import Sent

FASTEST_BYTES_PER_S: Final = 131_072_000.0
"""As fast as can be told: 256 KB in 2 ms. A link that is faster reads like this."""
WORTH_TIMING_BYTES: Final = 32 << 10
"""Of a payload that is still to come when its beginning has been read: less is over too soon to be timed."""
_WORTH_COUNTING_BYTES: Final = 16 << 10
"""Per write: below it a second's writes say more of the round trip than of the bandwidth."""
_TELLING_S: Final = 0.15
"""Busy time to judge by. The kernel counts it in jiffies of up to 10 ms, without a bias."""
_GRAIN_S: Final = 0.02
"""So much more busy than was counted may the connection have been."""
_UP_KEPT: Final = 3
_DOWN_KEPT: Final = 8
_DOWN_LEAST: Final = 3


@dataclass(slots=True)
class UpMeter:
    """From what the kernel says once a second: bytes acknowledged over the time in which some were not.

    That time goes on while our thread computes and ends when the last byte is acknowledged, so nothing of it
    is ours. (The kernel's own delivery rate is that of a burst: behind a buffer of 16 KB a link of 10 MB/s
    read 7 to 30, one of 50 MB/s 25 to 264.) Each write waits for one round trip more than its bytes take.
    """

    _before: Sent | None = None
    _bytes: int = 0
    _busy_s: float = 0.0
    _trips_s: float = 0.0
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=_UP_KEPT))

    def connected(self) -> None:
        """The kernel counts from zero again; what was measured is not forgotten."""
        self._before = None
        self._bytes, self._busy_s, self._trips_s = 0, 0.0, 0.0

    def take(self, sent: Sent, writes: int) -> float | None:
        """What has been sent so far, in `writes` since the call before; the rate, if that is news."""
        before, self._before = self._before, sent
        if before is None:
            return None
        count = sent.acked_bytes - before.acked_bytes
        if not count or count < writes * _WORTH_COUNTING_BYTES:
            return None
        self._bytes += count
        self._busy_s += sent.busy_s - before.busy_s
        self._trips_s += writes * sent.min_round_trip_s
        if self._bytes >= FASTEST_BYTES_PER_S * (self._busy_s + _GRAIN_S):
            rate: float | None = FASTEST_BYTES_PER_S
        elif self._busy_s >= _TELLING_S:
            link_s = self._busy_s - self._trips_s
            # Mostly waiting: the bandwidth is not what this shows.
            told = link_s >= self._busy_s / 2
            rate = min(self._bytes / link_s, FASTEST_BYTES_PER_S) if told else None
        else:
            return None
        self._bytes, self._busy_s, self._trips_s = 0, 0.0, 0.0
        if rate is None:
            return None
        self._recent.append(rate)
        return max(self._recent)


@dataclass(slots=True)
class DownMeter:
    """From large payloads: what was not there yet when its beginning had been read, and how long it took.

    Only while the owner waits in between: `began` when the socket is empty, `away` when the owner was.
    """

    coming_bytes: int = 0
    """Of the payload that is being timed; 0 while none is."""
    _began_at: float = 0.0
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=_DOWN_KEPT))

    def away(self) -> None:
        """What is under way is not timed: some of it may have come unseen."""
        self.coming_bytes = 0

    def began(self, now: float, missing_bytes: int) -> None:
        """All that has come is read, and so much of a payload is missing."""
        self.coming_bytes, self._began_at = missing_bytes, now

    def arrived(self, now: float) -> float | None:
        """The payload is complete; the rate from a few on: the upper quartile of recent ones."""
        elapsed_s = max(now - self._began_at, self.coming_bytes / FASTEST_BYTES_PER_S)
        self._recent.append(self.coming_bytes / elapsed_s)
        self.coming_bytes = 0
        if len(self._recent) < _DOWN_LEAST:
            return None
        return sorted(self._recent, reverse=True)[len(self._recent) // 4]

"""What one time of leading goes by: its title, its numbers, and whether it still holds.

The lease is read in two threads: by the loop before it publishes, by the dispatcher before it takes or
answers a job, and by both connections before they dial. A process that was frozen finds it run out by its
own clock, and stands still until a word of its own has come back, by which time it has read what others said
meanwhile.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.core.leadership import LEASE_S, Title

CONFIRM_S = 0.15
"""A connection with a fixed name that was lost is made again when a word of ours came back that was sent so
long after the loss: a standby that took the loss for our end has claimed by then, and is heard of."""
HANG_S = 10.0
"""An event loop that did not turn for so long is taken for hung; planning may hold it for seconds."""


class Lease:
    """Implements `shared.bus.fence.Fence`; may be read and called from any thread.

    Args:
        thrown_out: called, once, when another client connected under one of our fixed names.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, thrown_out: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._thrown_out = thrown_out
        self._clock = clock
        self._confirmed_at = -math.inf
        self._turned_at = clock()
        self._over = False

    @classmethod
    def endless(cls) -> Lease:
        """Of an orchestrator that shares its broker with no other."""
        lease = cls(lambda: None)
        lease.confirm(math.inf)
        return lease

    # --- the watch

    def confirm(self, sent_at: float) -> None:
        """The latest of our words that came back was sent then."""
        self._confirmed_at = sent_at

    def end(self) -> None:
        """It holds no more, whatever is confirmed later."""
        self._over = True

    @property
    def able(self) -> bool:
        """Whether what we lead with still turns."""
        return self._clock() - self._turned_at < HANG_S

    # --- what leads

    def turned(self) -> None:
        """The event loop goes round."""
        self._turned_at = self._clock()

    def held(self) -> bool:
        """Whether we lead, as far as anybody can know."""
        return not self._over and self._clock() < self._confirmed_at + LEASE_S

    # --- its connections

    def may_connect(self, lost_at: float | None) -> bool:
        """See `Fence`."""
        return self.held() and (lost_at is None or self._confirmed_at >= lost_at + CONFIRM_S)

    def taken_over(self) -> None:
        """See `Fence`."""
        if not self._over:
            self._over = True
            self._thrown_out()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenure:
    """One time of leading.

    `incarnation` grows over all of this process's; `before` is the greatest term of a leader so far, 0 where
    the broker knows of none; `beat` the count that it had retained.
    """

    title: Title
    incarnation: int
    before: int
    beat: int
    lease: Lease

    @classmethod
    def alone(cls, incarnation: int) -> Tenure:
        """Of an orchestrator that shares its broker with no other."""
        return cls(
            title=Title(0, ""),
            incarnation=incarnation,
            before=0,
            beat=sys.maxsize,  # as if the broker had lost nothing: nobody counts
            lease=Lease.endless(),
        )

"""A node that comes and goes is left out of plans for a growing time: each short visit costs two re-plans.

After `MANY` short visits within `WINDOW_S` a node is left out for `FIRST_S`; each further one doubles that,
up to `LONGEST_S`. A visit is short below `SHORT_S`, or when it ended while the node loaded what it was given
(the kernel kills who takes too much memory). It counts from when the node may be used, so one that crashes
each time is left out longer and longer. One that stays for `LONGEST_S` is as any other again. So a node that
flaps for ever is used a few times at first, and once in `LONGEST_S` then.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

MANY = 3
SHORT_S = 5.0
WINDOW_S = 60.0
FIRST_S = 10.0
LONGEST_S = 300.0
_MOST_DOUBLINGS = 10


@dataclass(slots=True)
class Visits:
    """One node's, over all its lives. No clock: `now` is the caller's, in seconds."""

    left_out_until: float = -math.inf
    _since: float = -math.inf
    _short: deque[float] = field(default_factory=lambda: deque(maxlen=MANY))
    _times: int = 0
    """It was left out, since it last stayed."""

    def joined(self, now: float) -> None:
        """It can be planned for."""
        self._since = now

    def left(self, now: float, *, loading: bool = False) -> float | None:
        """It is gone: for how many seconds it is left out from now on, None when it is not.

        `loading`: whether it was loading a stage.
        """
        stayed_s = now - max(self._since, self.left_out_until)
        if stayed_s >= LONGEST_S:
            self._times = 0
        if stayed_s < 0.0 or (stayed_s >= SHORT_S and not loading):
            return None
        self._short.append(now)
        if not self._times and (len(self._short) < MANY or now - self._short[0] > WINDOW_S):
            return None
        left_out_s = min(FIRST_S * 2.0 ** min(self._times, _MOST_DOUBLINGS), LONGEST_S)
        self._times += 1
        self.left_out_until = now + left_out_s
        return left_out_s

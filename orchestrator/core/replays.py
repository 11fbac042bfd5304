"""Which signed requests are new: each holds for a few minutes, and once.

Who asks again, after a reconnection say, signs again: the same transaction with a later time is no replay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

WINDOW_MS = 5 * 60 * 1000
"""How far apart the clocks of operator and orchestrator may be, and how long a request may be under way."""


class Freshness(Enum):
    """What a request is."""

    NEW = auto()
    REPEATED = auto()
    """It was here already: a broker delivers twice, or somebody who listened sends it again."""
    STALE = auto()
    """It was signed too long ago, by a clock far from ours, or at no time."""


@dataclass(slots=True)
class Replays:
    """What was seen, as far back as a request holds. Times are wall times in ms since 1970."""

    seen: dict[tuple[str, str], int] = field(default_factory=dict)
    """(signer, transaction) -> when the latest request of it was signed."""

    def judge(self, now_ms: int, signer: str, transaction: str, at_ms: int | None) -> Freshness:
        """Whether a request is new; from then on it is not."""
        self.seen = {key: at for key, at in self.seen.items() if now_ms - at <= WINDOW_MS}
        if at_ms is None or abs(now_ms - at_ms) > WINDOW_MS:
            return Freshness.STALE
        key = signer, transaction
        if at_ms <= self.seen.get(key, at_ms - 1):
            return Freshness.REPEATED
        self.seen[key] = at_ms
        return Freshness.NEW

"""How long to wait before the next attempt to connect."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(slots=True)
class Backoff:
    """Exponential back-off with jitter: a restarted broker is not met by a whole fleet at once.

    The n-th delay is drawn from the upper half of `first_s * 2**n`, at most `limit_s`. It is reset
    by the caller, and only after a connection that lasted `STABLE_S`: two clients that share a name
    by mistake throw each other out at once, and must not do that at full speed.
    """

    STABLE_S: ClassVar[float] = 5.0

    first_s: float = 0.1
    limit_s: float = 1.5
    """A broker that is back is met within that, however long it was away: issue 4 allows 2 s in all."""
    source: random.Random = field(default_factory=random.Random, repr=False)
    attempts: int = 0

    def next(self) -> float:
        """Seconds to wait now; each call counts as an attempt."""
        # The exponent is bounded, so that a week without a broker does not overflow a float.
        ceiling = min(self.limit_s, self.first_s * 2.0 ** min(self.attempts, 32))
        self.attempts += 1
        return ceiling * self.source.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin again with the shortest delay."""
        self.attempts = 0

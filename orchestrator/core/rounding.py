"""Whether what is rounded between stages still changes answers by no more than was allowed.

What one photograph showed when the model was profiled says little of other inputs. So while jobs flow, one in
a while is run again with nothing rounded, and the two outputs are compared.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

SAMPLE_S = 5.0
"""Between two samples of a model, at least: one job more in five seconds."""
KEPT = 20
"""Samples that count; older ones are of inputs that may not come again."""
LEAST = 3
"""Samples above what is allowed before rounding is given up: one may be an input like no other."""


@dataclass(frozen=True, slots=True)
class RoundingError:
    """What rounding did to the latest samples.

    `error_ratio` is the median of the largest difference relative to the largest output, `agreement_ratio`
    the share of samples whose largest output was the same one.
    """

    error_ratio: float
    agreement_ratio: float
    samples: int


@dataclass(slots=True)
class RoundingWatch:
    """Of one generation of a model, that may be off by `max_error`."""

    max_error: float
    _errors: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    _agreed: deque[bool] = field(default_factory=lambda: deque(maxlen=KEPT))
    _sampled_at: float = -math.inf

    def due(self, now: float) -> bool:
        """Whether it is time for a sample; then the time for the next begins."""
        if now - self._sampled_at < SAMPLE_S:
            return False
        self._sampled_at = now
        return True

    def take(self, error_ratio: float, *, agrees: bool) -> None:
        """A sample was compared."""
        self._errors.append(error_ratio)
        self._agreed.append(agrees)

    @property
    def error(self) -> RoundingError | None:
        """None before the first sample."""
        if not self._errors:
            return None
        return RoundingError(
            statistics.median(self._errors),
            sum(self._agreed) / len(self._agreed),
            len(self._errors),
        )

    @property
    def hurts(self) -> bool:
        """Whether rounding is to be given up: half of the samples or more are off by more than is allowed."""
        beyond = sum(error > self.max_error for error in self._errors)
        return beyond >= LEAST and 2 * beyond >= len(self._errors)

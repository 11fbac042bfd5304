"""The latest ten minutes of metrics, so that a browser's charts begin with a past."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from shared.messages.operation import Metrics

MOST_POINTS = 600
"""One a second."""
_MOST_MODELS = 200


@dataclass(frozen=True, slots=True)
class Point:
    """One model over one second."""

    answered_per_s: float
    p50_s: float | None
    p95_s: float | None


@dataclass(frozen=True, slots=True)
class Moment:
    """All models over the second before `at_ms`, wall time of this process."""

    at_ms: int
    models: dict[str, Point]


@dataclass(slots=True)
class History:
    """Keeps `MOST_POINTS` moments."""

    moments: deque[Moment] = field(default_factory=lambda: deque(maxlen=MOST_POINTS))

    def take(self, metrics: Metrics, at_ms: int) -> None:
        """One second more."""
        models = {
            name: Point(one.answered_per_s, one.latency_p50_s, one.latency_p95_s)
            for name, one in sorted(metrics.models.items())[:_MOST_MODELS]
        }
        self.moments.append(Moment(at_ms, models))

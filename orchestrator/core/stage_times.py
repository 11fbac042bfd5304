"""What the stages of a generation took, and how far from it the predictions were.

The dispatcher sums up what happened in a second; a window here is as many such sums as have a few items
together. A stage's figures are medians over its last windows, so that one strange window changes nothing.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from shared.messages.model import PredictionError

WINDOW_ITEMS = 5
"""A mean over fewer items says more about chance than about the node."""
_WINDOWS = 5


@dataclass(frozen=True, slots=True)
class Window:
    """Mean seconds per item of `items` items: CPU of the stage's thread, and what passed."""

    items: int
    cpu_s: float
    wall_s: float


@dataclass(slots=True)
class StageTimes:
    """One stage. All seconds but `cpu_s` are wall seconds that an item costs the node, at its CPU share.

    `first_sight_s` is predicted by the calibration alone, `expected_s` with what earlier windows taught; both
    as of the last window.
    """

    items: int = 0
    first_sight_s: float | None = None
    expected_s: float | None = None
    _gathering: Window | None = None
    _cpu_s: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOWS))
    _measured_s: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOWS))
    _errors: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOWS))

    def gather(self, items: int, cpu_s: float, wall_s: float) -> Window | None:
        """A window, once there are items enough for one; the arguments are means over `items`.

        What cannot be a time (zero, infinite, not a number) is left out.
        """
        if items < 1 or not all(0.0 < seconds < math.inf for seconds in (cpu_s, wall_s)):
            return None
        so_far = self._gathering or Window(0, 0.0, 0.0)
        total = so_far.items + items
        share = items / total
        self._gathering = Window(
            total,
            so_far.cpu_s + share * (cpu_s - so_far.cpu_s),
            so_far.wall_s + share * (wall_s - so_far.wall_s),
        )
        if total < WINDOW_ITEMS:
            return None
        full, self._gathering = self._gathering, None
        return full

    def add(
        self, window: Window, cpu_share: float, first_sight_s: float, expected_s: float
    ) -> None:
        """Compare a window with what was predicted: at first sight, and just before it was measured.

        An item costs the node its CPU seconds at the share it may use (`cpu_share`, at most 1: a stage's
        thread), or what passed, where others kept the node from its share.
        """
        measured_s = max(window.cpu_s / cpu_share, window.wall_s)
        self.items += window.items
        self.first_sight_s, self.expected_s = first_sight_s, expected_s
        self._cpu_s.append(window.cpu_s)
        self._measured_s.append(measured_s)
        self._errors.append(abs(expected_s - measured_s) / measured_s)

    @property
    def cpu_s(self) -> float | None:
        """CPU seconds of an item; None before the first window."""
        return statistics.median(self._cpu_s) if self._cpu_s else None

    @property
    def measured_s(self) -> float | None:
        """None before the first window."""
        return statistics.median(self._measured_s) if self._measured_s else None

    @property
    def first_sight_error(self) -> float | None:
        """How far the calibration alone is off, as a ratio of what was measured."""
        measured_s = self.measured_s
        if measured_s is None or self.first_sight_s is None:
            return None
        return abs(self.first_sight_s - measured_s) / measured_s

    @property
    def error(self) -> float | None:
        """How far the last windows were from what was predicted just before each."""
        return statistics.fmean(self._errors) if self._errors else None


def prediction_error(stages: Iterable[StageTimes]) -> PredictionError | None:
    """The mean absolute errors over the stages that were measured; None where none was."""
    known = [
        (stage.items, first, now)
        for stage in stages
        if (first := stage.first_sight_error) is not None and (now := stage.error) is not None
    ]
    if not known:
        return None
    return PredictionError(
        first_sight_ratio=round(statistics.fmean(first for _, first, _ in known), 4),
        now_ratio=round(statistics.fmean(now for _, _, now in known), 4),
        stages=len(known),
        items=min(items for items, _, _ in known),
    )

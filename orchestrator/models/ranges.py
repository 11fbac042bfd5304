"""Which values an activation takes, seen on sample inputs, and the range that its eight bits shall cover.

All samples go by twice: first for the ends of each value's range, then for a histogram between them. What the
ends cover nothing leaves; a narrower range cuts off the rare large values and has finer steps for all others.
Which serves a model better is not known beforehand: the methods here are tried and compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from shared.errors import ModelError
from shared.tensor import Array

_BINS = 2048
_TAIL = 1e-5
"""What `percentile` leaves out at either end, of all values seen."""
_SHRINKS = np.linspace(1.0, 0.2, 41)
"""The parts of the whole range that `least_error` tries."""
_LEAST_SPAN, _MOST = 1e-25, 1e30
"""Less is 0 for all that anybody can tell; more leaves float32 on the way to a histogram."""
LEVELS = 255
"""Steps between the smallest and the largest of eight bits."""

Range = tuple[float, float]
"""From, to; 0 is in it, so that it is exact (padding, ReLU)."""


class Method(StrEnum):
    """How a range follows from what was seen."""

    MIN_MAX = "min-max"
    PERCENTILE = "percentile"
    LEAST_ERROR = "least-error"


@dataclass(slots=True)
class _Seen:
    low: float = 0.0
    high: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    @property
    def empty(self) -> bool:
        """Whether all that was seen is 0."""
        return self.high - self.low < _LEAST_SPAN


class Observer:
    """Watches named values over samples: `ends` for every sample, then `fill` for every sample again."""

    def __init__(self, names: Iterable[str]) -> None:
        self._seen = {name: _Seen() for name in names}

    def ends(self, values: Mapping[str, Array]) -> None:
        """Widen the ranges by one sample's values.

        Raises:
            ModelError: one of them is NaN, infinite or absurdly large.
        """
        for name, seen in self._seen.items():
            low, high = float(values[name].min()), float(values[name].max())
            if not (low >= -_MOST and high <= _MOST):
                raise ModelError(
                    f"calibration: value {name!r} on one of the samples",
                    expected=f"finite numbers, up to {_MOST:g}",
                    got=f"{low:g} to {high:g}",
                )
            seen.low, seen.high = min(seen.low, low), max(seen.high, high)

    def fill(self, values: Mapping[str, Array]) -> None:
        """Count one sample's values; all samples' ends are known."""
        for name, seen in self._seen.items():
            if not seen.empty:
                scale = _BINS / (seen.high - seen.low)
                bins = ((values[name].ravel() - np.float32(seen.low)) * np.float32(scale)).astype(
                    np.int32
                )
                seen.counts += np.bincount(np.clip(bins, 0, _BINS - 1), minlength=_BINS)

    def ranges(self, method: Method) -> dict[str, Range]:
        """The range of every value; never empty."""
        return {name: _range(seen, method) for name, seen in self._seen.items()}


def _range(seen: _Seen, method: Method) -> Range:
    if seen.empty:  # any range will do
        return (0.0, 1.0)
    match method:
        case Method.MIN_MAX:
            return (seen.low, seen.high)
        case Method.PERCENTILE:
            return _percentile(seen)
        case Method.LEAST_ERROR:
            return _least_error(seen)


def _percentile(seen: _Seen) -> Range:
    share = np.cumsum(seen.counts) / max(int(seen.counts.sum()), 1)
    edges = np.linspace(seen.low, seen.high, _BINS + 1)
    first = int(np.searchsorted(share, _TAIL, side="right"))
    last = int(np.searchsorted(share, 1.0 - _TAIL))
    return (min(float(edges[first]), 0.0), max(float(edges[last + 1]), 0.0))


def _least_error(seen: _Seen) -> Range:
    """The part of the whole range with the least mean square error: of rounding, and of what is cut off."""
    edges = np.linspace(seen.low, seen.high, _BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    lows, highs = seen.low * _SHRINKS[:, None], seen.high * _SHRINKS[:, None]
    cut = np.clip(centres, lows, highs) - centres
    # A value between two steps is off by a uniform error: step^2 / 12.
    rounding = ((highs - lows) / LEVELS) ** 2 / 12
    errors = ((cut**2 + rounding) * seen.counts).sum(axis=1)
    best = float(_SHRINKS[int(np.argmin(errors))])
    return (seen.low * best, seen.high * best)

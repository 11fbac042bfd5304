"""A sample in six numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shared.errors import ConfigurationError

PERCENTILES_FROM = 20
"""With fewer values than this a 5th or 95th percentile is an extreme by another name."""


@dataclass(frozen=True, slots=True)
class Summary:
    """`low` and `high` are what `spread` says; all in the unit of the values."""

    n: int
    mean: float
    median: float
    low: float
    high: float
    largest: float
    spread: Literal["p5..p95", "min..max"]


def summarise(values: Sequence[float]) -> Summary:
    """The median of `values` with their spread.

    Raises:
        ConfigurationError: there are none: nothing was measured.
    """
    if not values:
        raise ConfigurationError("nothing was measured", expected="at least one value", got="none")
    few = len(values) < PERCENTILES_FROM
    low, high = (0.0, 100.0) if few else (5.0, 95.0)
    return Summary(
        n=len(values),
        mean=float(np.mean(values)),
        median=float(np.median(values)),
        low=float(np.percentile(values, low)),
        high=float(np.percentile(values, high)),
        largest=float(max(values)),
        spread="min..max" if few else "p5..p95",
    )

"""What the fates of items say: throughput, latency, what was lost, and when answers came back after a kill.

Pure: times are seconds of one clock, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Item:
    """One item: when it was sent, when that ended and how: `ok`, `wrong`, `lost` or `error: why`."""

    sent_at: float
    ended_at: float
    fate: str

    @property
    def ok(self) -> bool:
        """Whether it was answered right."""
        return self.fate == "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many items came to which end; `refused` with an error, `lost` without any answer."""

    sent: int
    answered: int
    wrong: int
    refused: int
    lost: int


def count(items: Sequence[Item]) -> Counts:
    """The items by their end."""
    return Counts(
        sent=len(items),
        answered=sum(item.ok for item in items),
        wrong=sum(item.fate == "wrong" for item in items),
        refused=sum(item.fate.startswith("error") for item in items),
        lost=sum(item.fate == "lost" for item in items),
    )


@dataclass(frozen=True, slots=True)
class Steady:
    """Answers per second, and their latency in milliseconds; None where nothing was answered."""

    per_s: float
    p50_ms: float | None
    p95_ms: float | None


def steady(items: Sequence[Item], begin: float, end: float) -> Steady:
    """Of what was answered right in [begin, end)."""
    took = [
        (item.ended_at - item.sent_at) * 1e3
        for item in items
        if item.ok and begin <= item.ended_at < end
    ]
    if not took:
        return Steady(0.0, None, None)
    return Steady(
        len(took) / (end - begin), float(np.percentile(took, 50)), float(np.percentile(took, 95))
    )


def recovery_s(items: Sequence[Item], killed_at: float) -> float | None:
    """From the kill to the first right answer to an item that was sent after it; None without one.

    What the stages behind the killed one still had in hand is answered too, and says nothing of recovery.
    """
    after = [item.ended_at for item in items if item.ok and item.sent_at > killed_at]
    return min(after) - killed_at if after else None


def silence_s(items: Sequence[Item], killed_at: float) -> float | None:
    """The longest time without a right answer from the kill on; None where none came any more."""
    ends = sorted(item.ended_at for item in items if item.ok and item.ended_at > killed_at)
    if recovery_s(items, killed_at) is None:
        return None
    return max(later - earlier for earlier, later in zip([killed_at, *ends], ends, strict=False))

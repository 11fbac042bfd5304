"""A link's bandwidth as a value: what was measured, and when."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes/s, and when that was last measured (monotonic seconds)."""

    bytes_per_s: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Rates:
    """To the broker and from it; None until shown."""

    up: Rate | None = None
    down: Rate | None = None

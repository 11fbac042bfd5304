"""What an item costs when it is computed together with others, measured while it is done.

How time goes with the number of items differs by device, runtime and layers, and not in order: on one core
small transformers took 0.4 of the time per item in eights, MobileNetV2 1.1, and one with wider layers 1.7 in
twos and 0.9 in eights. So every size that may be used is tried on items that have to be computed anyway, and
none is judged by another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SIZES = (1, 2, 4, 8, 16, 32)
"""Items at once that are tried."""
ALWAYS_TRIED = 8
"""Larger sizes are tried only where this one is worth it against half of it."""
WORTH_RATIO = 0.97
TRY_AGAIN_EVERY = 64
"""One choice of so many tries the size that was not tried for longest: devices change."""
_GAIN = 0.25
"""Weight of the newest sample."""


@dataclass(slots=True)
class _Cost:
    tries: int = 0
    tried_at: int = 0
    samples: int = 0
    seconds: float | None = None


@dataclass(slots=True)
class BatchCosts:
    """Costs by size, and which size to try. `first_left_out` samples of a size only warm things up."""

    first_left_out: int = 1
    first_kept: int = 2
    _costs: dict[int, _Cost] = field(default_factory=dict)
    _choices: int = 0

    def to_try(self, sizes: Sequence[int]) -> int | None:
        """Which of `sizes` (of `SIZES`, ascending) has to be tried now; None: go by what is known.

        To be asked once for each choice; who is told a size has to use it.
        """
        self._choices += 1
        for size in sizes:
            known = self._costs.get(size)
            tries = 0 if known is None else known.tries
            if tries < self.first_left_out + self.first_kept and self._promises(size):
                return self._tried(size)
        if self._choices % TRY_AGAIN_EVERY == 0:
            promising = [size for size in sizes if self._promises(size)]
            if promising:
                return self._tried(min(promising, key=self._tried_at))
        return None

    def measured(self, size: int, seconds: float) -> None:
        """An item took that long, computed with `size - 1` others. Sizes off the list are left out."""
        if size not in SIZES:
            return
        cost = self._costs.setdefault(size, _Cost())
        cost.samples += 1
        if cost.samples <= self.first_left_out:
            return
        if cost.seconds is None:
            cost.seconds = seconds
        else:
            cost.seconds += _GAIN * (seconds - cost.seconds)

    def seconds(self, size: int) -> float | None:
        """Of an item at that size; None before it was measured."""
        known = self._costs.get(size)
        return None if known is None else known.seconds

    def best(self, sizes: Sequence[int]) -> int:
        """The one of `sizes` with the least seconds per item, as far as known; the smallest of equals."""
        known = [(cost, size) for size in sizes if (cost := self.seconds(size)) is not None]
        return min(known)[1] if known else sizes[0]

    def _tried(self, size: int) -> int:
        cost = self._costs.setdefault(size, _Cost())
        cost.tries += 1
        cost.tried_at = self._choices
        return size

    def _tried_at(self, size: int) -> int:
        known = self._costs.get(size)
        return 0 if known is None else known.tried_at

    def _promises(self, size: int) -> bool:
        if size <= ALWAYS_TRIED:
            return True
        half, quarter = self.seconds(size // 2), self.seconds(size // 4)
        return half is not None and quarter is not None and half <= WORTH_RATIO * quarter


def sizes_up_to(most: int) -> tuple[int, ...]:
    """Those of `SIZES` that are no more than `most`, which is at least 1."""
    return tuple(size for size in SIZES if size <= most)

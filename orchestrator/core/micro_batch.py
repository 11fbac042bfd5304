"""How many items of a batch request travel in one message, and why.

Items in one message cost fewer messages and may cost less to compute, but a stage passes on nothing before
all of them are done, so that the next one waits for its first work. With `s_i(m)` seconds per item at stage i
of micro-batches of m, a batch of n items takes

    m * sum_i s_i(m)  +  (ceil(n / m) - 1) * m * max_i s_i(m)

to fill the pipeline and to run through its slowest stage (Huang et al., "GPipe", 2019, section 2.3, with
stages of unlike speed). The size with the least is taken. `s_i(m)` is the plan's `s_i` at one item, times
how stage i's CPU seconds per item change with m, as the stages themselves measured it: CPU seconds, since
what passes depends on quotas and neighbours of that moment.

An operator may name the size (`wanted`). Nothing exceeds `most`, which the plan allows; see `limits_for`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.batch_costs import WORTH_RATIO, BatchCosts, sizes_up_to

MAX_MICRO_BATCH = 32
MOST_BYTES = 8 << 20
"""In one message: a larger one would hold others up for long on a thin link."""
_LEAST_S, _MOST_S = 1e-6, 1e3
"""Of an item at a stage; what is beyond is taken for that."""
_WARMING_UP = 3
"""Messages of a size that are left out: each stage first finds out itself how to compute so many items."""


@dataclass(frozen=True, slots=True)
class MicroBatchLimits:
    """What a plan allows: up to `most` items in a message, for `reason`; exactly `wanted`, where it is given.

    `stage_s` are the plan's compute seconds of an item alone, by stage.
    """

    most: int = 1
    reason: str = ""
    wanted: int | None = None
    stage_s: tuple[float, ...] = ()


ALONE = MicroBatchLimits()


@dataclass(frozen=True, slots=True)
class MicroBatchLoad:
    """Where a pipeline stands: `size` items travel in each message of a long batch, for `reason`.

    `item_s` are the slowest stage's seconds per item by size, as far as measured.
    """

    size: int
    most: int
    reason: str
    item_s: dict[int, float]


@dataclass(slots=True)
class MicroBatch:
    """The choice for one pipeline, and what it learns."""

    limits: MicroBatchLimits
    _stages: list[BatchCosts] = field(init=False)
    _whole: BatchCosts = field(default_factory=lambda: BatchCosts(first_left_out=_WARMING_UP))
    """All stages' CPU seconds together: what promises more than it costs is tried."""

    def __post_init__(self) -> None:
        self._stages = [BatchCosts(first_left_out=_WARMING_UP) for _ in self.limits.stage_s]

    def choose(self, available: int, waiting: int) -> int:
        """Items for the next message, of `available` that may go together, while `waiting` are to be sent."""
        limits = self.limits
        most = min(available, limits.most)
        if limits.wanted is not None:
            return min(most, limits.wanted)
        sizes = sizes_up_to(most)
        if limits.most == 1 or not self._stages:
            return 1
        return self._whole.to_try(sizes) or self._best(sizes, waiting)

    def measured(self, size: int, stage_cpu_s: Sequence[float]) -> None:
        """A message of `size` items came through; CPU seconds of each stage for all of them."""
        if len(stage_cpu_s) != len(self._stages):
            return
        # A stage may say anything; ratios of these stay numbers to reckon with.
        items_s = [min(max(cpu_s / size, _LEAST_S), _MOST_S) for cpu_s in stage_cpu_s]
        self._whole.measured(size, sum(items_s))
        for costs, item_s in zip(self._stages, items_s, strict=True):
            costs.measured(size, item_s)

    def span_s(self, size: int, alone_s: float) -> float:
        """A message's way through all stages, of `alone_s` with one item: in proportion until measured."""
        items, alone = self.item_s(size), self.item_s(1)
        if not items or not alone:
            return size * alone_s
        return alone_s * size * sum(items) / sum(alone)

    def item_s(self, size: int) -> list[float] | None:
        """`s_i(size)` by stage; None before every stage was measured at that size and at 1."""
        found = []
        for planned_s, costs in zip(self.limits.stage_s, self._stages, strict=True):
            alone = costs.seconds(1)
            together = costs.seconds(size) if size in sizes_up_to(self.limits.most) else None
            if not alone or together is None:
                return None
            # However a plan came by its seconds: no stage is done before its CPU is.
            found.append(max(planned_s, alone) * together / alone)
        return found or None

    def load(self) -> MicroBatchLoad:
        """For whoever watches."""
        limits = self.limits
        sizes = sizes_up_to(limits.most)
        measured: dict[int, float] = {}
        if self._whole.seconds(1) is not None:
            measured = {size: max(items) for size in sizes if (items := self.item_s(size))}
        if limits.wanted is not None:
            size, reason = min(limits.wanted, limits.most), limits.reason
        else:
            size = self._best(sizes, 64 * MAX_MICRO_BATCH)
            reason = limits.reason if len(measured) > 1 else "nothing measured yet"
            if limits.most == 1:
                reason = limits.reason
            elif size in measured and len(measured) > 1:
                reason = _compared(size, measured)
        return MicroBatchLoad(size, limits.most, reason, measured)

    def _best(self, sizes: Sequence[int], waiting: int) -> int:
        """The size that has `waiting` items done first; a larger one has to be worth it."""
        best, least_s = 1, math.inf
        for size in sizes:
            items = self.item_s(size)
            if items is None:
                continue
            messages = math.ceil(waiting / size)
            done_s = size * (sum(items) + (messages - 1) * max(items))
            if done_s < least_s * WORTH_RATIO:
                best, least_s = size, done_s
        return best


def _compared(size: int, measured: dict[int, float]) -> str:
    """Why that size, in words."""
    others = ", ".join(
        f"{other}: {seconds * 1000:.3g} ms" for other, seconds in measured.items() if other != size
    )
    return f"an item takes {measured[size] * 1000:.3g} ms at the slowest stage ({others})"

"""How many items travel together: the choice against what trying all of them would find."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.micro_batch import MicroBatch, MicroBatchLimits
from shared.batch_costs import (
    SIZES,
    TRY_AGAIN_EVERY,
    WORTH_RATIO,
    BatchCosts,
    sizes_up_to,
)

Costs = Callable[[int], tuple[float, ...]]
"""CPU seconds per item of each stage, by size."""


def learn(choice: MicroBatch, costs: Costs, messages: int = 200) -> None:
    """Long batches, one message after the other."""
    for _ in range(messages):
        size = choice.choose(64, 640)
        choice.measured(size, [size * seconds for seconds in costs(size)])


def limits(*stage_s: float, most: int = 8, wanted: int | None = None) -> MicroBatchLimits:
    return MicroBatchLimits(most, "because", wanted, stage_s)


def done_s(costs: Costs, planned: tuple[float, ...], size: int, items: int) -> float:
    """The pipeline run message by message: when the last one leaves the last stage."""
    alone = costs(1)
    per_item = [max(p, a) * c / a for p, c, a in zip(planned, costs(size), alone, strict=True)]
    free = [0.0] * len(planned)
    ready = 0.0
    for _ in range(math.ceil(items / size)):
        ready = 0.0
        for stage, seconds in enumerate(per_item):
            ready = free[stage] = max(ready, free[stage]) + size * seconds
    return ready


CURVES = st.lists(st.tuples(*[st.floats(0.2, 3.0) for _ in range(4)]), min_size=1, max_size=4)


@given(
    curves=CURVES, planned=st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4), data=st.data()
)
def test_what_is_chosen_has_the_batch_done_as_early_as_any_size(
    curves: list[tuple[float, ...]], planned: list[float], data: st.DataObject
) -> None:
    def costs(size: int) -> tuple[float, ...]:
        return tuple(curve[SIZES.index(size)] for curve in curves)

    stage_s = tuple(planned[: len(curves)])
    choice = MicroBatch(limits(*stage_s))
    learn(choice, costs)
    items = data.draw(st.integers(1, 100))
    sizes = sizes_up_to(min(8, items))
    size = choice._best(sizes, items)
    best = min(done_s(costs, stage_s, each, items) for each in sizes)
    assert done_s(costs, stage_s, size, items) * WORTH_RATIO <= best * (1 + 1e-9)


def test_every_size_that_is_always_tried_is_tried_and_larger_ones_where_it_pays() -> None:
    flat = MicroBatch(limits(0.1, 0.1, most=32))
    tried: set[int] = set()
    for _ in range(TRY_AGAIN_EVERY * 8):
        size = flat.choose(64, 640)
        tried.add(size)
        flat.measured(size, [size * 0.1, size * 0.1])
    assert tried == {1, 2, 4, 8}
    assert flat.load().size == 1
    falling = MicroBatch(limits(0.1, 0.1, most=32))
    learn(falling, lambda size: (0.1 / size, 0.1 / size), 100)
    assert falling.load().size == 32
    assert falling.load().item_s[32] == pytest.approx(0.1 / 32)


def test_messages_that_only_warm_a_stage_up_do_not_count() -> None:
    choice = MicroBatch(limits(0.1))
    first: dict[int, int] = {}
    for _ in range(60):
        size = choice.choose(64, 640)
        first[size] = first.get(size, 0) + 1
        slow = first[size] <= 3
        choice.measured(size, [size * (9.0 if slow else 0.1 / size)])
    assert choice.load().size == 8


def test_a_device_that_changes_is_noticed() -> None:
    choice = MicroBatch(limits(0.1))
    learn(choice, lambda size: (0.1 / size,))
    assert choice.load().size == 8
    learn(choice, lambda size: (0.1 * size,), 40 * TRY_AGAIN_EVERY)
    assert choice.load().size == 1


def test_no_more_than_allowed_available_or_asked_for() -> None:
    alone = MicroBatch(limits(0.1, most=1))
    assert [alone.choose(64, 64) for _ in range(20)] == [1] * 20
    assert alone.load().reason == "because"
    asked = MicroBatch(limits(0.1, most=8, wanted=6))
    assert [asked.choose(n, n) for n in (1, 3, 6, 64)] == [1, 3, 6, 6]
    too_many = MicroBatch(limits(0.1, most=4, wanted=6))
    assert too_many.choose(64, 64) == 4
    free = MicroBatch(limits(0.1, most=8))
    learn(free, lambda size: (0.1 / size,))
    assert all(free.choose(n, n) <= n for n in range(1, 20) for _ in range(5))


def test_a_short_batch_goes_in_smaller_messages_than_a_long_one() -> None:
    """Three like stages have work at once only where there are messages enough."""
    choice = MicroBatch(limits(0.1, 0.1, 0.1))
    learn(choice, lambda size: (0.1 * (0.5 + 0.5 / size),) * 3)
    assert choice._best(SIZES[:4], 4) < choice._best(SIZES[:4], 400) == 8


def test_a_plan_that_is_far_off_does_not_hide_the_slowest_stage() -> None:
    """By the plan the second stage is the slowest, and better off with eight; the first one really is."""
    choice = MicroBatch(limits(0.001, 0.005))
    learn(choice, lambda size: (0.1 * (1.5 if size > 1 else 1.0), 0.005 / size))
    assert choice.load().size == 1
    assert choice.load().item_s[1] == pytest.approx(0.1)


def test_measurements_of_another_pipeline_are_left_out() -> None:
    choice = MicroBatch(limits(0.1, 0.2))
    for _ in range(20):
        choice.measured(1, (0.1,))
        choice.measured(1, ())
        choice.measured(3, (0.1, 0.1))
    assert choice.load().item_s == {}


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 8, 64]), st.floats(0, 100)), max_size=40))
def test_costs_lie_between_what_was_measured(samples: list[tuple[int, float]]) -> None:
    costs = BatchCosts(first_left_out=0)
    for size, seconds in samples:
        costs.measured(size, seconds)
    for size in SIZES:
        of_it = [seconds for each, seconds in samples if each == size]
        known = costs.seconds(size)
        assert (known is None) == (not of_it)
        assert known is None or min(of_it) - 1e-9 <= known <= max(of_it) + 1e-9


def test_whatever_a_stage_says_it_took_leaves_numbers_to_reckon_with() -> None:
    choice = MicroBatch(limits(0.1))
    for _ in range(20):
        choice.measured(1, (5e-324,))
        choice.measured(2, (1e308,))
        choice.measured(4, (0.0,))
    for size in (1, 2, 4):
        assert 0.0 < choice.span_s(size, 0.1) < 1e12
    assert all(0.0 < seconds < 1e12 for seconds in choice.load().item_s.values())

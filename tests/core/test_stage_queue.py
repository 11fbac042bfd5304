"""Whose turn it is on a node: shares in seconds between models, importance within one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.stage_queue import TURNS_FOR_OLDEST, StageQueue


def test_one_model_alone_is_first_in_first_out() -> None:
    queue: StageQueue[int] = StageQueue()
    for number in range(5):
        queue.push("a", 5, number)
    assert len(queue) == 5
    assert [queue.take() for _ in range(5)] == list(range(5))
    assert len(queue) == 0
    with pytest.raises(ValueError, match="empty"):
        queue.take()


def test_a_flood_of_one_model_does_not_keep_another_waiting() -> None:
    """However much waits of `a`, an item of `b` has at most one of `a` before it."""
    queue: StageQueue[str] = StageQueue()
    for _ in range(1_000):
        queue.push("a", 5, "a")
    for _ in range(50):
        queue.charge(queue.take(), 0.02)
        queue.push("b", 5, "b")
        order = [queue.take(), queue.take()]
        for model in order:
            queue.charge(model, 0.02)
        assert "b" in order


@given(
    costs=st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.floats(0.001, 0.5), min_size=1), min_size=2
    ),
    turns=st.integers(10, 300),
)
def test_models_that_always_have_work_get_equal_seconds(
    costs: dict[str, list[float]], turns: int
) -> None:
    """Apart by no more than the longest item, at every moment."""
    queue: StageQueue[str] = StageQueue()
    had, longest = dict.fromkeys(costs, 0.0), max(max(each) for each in costs.values())
    for model in costs:
        queue.push(model, 5, model)
    for turn in range(turns):
        model = queue.take()
        cost = costs[model][turn % len(costs[model])]
        queue.push(model, 5, model)
        queue.charge(model, cost)
        had[model] += cost
        assert max(had.values()) - min(had.values()) <= longest + 1e-9


@given(idle_turns=st.integers(0, 100))
def test_time_that_was_not_used_is_not_owed(idle_turns: int) -> None:
    """A model that comes back is level with the others: it neither waits for long nor takes over."""
    queue: StageQueue[str] = StageQueue()
    for model in "ab":
        queue.push(model, 5, model)
    for _ in range(2):
        queue.charge(queue.take(), 1.0)
    for _ in range(idle_turns):
        queue.push("a", 5, "a")
        queue.charge(queue.take(), 1.0)
    for model in "ab" * 10:
        queue.push(model, 5, model)
    order = []
    for _ in range(20):
        order.append(queue.take())
        queue.charge(order[-1], 1.0)
    for count in range(1, 21):
        assert abs(order[:count].count("a") - order[:count].count("b")) <= 2


def test_who_comes_one_at_a_time_does_not_escape_its_share() -> None:
    """A model whose line is empty between two items has still had what it had."""
    queue: StageQueue[str] = StageQueue()
    order = []
    queue.push("long", 5, "long")
    for _ in range(100):
        queue.push("short", 5, "short")
        model = queue.take()
        order.append(model)
        if model == "long":
            queue.push("long", 5, "long")
        queue.charge(model, 1.0 if model == "long" else 0.1)
    assert 7 <= order.count("long") <= 11, "a tenth as many items of ten times the cost"


def test_the_highest_priority_goes_first_and_the_oldest_now_and_then() -> None:
    queue: StageQueue[str] = StageQueue()
    queue.push("a", 1, "old")
    order = []
    for number in range(2 * TURNS_FOR_OLDEST):
        queue.push("a", 9, f"new {number}")
        order.append(queue.take())
    assert order.index("old") == TURNS_FOR_OLDEST - 1
    assert [each for each in order if each != "old"] == [
        f"new {number}" for number in range(2 * TURNS_FOR_OLDEST - 1)
    ]


def test_what_is_cleared_is_given_back_and_shares_stay() -> None:
    queue: StageQueue[str] = StageQueue()
    for model in "ab":
        queue.push(model, 5, model)
    queue.charge(queue.take(), 1.0)
    queue.push("a", 5, "a")
    assert sorted(queue.clear()) == ["a", "b"]
    assert len(queue) == 0
    for model in "ab":
        queue.push(model, 5, model)
    assert queue.take() == "b", "a has had its second"

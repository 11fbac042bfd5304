"""What holds for every rule, and the two plain rules by table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.board import Board, Standing
from orchestrator.core.nsa import Nsa
from orchestrator.core.rules import selector_of
from orchestrator.core.scheduler_settings import Form, Scheduler, SchedulerSettings
from orchestrator.core.selection import (
    PROBE_EVERY,
    LeastOutstanding,
    Selector,
    ShortestCompletion,
    choose,
    explain,
)
from tests.core.board_rows import Row, board_of, chosen, picked

unhurried = settings(deadline=None)
RULES: list[Selector] = [
    ShortestCompletion(),
    LeastOutstanding(),
    Nsa(SchedulerSettings()),
    Nsa(SchedulerSettings(form=Form.LITERAL)),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=["sec", "lo", "nsa", "nsa-literal"])

ROWS = st.lists(
    st.builds(
        Row,
        pipeline=st.sampled_from("abcdefgh"),
        generation=st.integers(1, 3),
        window=st.integers(1, 8),
        outstanding=st.integers(0, 8),
        throughput_per_s=st.floats(0.1, 1e3),
        latency_s=st.floats(0, 10),
        slowness=st.floats(0.05, 100),
        due_at=st.just(math.inf) | st.floats(-10, 10),
        last_due_at=st.just(-math.inf) | st.floats(-10, 10),
        faults_in_row=st.sampled_from([0, 0, 0, 1, 9, 5000]),
        mean_execution_s=st.none() | st.floats(0, 100),
        standing=st.builds(
            Standing,
            cpu_ratio=st.floats(0, 1e6),
            memory_ratio=st.floats(0, 1e6),
            load_ratio=st.floats(0, 1),
            round_trip_s=st.floats(0, 1),
        ),
        chosen_turn=st.integers(0, 1000),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda row: (row.pipeline, row.generation),
)


@every_rule
@unhurried
@given(rows=ROWS, turn=st.integers(1, 2000))
def test_a_choice_has_a_credit_and_prefers_what_works(
    rule: Selector, rows: list[Row], turn: int
) -> None:
    board = board_of(rows)
    ordered = sorted(rows, key=lambda row: (row.pipeline, row.generation))
    choice = choose(rule, board, turn, 0.0)
    free = [row for row in ordered if row.outstanding < row.window]
    if choice is None:
        assert not free, "an item waits beside a free credit"
        return
    row = ordered[choice.row]
    assert row in free
    if any(each.faults_in_row == 0 for each in free) and not choice.probe:
        assert row.faults_in_row == 0
    again = choose(rule, board, turn, 0.0)
    assert again is not None
    assert (again.row, again.probe) == (choice.row, choice.probe)


@every_rule
@unhurried
@given(rows=ROWS, order=st.randoms(use_true_random=False))
def test_the_order_in_which_they_came_does_not_matter(
    rule: Selector, rows: list[Row], order: Any
) -> None:
    shuffled = list(rows)
    order.shuffle(shuffled)
    assert chosen(rule, rows) == chosen(rule, shuffled)


@every_rule
@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_equals_are_told_apart_by_name(rule: Selector, count: int) -> None:
    rows = [Row(pipeline=f"p{index:03}") for index in reversed(range(count))]
    assert chosen(rule, rows) == "p000"
    generations = [Row(generation=2), Row(generation=1)]
    board = board_of(generations)
    assert board.keys[picked(rule, board).row] == ("p", 1)


def test_rows_out_of_order_would_make_ties_depend_on_chance() -> None:
    with pytest.raises(AssertionError):
        Board([Row(pipeline="b"), Row(pipeline="a")])


@every_rule
def test_one_that_failed_takes_only_what_the_others_cannot(rule: Selector) -> None:
    failed = Row(pipeline="a", faults_in_row=1, throughput_per_s=1000.0, latency_s=0.0)
    assert chosen(rule, [failed, Row(pipeline="b", outstanding=7)]) == "b"
    assert chosen(rule, [failed, Row(pipeline="b", outstanding=8)]) == "a"
    assert chosen(rule, [Row(outstanding=8)]) is None


# --- probes ---------------------------------------------------------------------------------------


@every_rule
def test_one_that_was_passed_over_for_long_gets_one_item(rule: Selector) -> None:
    rows = [
        Row(pipeline="good", chosen_turn=199),
        Row(pipeline="slow", slowness=50.0, mean_execution_s=50.0, outstanding=1, chosen_turn=160),
    ]
    assert [chosen(rule, rows, turn=turn) for turn in (199, 200, 201)] == ["good", "slow", "good"]
    board = board_of(rows)
    assert picked(rule, board, turn=200).probe
    # A full one cannot be probed, however long it waits.
    full = Row(pipeline="slow", slowness=50.0, mean_execution_s=50.0, outstanding=8)
    assert chosen(rule, [rows[0], full], turn=200) == "good"


@pytest.mark.parametrize("count", [2, 3, 10, 30])
def test_probes_cost_a_share_of_the_jobs_whatever_the_number(count: int) -> None:
    """One good pipeline, the rest passed over by rank: at most every 20th job goes elsewhere."""
    last = [0] * count
    probes = 0
    turns = 3 * PROBE_EVERY * count
    for turn in range(1, turns + 1):
        rows = [
            Row(pipeline=f"{n:02}", slowness=1.0 if n == 0 else 50.0, chosen_turn=last[n])
            for n in range(count)
        ]
        choice = picked(ShortestCompletion(), board_of(rows), turn=turn)
        last[choice.row] = turn
        probes += choice.probe
    assert count - 1 <= probes <= turns / PROBE_EVERY
    assert min(last) > turns - 2 * PROBE_EVERY * (count + 1), "somebody is out for ever"


def test_a_broken_one_is_probed_ever_more_rarely() -> None:
    def due(faults: int) -> int:
        rows = [Row(pipeline="a", chosen_turn=10**6), Row(pipeline="b", faults_in_row=faults)]
        turns = range(PROBE_EVERY, 10**5, PROBE_EVERY)
        return next(t for t in turns if chosen(ShortestCompletion(), rows, turn=t) == "b")

    assert [due(faults) / due(0) for faults in (1, 2, 3, 6, 60)] == [2, 4, 8, 64, 64]


# --- the two plain rules --------------------------------------------------------------------------


def test_least_outstanding_counts_items() -> None:
    rows = [Row(pipeline="a", outstanding=2, throughput_per_s=100.0), Row(pipeline="b")]
    assert chosen(LeastOutstanding(), rows) == "b"


@pytest.mark.parametrize(
    ("a", "b", "winner"),
    [
        # idle: the one with the shorter way, though the other has the higher pace
        ({"latency_s": 0.3, "throughput_per_s": 100.0}, {"latency_s": 0.2}, "b"),
        # in work: the last in flight is due in 0.4 s, then 0.1 s more; the other takes 0.45 s alone
        ({"outstanding": 4, "last_due_at": 5.4}, {"latency_s": 0.45}, "b"),
        ({"outstanding": 4, "last_due_at": 5.3}, {"latency_s": 0.45}, "a"),
        # the plan says the same of both, but one has been three times slower
        ({"slowness": 3.0}, {"slowness": 1.1}, "b"),
        ({"slowness": 3.0, "latency_s": 0.01, "throughput_per_s": 100.0}, {"latency_s": 0.2}, "a"),
        # it should have given an output 0.2 s ago
        ({"outstanding": 1, "due_at": 4.8, "last_due_at": 4.8}, {"latency_s": 0.25}, "b"),
        ({"outstanding": 1, "due_at": 5.0, "last_due_at": 5.0}, {"latency_s": 0.25}, "a"),
    ],
)
def test_shortest_completion(a: dict[str, Any], b: dict[str, Any], winner: str) -> None:
    rows = [Row(pipeline="a", **a), Row(pipeline="b", **b)]
    assert chosen(ShortestCompletion(), rows, now=5.0) == winner


@unhurried
@given(rows=ROWS, now=st.floats(-20, 20))
def test_shortest_completion_against_its_formula(rows: list[Row], now: float) -> None:
    board = board_of(rows)
    ordered = sorted(rows, key=lambda row: (row.pipeline, row.generation))
    ranking = ShortestCompletion().rank(board, slice(None), now)
    for row, expected_s in zip(ordered, ranking.terms["expected_s"], strict=True):
        late_s = max(0.0, now - row.due_at)
        behind_s = row.last_due_at - now + late_s + row.slowness / row.throughput_per_s
        assert expected_s == pytest.approx(
            max(row.slowness * row.latency_s, behind_s) + late_s, rel=1e-9, abs=1e-9
        )


# --- what can be read of a decision ---------------------------------------------------------------


@every_rule
@unhurried
@given(rows=ROWS)
def test_a_decision_shows_every_candidate(rule: Selector, rows: list[Row]) -> None:
    board = board_of(rows)
    choice = choose(rule, board, 1, 0.0)
    if choice is None:
        return
    decision = explain(rule, board, choice, 3.0)
    assert (decision.at, decision.scheduler, decision.probe) == (3.0, rule.name, False)
    shown = [(each.pipeline, each.generation) for each in decision.candidates]
    assert shown == board.keys
    assert [each.chosen for each in decision.candidates].index(True) == choice.row
    assert sum(each.chosen for each in decision.candidates) == 1
    for each, row in zip(
        decision.candidates, sorted(rows, key=lambda r: (r.pipeline, r.generation)), strict=True
    ):
        if row.outstanding >= row.window:
            assert each.passed_over == "no free credit"
        assert each.terms or each.passed_over, "nothing is said of it"
        assert all(math.isfinite(term) for term in each.terms.values())


def test_a_decision_in_numbers() -> None:
    rows = [Row(pipeline="a", latency_s=0.2), Row(pipeline="b", faults_in_row=2), Row(pipeline="c")]
    board = board_of(rows)
    rule = ShortestCompletion()
    decision = explain(rule, board, picked(rule, board), 0.0)
    a, b, c = decision.candidates
    assert (a.chosen, b.chosen, c.chosen) == (False, False, True)
    assert a.terms["expected_s"] == pytest.approx(0.2)
    assert b.passed_over == "failed or timed out last"
    assert b.terms == {}


# --- the board ------------------------------------------------------------------------------------


@unhurried
@given(before=ROWS, data=st.data())
def test_what_is_posted_is_what_a_new_board_shows(before: list[Row], data: st.DataObject) -> None:
    rows = sorted(before, key=lambda row: (row.pipeline, row.generation))
    board = Board(rows)
    place = data.draw(st.integers(0, len(rows) - 1))
    drawn = data.draw(ROWS)[0]
    fixed = ("pipeline", "generation", "window", "throughput_per_s", "latency_s")
    kept = {name: getattr(rows[place], name) for name in fixed}
    rows[place] = Row(**{**vars(drawn), **kept})
    board.post(place, rows[place])
    board.post_standing(place, rows[place].standing)
    new = Board(rows)
    for name in Board.__slots__:
        if name != "keys":
            np.testing.assert_array_equal(getattr(board, name), getattr(new, name), name)


# --- settings -------------------------------------------------------------------------------------


def test_each_scheduler_has_its_rule() -> None:
    for scheduler in Scheduler:
        assert selector_of(SchedulerSettings(scheduler=scheduler)).name == scheduler.value
    assert isinstance(selector_of(SchedulerSettings()), ShortestCompletion)

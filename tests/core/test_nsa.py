"""The paper's node selection: against its formula, its skip rules, and each fault that it is known for.

The oracles below are transcriptions of ALGORITHMS.md, section 2, in plain Python, and know nothing of ours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.board import Standing
from orchestrator.core.nsa import NodeFigures, Nsa, standing
from orchestrator.core.scheduler_settings import Form, SchedulerSettings
from tests.core.board_rows import Row, board_of, chosen

unhurried = settings(deadline=None)
LITERAL = Nsa(SchedulerSettings(form=Form.LITERAL))
NORMALISED = Nsa(SchedulerSettings())
PAPER = (0.2, 0.2, 0.1, 0.5)


@dataclass(frozen=True, kw_only=True)
class PaperNode:
    """A node as the paper's formulas see it."""

    name: str = "n"
    cpu_available: float = 2.0
    cpu_needed: float = 1.0
    memory_available: float = 200.0
    memory_needed: float = 100.0
    load: float = 0.0
    latency_s: float = 0.0
    history_s: tuple[float, ...] = ()
    outstanding: int = 0
    tasks_ever: int = 0

    def row(self) -> Row:
        """What our rule gets of it."""
        last = self.history_s[-100:]
        figures = NodeFigures(
            node=self.name,
            cpu_available=self.cpu_available,
            cpu_needed=self.cpu_needed,
            memory_available_bytes=self.memory_available,
            memory_needed_bytes=self.memory_needed,
            load_ratio=self.load,
            round_trip_s=self.latency_s,
        )
        return Row(
            pipeline=self.name,
            outstanding=self.outstanding,
            window=1000,
            mean_execution_s=sum(last) / len(last) if last else None,
            standing=standing([figures]),
        )


def formula_total(node: PaperNode, weights: Sequence[float] = PAPER) -> float:
    s_r = (
        0.5 * node.cpu_available / node.cpu_needed
        + 0.5 * node.memory_available / node.memory_needed
    )
    s_l = 1 - node.load
    if node.history_s:
        last = node.history_s[-100:]
        s_p = 1 / (1 + sum(last) / len(last))
    else:
        s_p = 0.5
    s_b = 1 / (1 + 2 * node.outstanding)
    return weights[0] * s_r + weights[1] * s_l + weights[2] * s_p + weights[3] * s_b


def formula_skips(node: PaperNode, max_load: float = 0.8, max_latency_s: float = 0.2) -> bool:
    return (
        node.load > max_load
        or node.latency_s > max_latency_s
        or node.cpu_available < node.cpu_needed
        or node.memory_available < node.memory_needed
    )


def normalised_totals(nodes: Sequence[PaperNode]) -> dict[str, float]:
    """Terms that are bounded, spread from 0 to 1 over the nodes that are not skipped, and then weighed."""
    among = [node for node in nodes if not formula_skips(node)] or list(nodes)
    raw: dict[str, list[float]] = {}
    for node in among:
        ratios = (
            node.cpu_available / node.cpu_needed,
            node.memory_available / node.memory_needed,
        )
        last = node.history_s[-100:]
        raw[node.name] = [
            sum(ratio / (1 + ratio) for ratio in ratios) / 2,
            1 - node.load,
            1 / (1 + sum(last) / len(last)) if last else 0.5,
            1 / (1 + 2 * node.outstanding),
        ]
    totals = dict.fromkeys(raw, 0.0)
    for index, weight in enumerate(PAPER):
        column = [terms[index] for terms in raw.values()]
        low, high = min(column), max(column)
        for name, terms in raw.items():
            share = 1.0 if high == low else (terms[index] - low) / (high - low)
            totals[name] += weight * share
    return totals


# Figures on a grid: near-ties that only rounding tells apart say nothing about a rule.
NODES = st.lists(
    st.builds(
        PaperNode,
        name=st.sampled_from("abcdefgh"),
        cpu_available=st.sampled_from([0.1, 0.5, 1.0, 2.0, 64.0]),
        cpu_needed=st.sampled_from([0.1, 0.5, 1.0]),
        memory_available=st.sampled_from([0.0, 100.0, 300.0, 1e6]),
        memory_needed=st.sampled_from([1.0, 100.0]),
        load=st.sampled_from([0.0, 0.25, 0.5, 0.8, 0.9]),
        latency_s=st.sampled_from([0.0, 0.01, 0.2, 0.3]),
        history_s=st.lists(st.sampled_from([0.01, 0.5, 2.0]), max_size=130).map(tuple),
        outstanding=st.integers(0, 6),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda node: node.name,
)


@unhurried
@given(NODES)
def test_literal_terms_and_total_are_the_formulas(nodes: list[PaperNode]) -> None:
    nodes.sort(key=lambda node: node.name)
    ranking = LITERAL.rank(board_of(node.row() for node in nodes), slice(None), 0.0)
    for index, node in enumerate(nodes):
        assert ranking.terms["total"][index] == pytest.approx(formula_total(node))
        skipped = any(flags[index] for flags in ranking.passed_over.values())
        assert skipped == formula_skips(node)


@unhurried
@given(NODES)
def test_the_literal_choice_is_the_formulas(nodes: list[PaperNode]) -> None:
    among = [node for node in nodes if not formula_skips(node)] or nodes
    best = max(formula_total(node) for node in among)
    winner = chosen(LITERAL, [node.row() for node in nodes])
    # Which of equals wins is not the formula's business.
    assert winner in {node.name for node in among if formula_total(node) >= best - 1e-9}


@unhurried
@given(NODES)
def test_the_normalised_choice_and_totals(nodes: list[PaperNode]) -> None:
    nodes.sort(key=lambda node: node.name)
    totals = normalised_totals(nodes)
    ranking = NORMALISED.rank(board_of(node.row() for node in nodes), slice(None), 0.0)
    for index, node in enumerate(nodes):
        if node.name in totals:
            assert ranking.terms["total"][index] == pytest.approx(totals[node.name])
    winner = chosen(NORMALISED, [node.row() for node in nodes])
    assert winner is not None
    assert totals[winner] >= max(totals.values()) - 1e-9


@unhurried
@given(NODES)
def test_normalised_terms_are_between_0_and_1(nodes: list[PaperNode]) -> None:
    ranking = NORMALISED.rank(board_of(node.row() for node in nodes), slice(None), 0.0)
    for name in ("resources", "load", "performance", "balance"):
        assert ((ranking.terms[name] >= 0) & (ranking.terms[name] <= 1)).all()
    assert (ranking.terms["total"] <= sum(PAPER) + 1e-9).all()


# --- skip rules and weights -----------------------------------------------------------------------


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ({"load": 0.81}, "load above threshold"),
        ({"latency_s": 0.21}, "latency above threshold"),
        ({"cpu_available": 0.99}, "CPU does not suffice"),
        ({"memory_available": 99.0}, "memory does not suffice"),
    ],
)
def test_skipped_nodes_come_last(form: Form, trouble: dict[str, float], reason: str) -> None:
    rule = Nsa(SchedulerSettings(form=form))
    skipped = replace(PaperNode(name="a"), **trouble)  # type: ignore[arg-type]
    other = PaperNode(name="b", outstanding=50, load=0.7)
    ranking = rule.rank(board_of([skipped.row(), other.row()]), slice(None), 0.0)
    assert [name for name, flags in ranking.passed_over.items() if flags[0]] == [reason]
    assert chosen(rule, [skipped.row(), other.row()]) == "b"
    # An item never waits beside a free credit: without another, it is the one.
    assert chosen(rule, [skipped.row()]) == "a"
    assert chosen(rule, [skipped.row(), replace(other.row(), window=50)]) == "a"


def test_just_at_the_threshold_is_not_above_it() -> None:
    at = PaperNode(name="a", load=0.8, latency_s=0.2, cpu_available=1.0, memory_available=100.0)
    assert chosen(LITERAL, [at.row(), replace(at, name="b", load=0.9).row()]) == "a"


@pytest.mark.parametrize(
    ("weights", "winner"),
    [((1, 0, 0, 0), "r"), ((0, 1, 0, 0), "l"), ((0, 0, 1, 0), "p"), ((0, 0, 0, 1), "b")],
)
@pytest.mark.parametrize("form", Form)
def test_weights_are_of_the_terms_they_name(
    form: Form, weights: tuple[float, float, float, float], winner: str
) -> None:
    busy = PaperNode(load=0.5, history_s=(1.0,), outstanding=3)
    nodes = [
        replace(busy, name="r", cpu_available=8.0, memory_available=800.0),
        replace(busy, name="l", load=0.1),
        replace(busy, name="p", history_s=(0.1,)),
        replace(busy, name="b", outstanding=0),
    ]
    rule = Nsa(SchedulerSettings(form=form, weights=weights))
    assert chosen(rule, [node.row() for node in nodes]) == winner


def test_a_pipeline_is_as_good_as_its_weakest_stage() -> None:
    first = NodeFigures(
        node="a", cpu_available=2.0, cpu_needed=1.0, memory_available_bytes=100.0,
        memory_needed_bytes=100.0, load_ratio=0.7, round_trip_s=0.01,
    )  # fmt: skip
    second = replace(
        first, cpu_available=1.5, memory_available_bytes=300.0, load_ratio=0.1, round_trip_s=0.3
    )
    assert standing([first, second]) == Standing(1.5, 1.0, 0.7, 0.3)
    assert standing([first]) == Standing(2.0, 1.0, 0.7, 0.01)


# --- the faults of the reference implementation ---------------------------------------------------
# Each check holds for our rule and fails on the faulty form beside it.

Scorer = Callable[[Sequence[PaperNode]], dict[str, float]]
"""Totals by name, the highest wins."""
Chooser = Callable[[Sequence[PaperNode], int, Sequence[int]], str]
"""The name for this turn, given the turn at which each was chosen last."""


def ours(nodes: Sequence[PaperNode]) -> dict[str, float]:
    ordered = sorted(nodes, key=lambda node: node.name)
    ranking = NORMALISED.rank(board_of(node.row() for node in ordered), slice(None), 0.0)
    totals = ranking.terms["total"]
    return {node.name: float(total) for node, total in zip(ordered, totals, strict=True)}


def winner_of(scorer: Scorer, nodes: Sequence[PaperNode]) -> str:
    totals = scorer(nodes)
    return min(totals, key=lambda name: (-totals[name], name))


def holds_for_ours_and_fails_on(
    check: Callable[[Scorer], None], faulty: Scorer, right: Scorer = ours
) -> None:
    check(right)
    with pytest.raises(AssertionError):
        check(faulty)


def test_times_in_milliseconds_make_performance_nothing() -> None:
    def in_milliseconds(nodes: Sequence[PaperNode]) -> dict[str, float]:
        return {
            node.name: formula_total(
                replace(node, history_s=tuple(1e3 * seconds for seconds in node.history_s))
            )
            for node in nodes
        }

    def literal(nodes: Sequence[PaperNode]) -> dict[str, float]:
        ranking = LITERAL.rank(board_of(node.row() for node in nodes), slice(None), 0.0)
        return {node.name: float(t) for node, t in zip(nodes, ranking.terms["total"], strict=True)}

    def quick_beats_unknown(scorer: Scorer) -> None:
        """One known to take 50 ms is better than one that nobody has tried, for which 0.5 stands."""
        nodes = [PaperNode(name="quick", history_s=(0.05,) * 5), PaperNode(name="unknown")]
        assert winner_of(scorer, nodes) == "quick"

    holds_for_ours_and_fails_on(quick_beats_unknown, in_milliseconds)
    holds_for_ours_and_fails_on(quick_beats_unknown, in_milliseconds, literal)


def test_plenty_of_resources_does_not_outweigh_everything_else() -> None:
    def unclipped(nodes: Sequence[PaperNode]) -> dict[str, float]:
        return {node.name: formula_total(node) for node in nodes}

    def work_is_shared_with_small_nodes(scorer: Scorer) -> None:
        server = PaperNode(
            name="server", cpu_available=64.0, memory_available=64_000.0, outstanding=20, load=0.7
        )
        nodes = [server, PaperNode(name="pi-1"), PaperNode(name="pi-2", cpu_available=1.5)]
        assert winner_of(scorer, nodes) == "pi-1"

    holds_for_ours_and_fails_on(work_is_shared_with_small_nodes, unclipped)


def test_balance_does_not_decay_with_the_jobs_of_the_past() -> None:
    def counts_for_ever(nodes: Sequence[PaperNode]) -> dict[str, float]:
        return {
            node.name: formula_total(replace(node, outstanding=node.tasks_ever)) for node in nodes
        }

    def what_is_outstanding_decides(scorer: Scorer) -> None:
        for past in (0, 10_000):
            busy = PaperNode(name="a", outstanding=6, tasks_ever=past + 6, load=0.1)
            idle = PaperNode(name="b", outstanding=0, tasks_ever=past, load=0.2)
            assert winner_of(scorer, [busy, idle]) == "b", f"after {past} jobs"

    holds_for_ours_and_fails_on(what_is_outstanding_decides, counts_for_ever)


def test_a_node_that_was_slow_is_tried_again() -> None:
    def never_again(nodes: Sequence[PaperNode], turn: int, last_turns: Sequence[int]) -> str:
        fit = [node for node in nodes if sum(node.history_s[-5:]) / 5 < 1.0]
        return winner_of(lambda among: {n.name: formula_total(n) for n in among}, fit)

    def with_probes(nodes: Sequence[PaperNode], turn: int, last_turns: Sequence[int]) -> str:
        rows = [
            replace(node.row(), chosen_turn=last)
            for node, last in zip(nodes, last_turns, strict=True)
        ]
        name = chosen(NORMALISED, rows, turn=turn)
        assert name is not None
        return name

    def recovers(chooser: Chooser) -> None:
        """Five slow tasks, and then it is the faster one: it must come back into use."""
        nodes = [
            PaperNode(name="a", history_s=(0.3,) * 5),
            PaperNode(name="b", history_s=(5.0,) * 5),
        ]
        truth_s, last_turns, taken = {"a": 0.3, "b": 0.05}, [0, 0], [0, 0]
        for turn in range(1, 10_001):
            name = chooser(nodes, turn, last_turns)
            index = "ab".index(name)
            taken[index] += turn > 9_000
            last_turns[index] = turn
            history_s = (*nodes[index].history_s, truth_s[name])[-100:]
            nodes[index] = replace(nodes[index], history_s=history_s)
        assert taken[1] > taken[0]

    recovers(with_probes)
    with pytest.raises(AssertionError):
        recovers(never_again)


def test_ties_are_not_broken_by_chance() -> None:
    noise = random.Random(0)

    def with_noise(nodes: Sequence[PaperNode]) -> dict[str, float]:
        return {node.name: formula_total(node) + noise.uniform(0, 1e-3) for node in nodes}

    def the_lowest_name_wins(scorer: Scorer) -> None:
        nodes = [PaperNode(name=name) for name in "cab"]
        assert [winner_of(scorer, nodes) for _ in range(50)] == ["a"] * 50

    holds_for_ours_and_fails_on(the_lowest_name_wins, with_noise)


def test_unlike_nodes_get_unlike_scores() -> None:
    def as_printed(nodes: Sequence[PaperNode]) -> dict[str, float]:
        return {node.name: formula_total(node) for node in nodes}

    def there_is_a_spread(scorer: Scorer) -> None:
        """Three devices of one kind under everyday load: best and worst must be told apart clearly."""
        totals = scorer(
            [
                PaperNode(name="a", cpu_available=1.20, load=0.30, history_s=(0.02,) * 9),
                PaperNode(name="b", cpu_available=1.15, load=0.35, history_s=(0.03,) * 9),
                PaperNode(name="c", cpu_available=1.10, load=0.40, history_s=(0.05,) * 9),
            ]
        )
        assert max(totals.values()) - min(totals.values()) > 0.25

    holds_for_ours_and_fails_on(there_is_a_spread, as_printed)

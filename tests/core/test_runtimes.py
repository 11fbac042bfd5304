"""The runtime that nobody asked for: the one whose plan is better, not the one that is faster somewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.cluster_settings import Zones
from orchestrator.core.replan import choose
from orchestrator.core.runtimes import Candidate, best_runtime
from shared.errors import ConfigurationError, PlanError
from shared.profile import NodeProfile
from tests.core.cluster_world import MB, entry
from tests.core.plan_cases import model, node, some_nodes

ZONES = Zones()
THREE = tuple(node(name, 1.0) for name in "abc")


def candidate(
    runtime: str, block_s: float, nodes: tuple[NodeProfile, ...], base_mb: int = 10, **options: Any
) -> Candidate:
    profile = model([block_s] * 6, [1000] * 5, weights=[MB] * 6, runtime_bytes=base_mb * MB)
    return Candidate(replace(entry(**options), runtime=runtime, profile=profile), nodes)


def chosen(*candidates: Candidate) -> str | None:
    """The same in either order."""
    found = [best_runtime(each, ZONES) for each in (candidates, candidates[::-1])]
    names = {each.runtime if each else None for each in found}
    assert len(names) == 1
    return names.pop()


def test_faster_on_the_same_nodes() -> None:
    assert chosen(candidate("a", 0.01, THREE), candidate("b", 0.004, THREE)) == "b"


def test_much_faster_on_fewer_nodes_is_better_and_a_little_faster_is_not() -> None:
    everywhere = candidate("torch", 0.010, THREE)
    assert chosen(everywhere, candidate("onnx", 0.004, THREE[:2])) == "onnx"
    assert chosen(everywhere, candidate("onnx", 0.009, THREE[:2])) == "torch"


def test_what_does_not_fit_is_not_taken() -> None:
    small = tuple(replace(each, memory_bytes=100 * MB) for each in THREE)
    slow, fast = candidate("slow", 0.01, small), candidate("fast", 0.001, small, base_mb=200)
    assert chosen(slow, fast) == "slow"
    assert chosen(fast) is None


def test_the_goal_decides() -> None:
    for objective, wanted in (("throughput", "many"), ("latency", "one")):
        many = candidate("many", 0.010, THREE, objective=objective)
        one = candidate("one", 0.008, THREE[:1], objective=objective)
        assert chosen(many, one) == wanted


def test_stages_and_a_rate_that_were_asked_for_count_first() -> None:
    for wish in ({"min_stages": 3}, {"rate_per_s": 45.0}):
        three = candidate("three", 0.010, THREE, **wish, objective="latency")
        one = candidate("one", 0.005, THREE[:1], **wish, objective="latency")
        assert chosen(three, one) == "three"


def test_nobody_has_it() -> None:
    assert best_runtime([], ZONES) is None
    assert best_runtime([candidate("a", 0.01, ())], ZONES) is None


def test_options_that_make_no_sense_are_said() -> None:
    with pytest.raises(ConfigurationError, match="strategy"):
        best_runtime([candidate("a", 0.01, THREE, strategy="fastest")], ZONES)


@settings(deadline=None)
@given(
    some_nodes(),
    st.lists(st.sampled_from([0.004, 0.01, 0.013]), min_size=1, max_size=3),
    st.sampled_from(["throughput", "latency"]),
    st.integers(1, 3),
)
def test_no_runtime_has_a_better_plan(
    nodes: list[NodeProfile], seconds: list[float], objective: str, fewer: int
) -> None:
    """Held against each candidate's own plan."""
    candidates = [
        candidate(str(index), each, tuple(nodes[: len(nodes) - fewer * (index > 0)]))
        for index, each in enumerate(seconds)
    ]
    candidates = [replace(c, entry=with_objective(c.entry, objective)) for c in candidates]
    figures = {}
    for each in candidates:
        if not each.nodes:
            continue
        try:
            predicted = choose(each.entry, each.nodes, ZONES).plan.predicted
        except PlanError:
            continue
        figures[each.entry.runtime] = (
            -predicted.throughput_per_s if objective == "throughput" else predicted.latency_s
        )
    best = best_runtime(candidates, ZONES)
    if best is None:
        assert not figures
    else:
        least = min(figures.values())
        assert figures[best.runtime] <= least + 1e-9 * abs(least)


def with_objective(known: ModelEntry, objective: str) -> ModelEntry:
    return replace(known, options=replace(known.options, objective=objective))

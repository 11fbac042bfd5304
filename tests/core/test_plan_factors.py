"""Nodes that take some blocks better than others: the plan knows, and is still the best there is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given

from orchestrator.core import cost
from orchestrator.core.plan import Objective, PlanRequest
from orchestrator.core.planner import plan
from orchestrator.core.tables import group_nodes
from shared.cluster_file import load_cluster
from shared.errors import ConfigurationError, PlanError
from shared.profile import ModelProfile, NodeProfile
from tests.core.plan_cases import model, node, several, suited
from tests.core.plan_oracle import every_plan

Case = tuple[ModelProfile, list[NodeProfile]]


def test_work_by_hand() -> None:
    profile = model([0.1, 0.2, 0.4], input_seconds=0.05)
    slow = node("n", 0.5, speed=2.0, block_factors=(1.0, 3.0, 0.5))
    assert cost.stage_work(profile, slow, (0, 2)) == pytest.approx(0.05 + 0.1 + 0.6)
    assert cost.stage_work(profile, slow, (1, 3)) == pytest.approx(0.6 + 0.2)
    assert cost.stage_work(profile, node("m"), (1, 3)) == pytest.approx(0.6)
    assert cost.stage_work(profile, node("m", input_factor=3.0), (0, 1)) == pytest.approx(0.25)


def test_blocks_go_where_they_are_fast() -> None:
    """By speed alone the two are equal and the cut is anywhere; by block each takes what suits it."""
    profile = model([0.1, 0.1])
    nodes = [node("a", block_factors=(4.0, 1.0)), node("b", block_factors=(1.0, 4.0))]
    found = plan(PlanRequest(profile, tuple(nodes), min_stages=2))
    assert [(s.node, s.blocks) for s in found.pipelines[0].stages] == [("b", (0, 1)), ("a", (1, 2))]
    assert found.predicted.throughput_per_s == pytest.approx(10.0)


@several
@given(suited())
def test_never_worse_than_exhaustive_search(case: Case) -> None:
    profile, nodes = case
    outcomes = list(every_plan(profile, nodes, in_flight=2))
    for objective in (Objective.THROUGHPUT, Objective.LATENCY):
        request = PlanRequest(profile, tuple(nodes), objective, in_flight=2)
        if not outcomes:
            with pytest.raises(PlanError):
                plan(request)
            continue
        found = plan(request)
        match objective:
            case Objective.THROUGHPUT:
                best = max(outcome.throughput for outcome in outcomes)
                assert found.predicted.throughput_per_s == pytest.approx(best)
                assert 1.0 / best >= found.lower_bound * (1 - 1e-9)
            case Objective.LATENCY:
                best = min(outcome.latency for outcome in outcomes)
                assert found.predicted.latency_s == pytest.approx(best)
                assert best >= found.lower_bound * (1 - 1e-9)


def test_nodes_of_unlike_factors_are_of_unlike_kinds() -> None:
    nodes = [node("a", block_factors=(1.0, 2.0)), node("b"), node("c", block_factors=(1.0, 2.0))]
    assert [kind.names for kind in group_nodes(nodes)] == [("a", "c"), ("b",)]


def test_factors_for_another_model() -> None:
    profile = model([0.1, 0.1])
    other = node("a", block_factors=(1.0, 1.0, 1.0))
    with pytest.raises(ConfigurationError, match="node 'a': block_factors") as error:
        plan(PlanRequest(profile, (other,)))
    assert error.value.expected == "2, one for each block of the model, or none"
    assert error.value.got == "3"


@pytest.mark.parametrize("factors", [3.0, [1.0, 0.0], [1.0, float("nan")], ["1"], "11"])
def test_factors_that_make_no_sense(factors: Any) -> None:
    with pytest.raises(ConfigurationError, match="block_factors"):
        dataclasses.replace(node("a"), block_factors=factors)


def test_factors_in_a_cluster_file() -> None:
    text = b"""
    [[node]]
    name = "pi"
    cpu = 4
    speed = 0.25
    memory_bytes = 1e9
    up_bytes_per_s = 1e7
    down_bytes_per_s = 1e7
    message_s = 0.002
    block_factors = [1, 2.5]
    """
    (pi,) = load_cluster(text)
    assert pi.block_factors == pytest.approx([1.0, 2.5])
    assert len({pi, dataclasses.replace(pi)}) == 1, "a list would not be hashable"

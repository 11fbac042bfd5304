"""Clusters too large for the exact search: what is promised of the bounded one."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.core import bounded
from orchestrator.core.bounded import bounded_choice, bounded_throughput
from orchestrator.core.choice import EXACT_STATES
from orchestrator.core.evaluate import evaluate
from orchestrator.core.figures import burden
from orchestrator.core.front import SHORTLIST_NOTE, front
from orchestrator.core.goal import parse_goal
from orchestrator.core.infeasible import feasible_stage_counts
from orchestrator.core.limits import Limits
from orchestrator.core.optimum import BOUNDED_NOTE, judge_for
from orchestrator.core.partition import lattice_size
from orchestrator.core.plan import Objective, PlanRequest, Strategy
from orchestrator.core.planner import plan
from orchestrator.core.problem import place, pose
from shared.errors import PlanError
from shared.profile import ModelProfile, NodeProfile
from tests.core.plan_cases import model, node

MB = 1_000_000


def net(blocks: int = 12) -> ModelProfile:
    """Uneven blocks and cuts without a random number."""
    return model(
        [0.002 + 0.001 * (i * 7 % 5) for i in range(blocks)],
        [20_000 + 10_000 * (j * 5 % 7) for j in range(1, blocks)],
        weights=[MB * (1 + i * 3 % 4) for i in range(blocks)],
        input_bytes=20_000,
        output_bytes=4_000,
    )


def unlike(count: int, memory: float = 40.0) -> list[NodeProfile]:
    return [
        node(
            f"n{i:04}",
            0.3 + (i * 37 % 101) / 100,
            memory_bytes=int(memory * MB * (0.6 + (i * 53 % 97) / 120)),
            up_bytes_per_s=1e7,
            down_bytes_per_s=1e7,
            message_s=0.0002,
        )
        for i in range(count)
    ]


def few_kinds(*counts: int) -> list[NodeProfile]:
    return [
        dataclasses.replace(kind, name=f"{kind.name}-{i:04}")
        for kind, count in zip(unlike(len(counts), 45.0), counts, strict=True)
        for i in range(count)
    ]


@pytest.mark.parametrize(
    "nodes",
    [unlike(14), unlike(60), few_kinds(40, 40, 40), few_kinds(500, 500), few_kinds(600, 300, 100)],
    ids=["14 unlike", "60 unlike", "3 kinds", "1000 of 2 kinds", "1000 of 3 kinds"],
)
def test_close_to_the_bound_and_what_it_says(nodes: list[NodeProfile]) -> None:
    request = PlanRequest(net(), tuple(nodes))
    found = plan(request)
    assert found.notes == (BOUNDED_NOTE,)
    assert 0.0 <= found.gap_ratio < 0.15
    assert evaluate(request.profile, nodes, found.pipelines).predicted == found.predicted
    copies = plan(dataclasses.replace(request, strategy=Strategy.REPLICATE))
    assert found.predicted.throughput_per_s >= copies.predicted.throughput_per_s * (1 - 1e-9)
    assert plan(dataclasses.replace(request, nodes=tuple(reversed(nodes)))) == found


def test_a_thousand_equal_nodes_are_exact() -> None:
    found = plan(PlanRequest(net(), tuple(few_kinds(1_000))))
    assert found.notes == ()
    assert found.gap_ratio < 0.05


def test_near_the_exact_plan_where_both_can_be_had() -> None:
    problem = pose(PlanRequest(net(), tuple(unlike(9, 30.0))))
    exact = plan(problem.request).predicted.throughput_per_s
    loose = problem.price(place(bounded_throughput(problem), problem.kinds)).predicted
    assert exact * 0.95 <= loose.throughput_per_s <= exact * (1 + 1e-9)


def test_small_groups_too_are_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    # A small budget makes groups of three nodes, of which two may have nothing to do with each other.
    monkeypatch.setattr(bounded, "_WORK", 3_000)
    found = plan(PlanRequest(net(), tuple(unlike(24, 25.0))))
    assert found.gap_ratio < 0.25


def test_latency_over_a_thousand_nodes_is_that_of_the_best_few() -> None:
    request = PlanRequest(net(), tuple(unlike(200)), Objective.LATENCY)
    found = plan(request)
    alone = plan(dataclasses.replace(request, strategy=Strategy.SINGLE))
    assert found.predicted.latency_s <= alone.predicted.latency_s * (1 + 1e-9)
    assert found.gap_ratio < 0.3


@pytest.mark.parametrize("objective", Objective)
def test_more_unlike_nodes_in_one_pipeline_than_the_exact_search_can_hold(
    objective: Objective,
) -> None:
    nodes = unlike(20)
    request = PlanRequest(net(16), tuple(nodes), objective, min_stages=13)
    assert lattice_size(pose(request).counts) > EXACT_STATES
    found = plan(request)
    assert all(len(pipeline.stages) >= 13 for pipeline in found.pipelines)
    assert evaluate(request.profile, nodes, found.pipelines).predicted == found.predicted


def test_a_model_that_only_many_small_nodes_hold_together() -> None:
    # Each node holds one block of 4 MB at most, and there are 12 blocks: 12 stages or nothing.
    profile = model([0.01] * 12, weights=[4 * MB] * 12)
    nodes = [node(f"n{i:02}", 0.5 + i / 100, memory_bytes=5 * MB) for i in range(14)]
    found = plan(PlanRequest(profile, tuple(nodes)))
    assert [len(pipeline.stages) for pipeline in found.pipelines] == [12]
    assert feasible_stage_counts(PlanRequest(profile, tuple(nodes))) == (12,)
    with pytest.raises(PlanError, match="12 stages it fits"):
        plan(PlanRequest(profile, tuple(nodes), max_stages=11))
    with pytest.raises(PlanError, match="12 is the most that fits"):
        plan(PlanRequest(profile, tuple(nodes), min_stages=13))
    with pytest.raises(PlanError, match="however it is cut"):
        plan(PlanRequest(profile, tuple(nodes[:11])))


def priced(nodes: list[NodeProfile]) -> list[NodeProfile]:
    return [
        dataclasses.replace(
            one,
            price_per_hour=0.1 + (i * 31 % 17) / 10,
            power_w=2.0 + i * 13 % 11,
            zone="home" if i % 3 else "cloud",
        )
        for i, one in enumerate(nodes)
    ]


GOALS = [*map(str, Objective), "latency=0.7,cost=0.3", "throughput=1,energy=1"]


@pytest.mark.parametrize("goal", GOALS)
def test_every_goal_under_limits_beyond_what_is_exact(goal: str) -> None:
    nodes = priced(unlike(40))
    free = plan(PlanRequest(net(), tuple(nodes))).predicted
    limits = Limits(
        max_latency_s=free.latency_s,
        min_throughput_per_s=free.throughput_per_s / 4,
        max_cost_per_1000=free.cost_per_1000,
    )
    request = PlanRequest(net(), tuple(nodes), parse_goal(goal), limits=limits, input_zone="home")
    found = plan(request)
    assert limits.broken(found.predicted) == ()
    assert found.gap_ratio >= 0.0
    assert found.notes
    assert plan(dataclasses.replace(request, nodes=tuple(reversed(nodes)))) == found


@pytest.mark.parametrize("goal", GOALS)
def test_near_the_exact_choice_where_both_can_be_had(goal: str) -> None:
    nodes = priced(unlike(6, 60.0))
    limits = Limits(max_latency_s=0.12)
    problem = pose(PlanRequest(net(8), tuple(nodes), parse_goal(goal), limits=limits))
    judge = judge_for(problem)
    assert judge is not None
    exact = plan(problem.request).predicted
    loose = problem.price(place(bounded_choice(problem, judge), problem.kinds)).predicted
    assert judge.allows(loose)
    assert judge.value(exact) * (1 - 1e-9) <= judge.value(loose) <= judge.value(exact) * 1.1


def test_a_limit_on_ten_unlike_nodes_is_exact_where_there_is_time() -> None:
    nodes = tuple(priced(unlike(10, 90.0)))
    free = plan(PlanRequest(net(12), nodes)).predicted
    request = PlanRequest(net(12), nodes, limits=Limits(max_latency_s=0.7 * free.latency_s))
    exact, quick = plan(request), plan(dataclasses.replace(request, thorough=False))
    assert exact.notes == ()
    assert quick.notes
    assert exact.predicted.latency_s <= 0.7 * free.latency_s * (1 + 1e-9)
    assert quick.predicted.throughput_per_s <= exact.predicted.throughput_per_s * (1 + 1e-9)


def test_a_front_beyond_what_is_exact_says_so() -> None:
    nodes = priced(few_kinds(20, 20, 20))
    objectives = (Objective.THROUGHPUT, Objective.COST)
    found = front(PlanRequest(net(), tuple(nodes)), objectives)
    assert SHORTLIST_NOTE in found.notes
    for objective in objectives:
        best = plan(PlanRequest(net(), tuple(nodes), objective)).predicted
        reached = min(burden(point.predicted, objective) for point in found.points)
        assert reached <= burden(best, objective) * (1 + 1e-9)


def test_latency_and_energy_and_price_of_five_nodes_together() -> None:
    # More plans than are told apart one by one: the front says by how much it may be off
    objectives = (Objective.LATENCY, Objective.ENERGY, Objective.COST)
    request = PlanRequest(net(16), tuple(priced(unlike(5, 90.0))), thorough=False)
    found = front(request, objectives)
    assert any("may have been missed" in note for note in found.notes)
    assert front(dataclasses.replace(request, thorough=True), objectives).notes == ()
    points = [[burden(point.predicted, one) for one in objectives] for point in found.points]
    assert all(
        a is b or any(x < y for x, y in zip(a, b, strict=True)) for a in points for b in points
    )

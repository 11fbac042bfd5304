"""`optimal` against exhaustive search, and the properties that any user of the planner takes for granted."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.evaluate import evaluate
from orchestrator.core.infeasible import feasible_stage_counts
from orchestrator.core.plan import Objective, Plan, PlanRequest
from orchestrator.core.planner import plan
from shared.errors import PlanError
from shared.profile import ModelProfile, NodeProfile
from tests.core.plan_cases import models, several, some_nodes
from tests.core.plan_oracle import Outcome, every_plan

IN_FLIGHT = 2
NEAR = 1e-9
LOOSE = 1e-7
"""For sums of ties: each pipeline of a plan may be within `NEAR` of its best."""

limits = st.tuples(st.integers(1, 3), st.integers(0, 2)).map(lambda pair: (pair[0], sum(pair)))
no_limits = st.just((1, 99))


def ask(
    profile: ModelProfile,
    nodes: list[NodeProfile],
    objective: Objective,
    limit: tuple[int, int] = (1, 99),
) -> PlanRequest:
    return PlanRequest(
        profile,
        tuple(nodes),
        objective,
        min_stages=limit[0],
        max_stages=limit[1],
        in_flight=IN_FLIGHT,
    )


def outcome(request: PlanRequest) -> Plan | str:
    try:
        return plan(request)
    except PlanError as error:
        return str(error)


def same_figures(found: Plan, plans: list[Outcome]) -> Outcome:
    """The oracle's own entry for the plan found; its figures must be the same."""
    pipelines = {tuple((s.node, s.blocks) for s in pipe.stages) for pipe in found.pipelines}
    (entry,) = (one for one in plans if set(one.pipelines) == pipelines)
    assert found.predicted.throughput_per_s == pytest.approx(entry.throughput, rel=NEAR)
    assert found.predicted.latency_s == pytest.approx(entry.latency, rel=NEAR)
    return entry


@several
@given(models(), some_nodes(), st.one_of(no_limits, limits))
def test_throughput_is_never_worse_than_exhaustive_search(
    profile: ModelProfile, nodes: list[NodeProfile], limit: tuple[int, int]
) -> None:
    request = ask(profile, nodes, Objective.THROUGHPUT, limit)
    plans = every_plan(
        profile, nodes, in_flight=IN_FLIGHT, min_stages=limit[0], max_stages=limit[1]
    )
    if not plans:
        with pytest.raises(PlanError):
            plan(request)
        return
    found = same_figures(plan(request), plans)
    best = max(one.throughput for one in plans)
    assert found.throughput >= best * (1 - LOOSE)
    near = [one for one in plans if one.throughput >= best * (1 - NEAR / 10)]
    fewest = min(one.nodes for one in near)
    assert found.nodes <= fewest
    as_few = [one.latency for one in near if one.nodes == found.nodes]
    assert found.latency <= min(as_few, default=found.latency) * (1 + LOOSE)


@several
@given(models(), some_nodes(), st.one_of(no_limits, limits))
def test_latency_is_never_worse_than_exhaustive_search(
    profile: ModelProfile, nodes: list[NodeProfile], limit: tuple[int, int]
) -> None:
    request = ask(profile, nodes, Objective.LATENCY, limit)
    plans = every_plan(
        profile, nodes, in_flight=IN_FLIGHT, min_stages=limit[0], max_stages=limit[1]
    )
    if not plans:
        with pytest.raises(PlanError):
            plan(request)
        return
    found = same_figures(plan(request), plans)
    best = min(one.latency for one in plans)
    assert found.latency <= best * (1 + LOOSE)
    near = [one for one in plans if one.latency <= best * (1 + NEAR / 10)]
    fastest = max(one.throughput for one in near)
    assert found.throughput >= fastest * (1 - LOOSE)
    # What is strictly the best may be slower than what is as good within the tie
    as_fast = [one.nodes for one in near if one.throughput >= found.throughput * (1 - NEAR / 10)]
    assert found.nodes <= min(as_fast, default=found.nodes)


@several
@given(models(), some_nodes(), st.sampled_from(Objective))
def test_a_plan_is_what_its_pipelines_cost(
    profile: ModelProfile, nodes: list[NodeProfile], objective: Objective
) -> None:
    request = ask(profile, nodes, objective)
    try:
        found = plan(request)
    except PlanError:
        assert feasible_stage_counts(request) == ()
        return
    priced = evaluate(profile, nodes, found.pipelines, in_flight=IN_FLIGHT)
    assert priced.predicted == found.predicted
    assert priced.pipelines == found.pipelines
    # The bound holds, and nothing listed beside the plan is better than it
    assert found.gap_ratio >= -NEAR
    for other in found.alternatives:
        if other.predicted is not None and objective is Objective.THROUGHPUT:
            assert other.predicted.throughput_per_s <= found.predicted.throughput_per_s * (1 + NEAR)
        if other.predicted is not None and objective is Objective.LATENCY:
            assert other.predicted.latency_s >= found.predicted.latency_s * (1 - NEAR)


@several
@given(
    models(),
    some_nodes(),
    st.sampled_from(Objective),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_nodes_does_not_matter(
    profile: ModelProfile, nodes: list[NodeProfile], objective: Objective, random: Random
) -> None:
    shuffled = list(nodes)
    random.shuffle(shuffled)
    assert outcome(ask(profile, shuffled, objective)) == outcome(ask(profile, nodes, objective))


@several
@given(models(), some_nodes())
def test_feasible_stage_counts_are_those_of_exhaustive_search(
    profile: ModelProfile, nodes: list[NodeProfile]
) -> None:
    plans = every_plan(profile, nodes, in_flight=IN_FLIGHT)
    lengths = {len(pipe) for one in plans for pipe in one.pipelines}
    request = ask(profile, nodes, Objective.THROUGHPUT, (3, 3))
    assert feasible_stage_counts(request) == tuple(sorted(lengths))

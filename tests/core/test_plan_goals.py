"""Every objective, limits, weights and zones against exhaustive search; the front against all plans."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Set as AbstractSet

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.figures import burden, figure
from orchestrator.core.front import front
from orchestrator.core.goal import Goal, Weights, objectives_of
from orchestrator.core.limits import LIMIT_OF, KeepInput, Limits
from orchestrator.core.plan import Objective, Plan, PlanRequest, Predicted
from orchestrator.core.planner import plan
from shared.errors import PlanError
from shared.profile import ModelProfile, NodeProfile
from tests.core.plan_cases import models, priced_nodes, several
from tests.core.plan_oracle import Outcome, every_plan, sensible

IN_FLIGHT = 2
NEAR = 1e-9
LOOSE = 1e-7

weights = (
    st.lists(st.sampled_from(Objective), min_size=2, max_size=3, unique=True)
    .flatmap(
        lambda names: st.tuples(
            *(st.tuples(st.just(name), st.sampled_from([0.2, 1.0, 3.0])) for name in names)
        )
    )
    .map(Weights)
)
goals = st.one_of(st.sampled_from(Objective), weights)
limited = st.lists(
    st.tuples(st.sampled_from(Objective), st.sampled_from([0.9, 1.0, 1.1, 1.5])),
    max_size=3,
    unique_by=lambda pair: pair[0],
)


def burden_of(outcome: Outcome, objective: Objective) -> float:
    match objective:
        case Objective.THROUGHPUT:
            return 1.0 / outcome.throughput
        case Objective.LATENCY:
            return outcome.latency
        case Objective.ENERGY:
            return outcome.energy
        case Objective.COST:
            return outcome.cost
        case Objective.EXPOSURE:
            return outcome.exposure


def values(request: PlanRequest, plans: list[Outcome], goal: Goal) -> list[float]:
    """What the goal makes least, of each plan; the score by the words of `goal.py`."""
    if isinstance(goal, Objective):
        return [burden_of(one, goal) for one in plans]
    if not plans:
        return []
    work = request.profile.input_seconds + sum(b.seconds for b in request.profile.blocks)
    scores = [0.0] * len(plans)
    for objective, weight in goal.weights:
        figures = [burden_of(one, objective) for one in plans]
        best = unit = min(figures)
        if unit == 0.0:
            on_one_node = {
                Objective.ENERGY: [n.power_w * work / (n.cpu * n.speed) for n in request.nodes],
                Objective.COST: [
                    n.price_per_hour / 3.6 * work / (n.cpu * n.speed) for n in request.nodes
                ],
            }
            unit = max(on_one_node.get(objective, [1.0])) or 1.0
        for index, value in enumerate(figures):
            scores[index] += weight * (1 + (value - best) / unit)
    return scores


def keeps(outcome: Outcome, limits: Limits) -> bool:
    for objective in Objective:
        limit = limits.of(objective)
        if limit is None:
            continue
        most = 1 / limit if objective is Objective.THROUGHPUT else limit
        if burden_of(outcome, objective) > most * (1 + NEAR):
            return False
    return True


def entry_of(predicted: Predicted, pipelines: AbstractSet[object], plans: list[Outcome]) -> Outcome:
    """The oracle's own entry for a plan found; its figures must be the same."""
    (entry,) = (one for one in plans if set(one.pipelines) == pipelines)
    for objective in Objective:
        assert burden(predicted, objective) == pytest.approx(
            burden_of(entry, objective), rel=NEAR, abs=1e-15
        )
    return entry


def shape(found: Plan) -> set[object]:
    return {tuple((s.node, s.blocks) for s in pipe.stages) for pipe in found.pipelines}


def some_limits(plans: list[Outcome], pick: int, parts: list[tuple[Objective, float]]) -> Limits:
    """Limits around the figures of one of the plans, so that some plans keep them and some do not."""
    like = plans[pick % len(plans)]
    fields: dict[str, float] = {}
    for objective, factor in parts:
        value = burden_of(like, objective) * factor
        if objective is Objective.THROUGHPUT:
            value = 1.0 / value
        fields[LIMIT_OF[objective]] = min(value, 1.0) if objective is Objective.EXPOSURE else value
    return Limits(**fields)


def first_outside(profile: ModelProfile, limits: Limits, keep: int) -> int:
    """By the oracle's own arithmetic: the first block that may run outside."""
    if limits.max_exposure_ratio is None:
        return keep
    total = sum(block.macs for block in profile.blocks)
    for j in range(len(profile.blocks)):
        left = sum(block.macs for block in profile.blocks[j:])
        if (left / total if total else 1.0) <= limits.max_exposure_ratio * (1 + NEAR):
            return max(j, keep)
    return len(profile.blocks)


@several
@given(
    models(),
    priced_nodes(),
    goals,
    st.tuples(limited, st.integers(0, 10**6)),
    st.tuples(st.integers(0, 5), st.sampled_from([(1, 99), (1, 1), (2, 3), (1, 2)])),
)
def test_never_worse_than_exhaustive_search(
    profile: ModelProfile,
    nodes: list[NodeProfile],
    goal: Goal,
    around: tuple[list[tuple[Objective, float]], int],
    other: tuple[int, tuple[int, int]],
) -> None:
    (parts, pick), (depth, stages) = around, other
    any_plan = every_plan(profile, nodes, in_flight=IN_FLIGHT)
    limits = some_limits(any_plan, pick, parts) if any_plan else Limits()
    depth = min(depth, len(profile.blocks))
    request = PlanRequest(
        profile,
        tuple(nodes),
        goal,
        limits=limits,
        keep_input=KeepInput("default", depth) if depth else None,
        min_stages=stages[0],
        max_stages=stages[1],
        in_flight=IN_FLIGHT,
    )
    plans = every_plan(
        profile, nodes, in_flight=IN_FLIGHT, min_stages=stages[0], max_stages=stages[1],
        first_outside=first_outside(profile, limits, depth),
    )  # fmt: skip
    looked_at = {*objectives_of(goal), *limits.objectives}
    tracked = [str(one) for one in (Objective.LATENCY, Objective.ENERGY) if one in looked_at]
    if Objective.EXPOSURE in objectives_of(goal):
        tracked.append("exposure")
    scored = dict(zip([id(one) for one in plans], values(request, plans, goal), strict=True))
    allowed = [one for one in sensible(plans, tracked) if keeps(one, limits)]
    if not allowed:
        with pytest.raises(PlanError):
            plan(request)
        return
    found = plan(request)
    entry = entry_of(found.predicted, shape(found), plans)
    assert keeps(entry, limits)
    best = min(scored[id(one)] for one in allowed)
    assert scored[id(entry)] <= best * (1 + LOOSE)
    assert found.reached == pytest.approx(scored[id(entry)], rel=LOOSE, abs=1e-15)
    assert found.gap_ratio >= -LOOSE
    near = [one for one in allowed if scored[id(one)] <= best * (1 + NEAR / 10)]
    fastest = max(one.throughput for one in near)
    assert entry.throughput >= fastest * (1 - LOOSE)
    as_fast = [one.nodes for one in near if one.throughput >= entry.throughput * (1 - NEAR / 10)]
    assert entry.nodes <= min(as_fast, default=entry.nodes)
    for also in found.alternatives:
        lengths = [len(pipeline.stages) for pipeline in also.pipelines]
        if also.predicted is None or limits.broken(also.predicted):
            continue
        if stages[0] <= min(lengths) <= max(lengths) <= stages[1]:
            names = {tuple((s.node, s.blocks) for s in pipe.stages) for pipe in also.pipelines}
            assert scored[id(entry_of(also.predicted, names, plans))] >= best * (1 - LOOSE)


@several
@given(
    models(), priced_nodes(), limited, st.integers(0, 10**6),
    st.lists(st.sampled_from(Objective), min_size=2, max_size=4, unique=True),
)  # fmt: skip
def test_the_front_is_that_of_all_plans(
    profile: ModelProfile,
    nodes: list[NodeProfile],
    parts: list[tuple[Objective, float]],
    pick: int,
    objectives: list[Objective],
) -> None:
    any_plan = every_plan(profile, nodes, in_flight=IN_FLIGHT)
    limits = some_limits(any_plan, pick, parts) if any_plan else Limits()
    request = PlanRequest(profile, tuple(nodes), limits=limits, in_flight=IN_FLIGHT)
    looked_at = {*objectives, *limits.objectives}
    tracked = [str(one) for one in (Objective.LATENCY, Objective.ENERGY) if one in looked_at]
    if Objective.EXPOSURE in objectives:
        tracked.append("exposure")
    plans = every_plan(
        profile,
        nodes,
        in_flight=IN_FLIGHT,
        first_outside=first_outside(profile, limits, 0),
    )
    allowed = [one for one in sensible(plans, tracked) if keeps(one, limits)]
    if not allowed:
        with pytest.raises(PlanError):
            front(request, objectives)
        return
    found = front(request, objectives)
    assert found.objectives == tuple(objectives)
    points = [[burden(p.predicted, one) for one in objectives] for p in found.points]
    for a in points:
        for b in points:
            assert a is b or any(x < y for x, y in zip(a, b, strict=True))
    # Whatever plan there is, some point is as good in everything
    for one in allowed:
        mine = [burden_of(one, objective) for objective in objectives]
        assert any(
            all(x <= y * (1 + LOOSE) + 1e-15 for x, y in zip(point, mine, strict=True))
            for point in points
        )
    for point in found.points:
        assert not limits.broken(point.predicted)
        names = {tuple((s.node, s.blocks) for s in pipe.stages) for pipe in point.pipelines}
        entry_of(point.predicted, names, plans)


def best(request: PlanRequest) -> float:
    """Less is better; infinite where there is no plan."""
    try:
        return plan(request).reached
    except PlanError:
        return math.inf


better = st.tuples(
    st.integers(0, 3),
    st.sampled_from(["cpu", "memory_bytes", "up_bytes_per_s", "down_bytes_per_s"]),
    st.integers(2, 4),
)


@several
@given(models(), priced_nodes(4), st.sampled_from(Objective), better)
def test_a_better_node_never_makes_it_worse(
    profile: ModelProfile,
    nodes: list[NodeProfile],
    objective: Objective,
    change: tuple[int, str, int],
) -> None:
    which, field, factor = change
    old = nodes[which % len(nodes)]
    new = dataclasses.replace(old, **{field: getattr(old, field) * factor})
    changed = [new if one is old else one for one in nodes]
    before, after = (
        best(PlanRequest(profile, tuple(n), objective, in_flight=IN_FLIGHT))
        for n in (nodes, changed)
    )
    assert after <= before * (1 + LOOSE)


@several
@given(models(), priced_nodes(4), st.sampled_from(Objective), limited, st.integers(0, 10**6))
def test_another_node_never_makes_it_worse(
    profile: ModelProfile,
    nodes: list[NodeProfile],
    objective: Objective,
    parts: list[tuple[Objective, float]],
    pick: int,
) -> None:
    plans = every_plan(profile, nodes[:3], in_flight=IN_FLIGHT)
    limits = some_limits(plans, pick, parts) if plans else Limits()
    before, after = (
        best(PlanRequest(profile, tuple(n), objective, limits=limits, in_flight=IN_FLIGHT))
        for n in (nodes[:-1], nodes)
    )
    assert after <= before * (1 + LOOSE)


@several
@given(models(), priced_nodes(), st.sampled_from(Objective))
def test_the_bound_holds(
    profile: ModelProfile, nodes: list[NodeProfile], objective: Objective
) -> None:
    try:
        found = plan(PlanRequest(profile, tuple(nodes), objective, in_flight=IN_FLIGHT))
    except PlanError:
        return
    assert found.gap_ratio >= -NEAR
    assert found.lower_bound <= burden(found.predicted, objective) * (1 + NEAR)
    assert figure(found.predicted, objective) >= 0.0

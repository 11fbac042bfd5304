"""Limits and zones by hand: what the plan is, why others lost, and what is said where none can be had."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.core.front import front
from orchestrator.core.goal import parse_goal
from orchestrator.core.limits import KeepInput, Limits
from orchestrator.core.plan import Objective, Plan, PlanRequest, Strategy
from orchestrator.core.planner import plan
from shared.errors import ConfigurationError, PlanError
from tests.core.plan_cases import model, node

MB = 1_000_000
TEN = model([0.01] * 10, weights=[10 * MB] * 10)
FAST = node("fast", 2.0, price_per_hour=3.6, power_w=40.0, zone="cloud")
SLOW = node("slow", 1.0, price_per_hour=0.36, power_w=5.0, zone="home")
TINY = node("tiny", 0.25, zone="home", power_w=2.0)


def ask(**other: Any) -> PlanRequest:
    return PlanRequest(TEN, (FAST, SLOW, TINY), **({"in_flight": 1} | other))


def shape(found: Plan) -> list[list[tuple[str, tuple[int, int]]]]:
    return [[(stage.node, stage.blocks) for stage in pipe.stages] for pipe in found.pipelines]


@pytest.mark.parametrize(
    ("goal", "nodes"),
    [
        ("throughput", ["fast", "slow", "tiny"]),
        ("latency", ["fast"]),
        ("energy", ["slow"]),  # 0.5 J against 2.0 J and 0.8 J
        ("cost", ["tiny"]),
        ("exposure", ["slow", "tiny"]),
        ("latency=1,cost=0.001", ["fast"]),
        ("latency=0.001,cost=1", ["tiny"]),
    ],
)
def test_what_each_goal_chooses(goal: str, nodes: list[str]) -> None:
    found = plan(ask(objective=parse_goal(goal), input_zone="home"))
    assert sorted(stage.node for pipe in found.pipelines for stage in pipe.stages) == nodes
    assert str(found.objective) == str(parse_goal(goal))


def test_a_limit_leaves_out_what_is_too_slow() -> None:
    found = plan(ask(limits=Limits(max_latency_s=0.2)))
    assert shape(found)[:1] == [[("fast", (0, 10))]]
    assert found.predicted.latency_s <= 0.2
    # Tiny cannot hold the whole in time; a pipeline with it may
    assert found.predicted.throughput_per_s >= 30.0 * (1 - 1e-9)
    reasons = {other.kind: other.reason for other in found.alternatives}
    assert reasons["replicate"] == "breaks the limit: 400 ms against 200 ms"
    found = plan(ask(limits=Limits(max_energy_j=0.6)))
    reasons = {other.kind: other.reason for other in found.alternatives}
    assert reasons["without limits"].startswith("breaks the limit: ")
    assert reasons["without limits"].endswith(" J against 0.6 J")


def test_a_limit_that_does_not_bind_changes_nothing() -> None:
    assert shape(plan(ask(limits=Limits(max_latency_s=9.0)))) == shape(plan(ask()))


def test_the_input_stays_in_its_zone() -> None:
    home = {"broker_zone": "home", "orchestrator_zone": "home", "keep_input": KeepInput("home")}
    found = plan(ask(**home, objective=Objective.LATENCY))
    # The first block at home, the rest where it is fastest
    assert shape(found) == [[("slow", (0, 1)), ("fast", (1, 10))]]
    assert found.predicted.exposure_ratio == pytest.approx(0.9)
    deep = plan(ask(**(home | {"keep_input": KeepInput("home", 10)})))
    assert {stage.node for pipe in deep.pipelines for stage in pipe.stages} == {"slow", "tiny"}
    by_ratio = plan(ask(input_zone="home", limits=Limits(max_exposure_ratio=0.35)))
    first = {pipe.stages[0].node for pipe in by_ratio.pipelines}
    assert first <= {"slow", "tiny"}
    assert by_ratio.predicted.exposure_ratio <= 0.35


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"limits": Limits(max_latency_s=0.02)},
            "max_latency 20 ms cannot be had: the fastest plan takes 50 ms",
        ),
        (
            {"limits": Limits(min_throughput_per_s=100.0)},
            "min_throughput 100 jobs/s cannot be had: the best plan has 32.5 jobs/s",
        ),
        (
            {"limits": Limits(max_energy_j=0.1)},
            "max_energy 0.1 J cannot be had: the most frugal plan takes 0.5 J",
        ),
        (
            {"limits": Limits(max_latency_s=0.06, max_energy_j=0.6)},
            "max_latency 60 ms cannot be had with max_energy 0.6 J: the fastest plan takes",
        ),
        (
            {"keep_input": KeepInput("home"), "broker_zone": "cloud", "orchestrator_zone": "home"},
            "broker is in zone 'cloud': keeping the input in zone 'home' is refused",
        ),
        (
            {"keep_input": KeepInput("home")},
            "broker is in zone 'default' and orchestrator is in zone 'default'",
        ),
        (
            {"keep_input": KeepInput("hme"), "broker_zone": "hme", "orchestrator_zone": "hme"},
            "zone 'hme' has no node; zones are: cloud, home",
        ),
        (
            {"strategy": Strategy.REPLICATE, "limits": Limits(max_latency_s=0.2)},
            "strategy replicate breaks the limit: 400 ms against 200 ms",
        ),
    ],
)
def test_what_cannot_be_had_and_what_is_nearest(other: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as error:
        plan(ask(**other))
    assert error.value.message.startswith(message)
    assert error.value.expected
    assert error.value.got


def test_a_zone_too_small_for_what_is_to_stay_in_it() -> None:
    home = {"broker_zone": "home", "orchestrator_zone": "home"}
    nodes = (node("a", zone="home", memory_bytes=40 * MB), node("b", zone="cloud"))
    request = PlanRequest(TEN, nodes, keep_input=KeepInput("home", 5), in_flight=1, **home)  # type: ignore[arg-type]
    with pytest.raises(PlanError) as error:
        plan(request)
    assert error.value.message == (
        "the nodes of zone 'home' cannot hold the first 5 blocks of toy, from which nothing is to "
        "leave; at most the first 3 can stay there"
    )
    private = PlanRequest(
        TEN, nodes, input_zone="home", limits=Limits(max_exposure_ratio=0.5), in_flight=1
    )
    with pytest.raises(PlanError) as error:
        plan(private)
    assert error.value.message == (
        "max_exposure 50% exposed cannot be had: the least exposed plan is 70% exposed"
    )


def test_single_within_limits_and_zones() -> None:
    found = plan(ask(strategy=Strategy.SINGLE, limits=Limits(max_energy_j=1.0)))
    assert shape(found) == [[("slow", (0, 10))]]
    home = {"broker_zone": "home", "orchestrator_zone": "home", "keep_input": KeepInput("home")}
    assert shape(plan(ask(**home, strategy=Strategy.SINGLE))) == [[("slow", (0, 10))]]


def test_a_front_by_hand() -> None:
    found = front(ask(max_stages=1), (Objective.LATENCY, Objective.ENERGY))
    names = [{s.node for p in point.pipelines for s in p.stages} for point in found.points]
    # Best first by latency. Both together have slow's latency and more than its energy
    assert names == [{"fast"}, {"slow"}]
    assert found.notes == ()
    with pytest.raises(ConfigurationError, match="two or more objectives"):
        front(ask(), (Objective.LATENCY,))
    with pytest.raises(ConfigurationError, match="two or more objectives"):
        front(ask(), (Objective.LATENCY, Objective.LATENCY))
    with pytest.raises(PlanError, match="max_latency 20 ms cannot be had"):
        front(ask(limits=Limits(max_latency_s=0.02)), (Objective.LATENCY, Objective.COST))
    with pytest.raises(PlanError, match="no node to plan for"):
        front(PlanRequest(TEN, ()), (Objective.LATENCY, Objective.COST))

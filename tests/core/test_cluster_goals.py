"""Goals, limits and zones that a model was asked for with: planned for, kept, and refused in words."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.core.cluster import ClusterSettings
from orchestrator.core.cluster_settings import Zones
from shared.errors import ErrorCode
from tests.core.cluster_world import World, entry

WHOLE_S = 0.061
"""Six blocks of 10 ms and a millisecond for two messages."""


def world_of(zones: Zones | None = None, **nodes: dict[str, Any]) -> World:
    world = World(ClusterSettings(zones=zones or Zones()))
    for name, values in nodes.items():
        world.join(name, **values)
    return world


def serving(world: World, **options: Any) -> World:
    world.serve(entry(**options))
    world.settle()
    assert world.state().state == "serving", world.state().reason
    return world


def test_the_least_energy_and_then_the_least_money() -> None:
    nodes: dict[str, dict[str, Any]] = {
        "fast": {"power_w": 50.0, "price_per_hour": 0.36},
        "thrifty": {"power_w": 5.0, "price_per_hour": 3.6, "cpu": 0.5},
    }
    world = serving(world_of(None, **nodes), objective="energy")
    assert world.stages() == [["thrifty"]]
    predicted = world.state().predicted
    assert predicted.energy_j == pytest.approx(5.0 * 2 * WHOLE_S, rel=0.01)
    assert predicted.cost_per_1000 == pytest.approx(1000 * 0.001 * 2 * WHOLE_S, rel=0.01)
    world.serve(entry(objective="cost"))
    world.settle()
    assert world.stages() == [["fast"]]
    assert world.state().options.objective == "cost"


def test_goals_and_limits_outlive_the_orchestrator() -> None:
    world = serving(
        world_of(a={"power_w": 5.0}, b={"power_w": 9.0}),
        objective="energy=0.7,latency=0.3",
        max_latency_s=0.2,
    )
    before = world.state()
    world.restart({"a" * 64: entry()})
    world.settle()
    assert world.state().options == before.options
    assert world.stages() == [["a"]]
    world.kill("a")
    world.settle()
    assert world.stages() == [["b"]]


def test_a_limit_that_cannot_be_kept_is_named_with_the_nearest_there_is() -> None:
    world = world_of(a={})
    world.serve(entry(max_latency_s=0.05), timeout_s=3)
    world.wait(4)
    (end,) = world.finished()
    assert end.code is ErrorCode.UNAVAILABLE
    assert end.error is not None
    assert "50 ms" in end.error
    assert "60.6 ms" in end.error
    assert world.state().state == "unserved"


def test_a_plan_that_comes_to_break_a_limit_is_left() -> None:
    nodes: dict[str, dict[str, Any]] = {
        "cheap": {"price_per_hour": 1.0},
        "dear": {"price_per_hour": 9.0},
    }
    world = serving(world_of(None, **nodes), objective="cost", max_latency_s=0.1, max_stages=1)
    assert world.stages() == [["cheap"]]
    world.calibrate("cheap", 0.5)
    world.settle()
    world.wait(120)
    assert world.stages() == [["dear"]]
    assert "breaks the limit: 121.2 ms against 100 ms" in world.state().reason


def test_the_lowest_latency_that_reaches_the_rate() -> None:
    world = serving(world_of(a={}, b={"cpu": 0.5}), objective="latency")
    assert world.stages() == [["a"]]
    world.serve(entry(objective="latency", rate_per_s=20.0))
    world.settle()
    assert [sorted(nodes) for nodes in world.stages()] == [["a", "b"]], (
        "80 ms in two stages; b alone would take 120"
    )
    reached = world.state().predicted.throughput_per_s
    assert reached is not None
    assert reached >= 20.0
    assert world.finished()[-1].error is None


def test_a_rate_that_cannot_be_reached_gets_all_there_is_whatever_the_goal() -> None:
    world = world_of(a={}, b={}, c={"cpu": 0.1})
    world.serve(entry(objective="latency", rate_per_s=1000.0), timeout_s=3)
    world.settle()
    world.wait(4)
    assert len([stage for pipeline in world.stages() for stage in pipeline]) == 3
    end = world.finished()[-1]
    assert end.error is not None
    assert "of the 1000 jobs/s asked for: the most that 3 nodes have left" in end.error


HOME = Zones(orchestrator="home", broker="home")


def test_the_input_stays_in_its_zone_and_as_deep_as_was_asked() -> None:
    nodes: dict[str, dict[str, Any]] = {
        "near": {"zone": "home", "cpu": 0.2},
        "far": {"zone": "cloud"},
    }
    world = serving(world_of(HOME, **nodes), keep_input_in="home")
    first = world.state().pipelines[0].stages[0]
    assert all(pipeline.stages[0].node == "near" for pipeline in world.state().pipelines)
    assert first.blocks[1] < 6, "what follows may leave"
    serving(world, keep_input_in="home:50%")
    assert all(pipeline.stages[0].blocks[1] >= 3 for pipeline in world.state().pipelines)
    exposed = world.state().predicted.exposure_ratio
    assert exposed is not None
    assert exposed <= 0.5
    world.kill("near")
    world.settle()
    assert world.state().state == "unserved", "rather not at all than outside"
    assert "'home'" in world.state().reason


@pytest.mark.parametrize(
    ("zones", "said"),
    [
        (Zones(orchestrator="home", broker="cloud"), "the broker in 'cloud'"),
        (Zones(orchestrator="cloud", broker="home"), "the orchestrator in 'cloud'"),
    ],
)
def test_input_is_not_kept_where_it_has_to_cross_another_zone(zones: Zones, said: str) -> None:
    world = world_of(zones, a={"zone": "home"})
    world.serve(entry(keep_input_in="home"))
    (end,) = world.finished()
    assert end.code is ErrorCode.BAD_INPUT
    assert end.error is not None
    assert said in end.error
    assert not world.cluster.models


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "speed"},
        {"objective": "latency=1,latency=2"},
        {"max_latency_s": 0.0},
        {"max_exposure_ratio": 1.5},
        {"min_throughput_per_s": -1.0},
        {"keep_input_in": ""},
        {"keep_input_in": "default:99"},
    ],
)
def test_what_makes_no_sense_is_refused_at_once(options: dict[str, Any]) -> None:
    world = world_of(a={})
    world.serve(entry(**options))
    (end,) = world.finished()
    assert end.code is ErrorCode.BAD_INPUT
    assert not world.cluster.models

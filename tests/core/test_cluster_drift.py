"""Measured stage times: worth a switch when they really change, and never for noise."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.core.cluster_events import StageMeasured
from tests.core.cluster_checks import assert_valid
from tests.core.cluster_weather import Truth, Weather, live
from tests.core.cluster_world import World, entry


@dataclass(frozen=True)
class Place:
    """A stage that runs."""

    pipeline: str
    generation: int
    stage: int
    node: str
    blocks: int


def placed(world: World) -> list[Place]:
    active = world.served().active
    if active is None:
        return []
    return [
        Place(active.names[index], active.number, number, s.node, s.blocks[1] - s.blocks[0])
        for index, pipeline in active.running()
        for number, s in enumerate(pipeline.stages)
    ]


def measured(now: float, place: Place, factor: float) -> StageMeasured:
    """The dispatcher's second: the stage's CPU time is `factor` times the profile's."""
    seconds = 0.01 * place.blocks * factor
    return StageMeasured(
        now, "m", place.pipeline, place.generation, place.stage, place.node, 20, seconds, seconds
    )


def run(world: World, seconds: int, factor: Callable[[str], float]) -> int:
    """How many generations came up in a time with measurements."""
    before = world.state().generation
    for _ in range(seconds):
        world.wait(1)
        for place in placed(world):
            world.send(measured(world.now, place, factor(place.node)))
    return world.state().generation - before


def three(**options: Any) -> World:
    world = World()
    world.join("a", cpu=0.5)
    world.join("b", cpu=0.3)
    world.join("c", cpu=0.2)
    world.serve(entry(**options))
    world.settle()
    return world


HOURS = settings(
    max_examples=int(os.environ.get("AMP4EC_HOURS", "1")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""An hour takes 5 to 15 s; `AMP4EC_HOURS=100` lives through a hundred of each."""
SEEDS = st.integers(0, 10**6)


def bottleneck(world: World) -> str:
    active = world.served().active
    assert active is not None
    stages = [stage for pipeline in active.pipelines() for stage in pipeline.stages]
    return max(stages, key=lambda stage: stage.period_s).node


@pytest.mark.parametrize("least", [None, 2, 3])
@HOURS
@given(seed=SEEDS)
def test_an_hour_of_noise_switches_nothing(least: int | None, seed: int) -> None:
    world = three(min_stages=least)
    assert live(world, 3600, Weather(seed)) == 0
    assert_valid(world.cluster)


@pytest.mark.parametrize("what", [Truth(slower=1 / 0.7), Truth(left=0.7)])
@HOURS
@given(seed=SEEDS)
def test_a_real_change_of_the_bottleneck_switches_once(what: Truth, seed: int) -> None:
    """Its CPU became slower by 30 %, or a neighbour takes 30 % of it."""
    world = three(min_stages=3)
    slow = bottleneck(world)
    weather = Weather(seed)
    assert live(world, 600, weather) == 0
    assert live(world, 3000, weather, lambda _, node: what if node == slow else Truth()) == 1
    assert "what is measured has changed; predicted gain" in world.state().reason


@pytest.mark.parametrize("what", [Truth(slower=2.0), Truth(left=0.5)])
@HOURS
@given(seed=SEEDS)
def test_what_passes_within_seconds_switches_nothing(what: Truth, seed: int) -> None:
    world = three(min_stages=3)
    slow = bottleneck(world)

    def passing(second: int, node: str) -> Truth:
        return what if node == slow and second % 300 < 10 else Truth()

    assert live(world, 1800, Weather(seed), passing) == 0


def test_a_node_that_is_left_to_itself_again_is_used_again() -> None:
    """Half of it was taken, so it got nothing to do; that its neighbour is gone only telemetry can tell."""
    world = World()
    world.join("a", cpu=1.0)
    world.join("b", cpu=0.8)
    world.serve(entry(strategy="single"))
    world.settle()
    assert world.stages() == [["a"]]

    def taken(second: int, node: str) -> Truth:
        return Truth(left=0.5) if node == "a" else Truth()

    world.agents["a"].figures = world.agents["b"].figures = {"cpu_others_ratio": 0.5}
    assert live(world, 300, Weather(1), taken) == 1
    assert world.stages() == [["b"]]
    assert live(world, 1200, Weather(2), taken) == 0
    world.agents["a"].figures = {"cpu_others_ratio": 0.05}
    assert live(world, 300, Weather(3)) == 1
    assert world.stages() == [["a"]]


def test_a_node_that_became_slow_gets_less() -> None:
    world = three(min_stages=3)
    before = world.stages()

    def slow(node: str) -> float:
        return 3.0 if node == "a" else 1.0

    assert run(world, 40, slow) == 0, "not while it may pass"
    assert run(world, 20, slow) == 1
    assert "what is measured has changed; predicted gain" in world.state().reason
    assert run(world, 300, slow) == 0
    assert world.stages() != before or world.state().generation == 2


def test_a_model_that_looks_better_wherever_it_is_not_does_not_wander_for_ever() -> None:
    """Speeds that depend on where it runs: each switch is regretted, so they become rare."""
    world = World()
    world.join("a", "b")
    world.serve(entry(strategy="single"))
    world.settle()
    visited: list[str] = []

    def regretted(node: str) -> float:
        if visited[-1:] != [node]:
            visited.append(node)
        return float(1.3 ** len(visited))

    # After 30, 60 and 120 s; a cool-down that stays the same would let it switch six times.
    assert run(world, 400, regretted) == 3

"""Measured stage times: worth a switch when they really change, and never for noise."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.core.cluster_events import Event, NodeHeard, StageMeasured, Tick
from tests.core.cluster_checks import assert_valid
from tests.core.cluster_world import World, entry, telemetry


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


@pytest.mark.parametrize("least", [None, 2, 3])
def test_an_hour_of_noise_switches_nothing(least: int | None) -> None:
    noise = random.Random(1)
    world = three(min_stages=least)
    places = placed(world)
    for second in range(3600):
        events: list[Event] = [Tick(world.now + second)]
        events += [NodeHeard(world.now + second, telemetry(name)) for name in world.agents]
        events += [measured(world.now + second, place, noise.uniform(0.9, 1.1)) for place in places]
        # Straight to the core: nothing is done, so there is nothing to check.
        assert all(world.cluster.step(event) == [] for event in events)
    assert_valid(world.cluster)


def test_a_node_that_became_slow_gets_less() -> None:
    world = three(min_stages=3)
    before = world.stages()

    def slow(node: str) -> float:
        return 3.0 if node == "a" else 1.0

    assert run(world, 29, slow) == 0, "not while the last switch cools down"
    assert run(world, 31, slow) == 1
    assert "the measured speeds changed; predicted gain" in world.state().reason
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

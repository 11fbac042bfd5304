"""How far apart ticks are: seldom while nothing is under way, and nothing is noticed later for it."""

from __future__ import annotations

import pytest

from orchestrator.core.cluster_events import NodeHeard, ServeAsked
from orchestrator.core.pace import BUSY_S, QUIET_S
from tests.core.cluster_world import World, entry, telemetry

EACH_S = 0.01


def served() -> World:
    world = World()
    world.join("a", "b", speed=1.0)
    world.serve(entry(min_stages=2))
    world.settle()
    return world


def hear(world: World, *names: str) -> None:
    for name in names:
        world.send(NodeHeard(world.now, telemetry(name)))


def pace(world: World) -> float:
    return world.cluster.next_tick_s(world.now)


def lost_after_s(world: World, node: str, phase_s: float, *, paced: bool) -> float:
    """When the core says so, in the simulation's seconds, for ticks as asked for or all alike and close."""
    world.agents[node].mute = True
    hear(world, *world.agents)
    silent_since, due, others_due = world.now, world.now + phase_s, world.now + 1.0
    while not world.told("node_left"):
        assert world.now - silent_since < 10.0
        world.now += EACH_S
        if world.now >= others_due:
            hear(world, *(name for name in world.agents if name != node))
            others_due += 1.0
        if world.now >= due:
            world.tick()
            due = world.now + (pace(world) if paced else BUSY_S)
    return world.now - silent_since


def test_nothing_under_way_is_looked_at_seldom() -> None:
    world = served()
    hear(world, "a", "b")
    assert pace(world) == QUIET_S


@pytest.mark.parametrize("phase_s", [0.0, 0.04, 0.09, 0.13, 0.2, 0.24])
def test_a_silent_node_is_noticed_as_soon_as_with_ticks_that_are_always_close(
    phase_s: float,
) -> None:
    close = lost_after_s(served(), "b", phase_s, paced=False)
    assert lost_after_s(served(), "b", phase_s, paced=True) <= close + BUSY_S + EACH_S


def test_a_load_a_drain_and_who_waits_are_looked_at_often() -> None:
    world = World(restoring=True)
    assert pace(world) == BUSY_S, "what is retained is not known yet"
    world = World()
    world.send(ServeAsked(world.now, "1", entry(), world.now + 60.0))
    assert pace(world) == BUSY_S, "somebody waits for a node"
    world = World()
    world.join("a", "b")
    world.serve(entry())
    assert pace(world) == BUSY_S, "it loads"
    world.settle()
    hear(world, "a", "b")
    assert pace(world) == QUIET_S
    world.drain(next(iter(world.stages()[0])))
    assert pace(world) == BUSY_S, "a node is drained"
    world.settle()
    hear(world, "a", "b")
    assert pace(world) == QUIET_S

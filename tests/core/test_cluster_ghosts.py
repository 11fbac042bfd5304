"""Nodes that come and go, and nodes that are gone for good."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import ghosts
from orchestrator.core.cluster_events import (
    AssignmentSeen,
    ClearAssignment,
    ForgetNode,
    NodeBorn,
    NodeDied,
    NodeHeard,
    PushAssignment,
)
from orchestrator.core.cluster_settings import ClusterSettings
from tests.core.cluster_world import MB, Death, World, birth, death, entry, telemetry

HOUR_S = 3600.0
FLAP_S = 2.0


def flap(world: World, name: str, seconds: float, state: Death = "lost") -> None:
    """The node is there for two seconds and away for two, until time is over; away at the end."""
    for _ in range(round(seconds / (2 * FLAP_S))):
        world.join(name, speed=1.0)
        world.settle()
        world.wait(FLAP_S, step_s=1.0)
        world.kill(name, state)
        world.wait(FLAP_S, step_s=1.0)


@pytest.mark.parametrize(("state", "seconds", "times"), [("lost", HOUR_S, 20), ("offline", 300, 6)])
def test_an_hour_of_flapping_costs_a_few_plans(state: Death, seconds: float, times: int) -> None:
    world = World()
    world.join("a", "b", speed=1.0)
    world.serve(entry())
    world.settle()
    flap(world, "c", seconds, state)
    left_out = world.told("node_left_out")
    assert left_out[0].text == "node c comes and goes: left out of plans for 10 s"
    assert times / 2 <= len(left_out) <= times
    # Each time that it may be used costs one plan with it and one without.
    assert len(world.told("replanned")) <= 1 + 2 * (len(left_out) + 3)
    assert world.served().active is not None


def test_who_is_left_out_is_used_at_once_where_nothing_fits_without_it() -> None:
    world = World()
    world.join("a", speed=1.0, memory=25 * MB)
    flap(world, "b", 12.0)
    assert world.told("node_left_out")
    world.join("b", speed=1.0)
    world.serve(entry(weight=5 * MB))
    world.settle()
    assert "b" in world.stages()[0]
    assert world.cluster.standings(world.now)["b"].state == "left_out"


def test_who_was_left_out_is_used_again_once_it_has_stayed() -> None:
    world = World()
    world.join("a", speed=1.0)
    world.serve(entry())
    world.settle()
    flap(world, "b", 12.0)
    world.join("b", speed=1.0)
    world.settle()
    world.wait(5.0)
    assert world.stages() == [["a"]]
    world.wait(60.0)
    assert [tell.node for tell in world.told("node_readmitted")] == ["b"]
    assert sorted(world.stages()) == [["a"], ["b"]]
    assert world.cluster.standings(world.now) == {}


# --- gone for good


def forgetting(after_s: float = 60.0) -> World:
    world = World(ClusterSettings(forget_after_s=after_s))
    world.join("a", "b", speed=1.0)
    world.serve(entry())
    world.settle()
    return world


@pytest.mark.parametrize(("state", "after_s"), [("lost", 60.0), ("offline", 10.0)])
def test_a_node_that_does_not_come_back_is_forgotten(state: Death, after_s: float) -> None:
    world = forgetting()
    world.kill("b", state)
    died = world.now
    world.wait(after_s - 1.0)
    standing = world.cluster.standings(world.now)["b"]
    assert (standing.state, standing.for_s, standing.until_s) == (state, after_s - 1.0, 1.0)
    actions = world.wait(2.0)
    assert ForgetNode("b") in actions
    assert set(world.cluster.nodes) == {"a"}
    assert world.cluster.standings(world.now) == {}
    how = "left" if state == "offline" else "was lost"
    assert world.told("node_forgotten")[0].text == f"node b {how} and did not come back"
    assert world.now - died <= after_s + 1.0
    world.join("b", speed=1.0)
    world.settle()
    world.wait(60.0)
    assert sorted(world.stages()) == [["a"], ["b"]]


def test_a_silent_node_is_forgotten_too_and_heard_of_again_only_after_a_birth() -> None:
    world = forgetting()
    world.agents["b"].mute = True
    world.wait(70.0)
    assert set(world.cluster.nodes) == {"a"}
    world.send(NodeHeard(world.now, telemetry("b")))
    assert set(world.cluster.nodes) == {"a"}
    world.send(NodeBorn(world.now, world.agents["b"].state))
    assert world.cluster.nodes["b"].alive


def test_what_is_retained_of_nobody_is_cleared_unless_somebody_turns_up() -> None:
    world = forgetting()
    world.send(AssignmentSeen(world.now, "ghost", 7))
    world.send(AssignmentSeen(world.now, "late", 8))
    world.send(NodeDied(world.now, death("stranger")))
    world.wait(30.0)
    world.join("late")
    actions = world.wait(31.0)
    assert {a.node for a in actions if isinstance(a, ForgetNode)} == {"ghost", "stranger"}


def test_who_holds_nothing_and_knows_it_has_nothing_retained() -> None:
    world = World()
    world.join("a", "b", speed=1.0)
    world.serve(entry(max_stages=1, strategy="single"))
    world.settle()
    cleared = [a.node for a in world.log if isinstance(a, ClearAssignment)]
    assert cleared.count("b") == 1
    (used,) = world.stages()[0]
    assert used == "a"
    count = len(cleared)
    world.report("b")
    assert len([a for a in world.log if isinstance(a, ClearAssignment)]) == count, "once is enough"
    world.stop()
    world.settle()
    assert [a.node for a in world.log if isinstance(a, ClearAssignment)][count:] == ["a"]


def test_an_old_report_clears_nothing() -> None:
    world = World()
    world.join("a", speed=1.0)
    early = world.agents["a"].revision - 1
    world.agents["a"].revision = early
    world.report("a")
    assert not [a for a in world.log if isinstance(a, ClearAssignment)]


def test_a_flood_of_invented_nodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghosts, "MOST_NODES", 20)
    world = forgetting(HOUR_S)
    for number in range(100):
        world.send(NodeBorn(world.now, birth(f"x{number}")))
        world.send(AssignmentSeen(world.now, f"y{number}", 1))
        world.send(NodeDied(world.now, death(f"z{number}")))
    assert len(world.cluster.nodes) == 20
    refused = world.told("birth_refused")
    assert refused
    assert "20 nodes are here already" in refused[0].text
    # They do not answer; then there is room for somebody who is not invented.
    world.wait(10.0)
    forgotten = len(world.told("node_forgotten"))
    world.join("real", speed=1.0)
    assert world.cluster.nodes["real"].alive
    assert len(world.told("node_forgotten")) == forgotten + 1
    assert len(world.cluster.nodes) == 20


def test_only_those_gone_last_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghosts, "MOST_TOLD", 2)
    world = forgetting()
    for number in range(4):
        world.wait(1.0)
        world.send(NodeDied(world.now, death(f"x{number}")))
    assert set(world.cluster.standings(world.now)) == {"x2", "x3"}


def test_a_birth_after_being_forgotten_begins_with_an_assignment() -> None:
    world = forgetting()
    world.kill("b")
    world.wait(61.0)
    world.agents["b"] = replace(world.agents["b"], up=True)
    actions = world.send(NodeBorn(world.now, world.agents["b"].state))
    assert "b" in {a.node for a in actions if isinstance(a, PushAssignment)}

"""A broker's end is not the end of its nodes."""

from __future__ import annotations

from orchestrator.doubts import GRACE_S, LIVE_S, Doubts
from shared.messages.node import NodeState


def lost(node: str = "a", incarnation: int = 1) -> NodeState:
    return NodeState(state="lost", node=node, incarnation=incarnation)


def online(node: str = "a", incarnation: int = 1) -> NodeState:
    return NodeState(state="online", node=node, incarnation=incarnation)


def test_a_node_that_dies_is_dead_within_a_moment() -> None:
    doubts = Doubts()
    doubts.connected(0.0)
    doubts.lost(10.0, lost(), retained=False)
    assert doubts.believed(10.0, connected=True) == []
    assert doubts.believed(10.0 + LIVE_S, connected=True) == [lost()]
    assert doubts.believed(11.0, connected=True) == []


def test_at_the_first_connection_the_dead_are_dead() -> None:
    doubts = Doubts()
    doubts.connected(0.0)
    doubts.lost(0.1, lost(), retained=True)
    assert doubts.believed(0.1, connected=True) == [lost()]
    assert doubts.settled(0.1, connected=True)


def test_a_broker_that_stops_takes_nobody_with_it() -> None:
    doubts = Doubts()
    doubts.connected(0.0)
    doubts.lost(10.0, lost("a"), retained=False)
    doubts.lost(10.0, lost("b"), retained=False)
    assert doubts.believed(10.1, connected=False) == []
    assert not doubts.settled(10.1, connected=False)
    doubts.connected(11.1)
    doubts.lost(11.1, lost("a"), retained=True)
    doubts.lost(11.1, lost("c"), retained=True)
    doubts.born(online("a"))
    doubts.born(online("c", incarnation=0))  # of an earlier life: says nothing of this one
    assert doubts.believed(11.1 + 0.9 * GRACE_S, connected=True) == []
    assert not doubts.settled(11.1 + 0.9 * GRACE_S, connected=True)
    dead = doubts.believed(11.2 + GRACE_S, connected=True)
    assert [state.node for state in dead] == ["b", "c"]
    assert doubts.settled(11.2 + GRACE_S, connected=True)


def test_the_grace_is_no_longer_after_a_long_outage() -> None:
    doubts = Doubts()
    doubts.connected(0.0)
    assert not doubts.believed(10.0, connected=False)
    doubts.connected(1000.0)
    assert not doubts.settled(999.9 + GRACE_S, connected=True)
    assert doubts.settled(1000.0 + GRACE_S, connected=True)


def test_a_node_that_dies_soon_after_is_not_waited_for() -> None:
    doubts = Doubts()
    doubts.connected(0.0)
    doubts.connected(10.0)
    doubts.lost(10.5, lost(), retained=False)
    assert doubts.believed(10.5 + LIVE_S, connected=True) == [lost()]

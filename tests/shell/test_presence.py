"""Silent nodes are asked, and nothing is left of those that are gone: the orchestrator on the fake wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from shared.codec import encode_json
from shared.messages.node import Calibration, NodeState
from shared.messages.stage import Assignment
from tests.fakes.cluster import FakeAgent, until
from tests.shell.orchestrator_world import TOPICS, World, world_in

CALIBRATED = {"torch": Calibration(seconds={"conv_dense": 0.1}, runtime_bytes=1)}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as world:
        yield world


def quick(world: World, name: str) -> FakeAgent:
    """One whose telemetry is overdue soon; it never sends any."""
    agent = FakeAgent(TOPICS, world.control, name)
    agent.state = replace(agent.state, telemetry_interval_s=0.1, calibration=CALIBRATED)
    return agent


async def test_who_is_silent_is_asked_and_who_does_not_answer_is_lost(world: World) -> None:
    answers, deaf = quick(world, "answers"), quick(world, "deaf")
    deaf.deaf = True
    async with world.orchestrator(), answers.running(), deaf.running():
        await until(lambda: world.operator.told("node_left"))
        (left,) = world.operator.told("node_left")
        assert left.node == "deaf"
        assert "does not answer" in (left.reason or "")
        deaf.deaf = False
        await deaf.report()
        await until(lambda: len(world.operator.told("node_joined")) == 3)
        assert world.operator.told("node_joined")[-1].text == "node deaf answers again"


async def test_a_node_with_nothing_to_hold_has_nothing_retained(world: World) -> None:
    async with world.orchestrator(), world.agents("a"):
        topic = TOPICS.topic("assignment", node="a")
        await until(
            lambda: world.operator.told("node_joined") and topic not in world.broker.retained
        )


async def test_nothing_is_left_of_those_that_are_gone_for_good(world: World) -> None:
    world.options = replace(
        world.options, cluster=replace(world.options.cluster, forget_after_s=0.3)
    )
    gone = [
        (
            TOPICS.topic("node_state", node="gone"),
            NodeState(state="lost", node="gone", incarnation=1),
        ),
        (TOPICS.topic("assignment", node="gone"), Assignment(node="gone", revision=1)),
        (TOPICS.topic("artifact_probe", peer="gone"), "what a probe leaves"),
        (TOPICS.topic("assignment", node="nobody"), Assignment(node="nobody", revision=2)),
    ]
    for topic, value in gone:
        world.broker.publish(topic, encode_json(value), 1, retain=True)
    async with world.orchestrator(), world.agents("here"):
        await until(lambda: not {topic for topic, _ in gone} & world.broker.retained.keys())
        await until(lambda: len(world.operator.told("node_forgotten")) == 2)
        assert {told.node for told in world.operator.told("node_forgotten")} == {"gone", "nobody"}
        assert world.retained("node_state", node="here")["state"] == "online"

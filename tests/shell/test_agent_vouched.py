"""The agent of a closed cluster on the fake wire: it obeys who may command, and feeds on its own pipeline."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shared.bus import Message, Properties
from shared.codec import encode_json, encode_msgpack
from shared.messages.job import Activation
from shared.messages.operation import OrchestratorState
from shared.messages.stage import Assignment, StageAssignment
from shared.pipeline_mac import PipelineKeys, PipelineMac
from shared.signing import Signer
from shared.tensor import to_wire
from tests.fakes.keys import Cluster, url
from tests.fakes.wire import FakeBroker
from tests.shell.test_agent_service import (
    NODE,
    ONES,
    TOPICS,
    FakeRuntime,
    World,
    runtime,
    until,
)

__all__ = ["runtime"]

CLUSTER = Cluster()
ORCHESTRATOR = CLUSTER.signer()
KEYS = PipelineKeys(b"s" * 32, "test")
MINE = TOPICS.topic("assignment", node=NODE)


class Vouched(World):
    """The orchestrator's side of a closed cluster."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, FakeBroker())
        self.options = replace(self.options, broker=url(CLUSTER.agent))

    def say(
        self,
        assignment: Assignment,
        signer: Signer | None = ORCHESTRATOR,
        topic: str = MINE,
        said_on: str = MINE,
    ) -> None:
        payload = encode_json(assignment)
        properties = None if signer is None else signer.sign(topic, payload)
        self.broker.publish(said_on, payload, 1, retain=True, properties=properties)

    def order(self, revision: int, *stages: StageAssignment, node: str = NODE) -> Assignment:
        self.revision = revision
        return Assignment(node=node, revision=revision, stages=list(stages))

    def keyed(self, generation: int = 1, **more: int) -> StageAssignment:
        stage = self.stage(generation, **more)
        return replace(stage, key=KEYS.key(stage.pipeline, stage.generation).hex())

    def feed(self, job: str, mac: PipelineMac | None, topic: str = "") -> None:
        topic = topic or TOPICS.topic("activation", pipeline="m-0", generation=1, stage=0)
        activation = Activation(job=job, item=0, attempt=1, tensors={"x": to_wire(ONES)})
        payload = bytes(encode_msgpack(activation))
        properties = None if mac is None else mac.seal(topic, payload)
        self.broker.publish(topic, payload, 1, properties=properties)

    def refused(self) -> dict[tuple[str, str], int]:
        reports = self.reports[-1:]
        return {(r.topic, r.reason): r.count for report in reports for r in report.forged}

    def sent(self, topic: str) -> list[Message]:
        return [m for m in self.broker.published if m.topic == topic and m.payload]


@pytest.fixture
async def world(tmp_path: Path, runtime: FakeRuntime) -> AsyncIterator[Vouched]:
    world = Vouched(tmp_path)
    async with world.orchestrator():
        yield world


async def test_only_the_orchestrator_is_obeyed_and_what_runs_goes_on(world: Vouched) -> None:
    async with world.agent():
        world.say(world.order(1, world.keyed()))
        await world.ready((1, 0))
        evil = world.order(2, world.stage(9, name="evil"))
        world.revision = 1
        forgeries = {
            ("assignment", "unsigned"): (None, MINE),
            ("assignment", "wrong_role"): (CLUSTER.signer("operator"), MINE),
            ("assignment", "unknown_signer"): (Cluster().signer(), MINE),
            ("assignment", "bad_signature"): (
                ORCHESTRATOR,
                TOPICS.topic("assignment", node="another"),
            ),
        }
        for number, (reason, (signer, topic)) in enumerate(forgeries.items(), 1):
            world.say(evil, signer, topic)
            await until(lambda: reason in world.refused())  # noqa: B023 (awaited at once)
            assert len(world.refused()) == number
        for _ in range(3):
            world.say(evil, None)
        world.feed("j", KEYS.mac("m-0", 1))
        await until(lambda: world.results)
        assert world.states() == [(1, 0, "ready")], "and nothing of generation 9"
        # What is said rightly afterwards counts, though the topic's last word was forged.
        world.say(world.order(2, world.keyed(2)))
        await world.ready((2, 0))
        assert world.refused()["assignment", "unsigned"] == 4


async def test_what_another_node_was_told_is_not_obeyed(world: Vouched) -> None:
    """Signed rightly, for that node, and sent on by a broker that wants two to run the same stage."""
    async with world.agent() as agent:
        other = TOPICS.topic("assignment", node="n2")
        world.say(world.order(5, world.keyed(), node="n2"), topic=other)
        await until(world.refused)
        assert world.refused() == {("assignment", "bad_signature"): 1}
        # An orchestrator that makes such a mistake itself is not obeyed either.
        world.say(world.order(6, world.keyed(), node="n2"))
        world.say(world.order(7, world.keyed(2)))
        await world.ready((2, 0))
        assert agent._keeper._core.foreign == 1


async def test_an_old_assignment_does_not_come_back(world: Vouched) -> None:
    async with world.agent() as agent:
        first = world.order(1, world.keyed(1))
        world.say(first)
        await world.ready((1, 0))
        world.say(world.order(2, world.keyed(2)))
        await world.ready((2, 0))
        world.say(first)
        await until(lambda: agent._keeper._core.outdated == 1)
        assert world.states() == [(2, 0, "ready")]


async def test_a_forged_birth_of_an_orchestrator_is_not_answered(world: Vouched) -> None:
    topic = TOPICS.topic("orchestrator_state")
    async with world.agent():
        world.say(world.order(1, world.keyed()))
        await world.ready((1, 0))
        payload = encode_json(OrchestratorState(state="online", incarnation=9))
        world.publish(topic, payload)
        await until(world.refused)
        assert world.refused() == {("orchestrator_state", "unsigned"): 1}
        count = len(world.reports)
        world.publish(topic, payload)
        world.broker.publish(topic, payload, 1, properties=ORCHESTRATOR.sign(topic, payload))
        await until(lambda: len(world.reports) == count + 1)
        assert world.refused() == {("orchestrator_state", "unsigned"): 2}


async def test_a_pipeline_feeds_on_itself_only(world: Vouched) -> None:
    async with world.agent() as agent:
        world.say(world.order(1, world.keyed(num_stages=2)))
        await world.ready((1, 0))
        right = KEYS.mac("m-0", 1)
        drops = agent._keeper.stage_thread.drops.counts
        first = TOPICS.topic("activation", pipeline="m-0", generation=1, stage=0)
        world.feed("unsealed", None)
        world.feed("of another generation", KEYS.mac("m-0", 2))
        world.feed("of another pipeline", KEYS.mac("n-0", 1))
        world.feed("of another cluster", PipelineKeys(b"t" * 32, "test").mac("m-0", 1))
        # Taken from another stage of the same pipeline.
        second = TOPICS.topic("activation", pipeline="m-0", generation=1, stage=1)
        payload = bytes(encode_msgpack(Activation(job="moved", item=0, attempt=1)))
        world.broker.publish(first, payload, 1, properties=right.seal(second, payload))
        world.broker.publish(first, payload, 1, properties=Properties(user=(("mac", "00"),)))
        world.feed("right", right)
        await until(lambda: world.next_stage)
        assert [activation.job for activation in world.next_stage] == ["right"]
        await until(lambda: drops["forged"] == 6)
        await until(lambda: ("activation", "bad_mac") in world.refused())
        (sealed,) = world.sent(second)
        assert right.holds(sealed)
        assert not world.results


async def test_results_are_sealed_too_and_without_a_key_nothing_is(world: Vouched) -> None:
    async with world.agent():
        world.say(world.order(1, world.keyed(), world.stage(2)))
        await world.ready((1, 0), (2, 0))
        world.feed("j", KEYS.mac("m-0", 1))
        world.send("k", ONES, generation=2)
        await until(lambda: len(world.results) == 2)
        np.testing.assert_equal([result.failure for result in world.results], [None, None])
        results = {
            number: TOPICS.topic("stage_result", pipeline="m-0", generation=number)
            for number in (1, 2)
        }
        assert KEYS.mac("m-0", 1).holds(world.sent(results[1])[0])
        assert world.sent(results[2])[0].properties == Properties()

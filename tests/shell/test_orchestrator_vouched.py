"""The orchestrator of a closed cluster on the fake wire: what it signs, and whom it believes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.service import Orchestrator
from shared.bus import Message
from shared.bus.token import Credentials
from shared.codec import decode_json, encode_json
from shared.errors import ConfigurationError, ErrorCode
from shared.messages.model import ModelState
from shared.messages.operation import OrchestratorState, Response, StopRequest
from shared.messages.stage import Assignment, Forgery
from shared.pipeline_mac import PipelineKeys
from shared.signing import Signer, Verifier
from tests.fakes.cluster import Model, until
from tests.fakes.keys import Cluster, url
from tests.shell.orchestrator_world import STATE, TOPICS, World, world_in

CLUSTER = Cluster()
TOKEN = CLUSTER.authority.credentials("orchestrator", "orchestrator")
OPERATOR = CLUSTER.signer("operator", "ann")
VERIFIER = Verifier(CLUSTER.authority.public)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as world:
        world.options = replace(world.options, broker=url(TOKEN))
        world.operator.signer = OPERATOR
        yield world


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def ask_to_stop(
    world: World, transaction: str, signer: Signer | None, at_ms: int | None = None
) -> Message:
    """Ask for the model to be stopped; what was sent."""
    topic = TOPICS.topic("request", verb="stop")
    payload = encode_json(StopRequest(transaction=transaction, model="m"))
    properties = None if signer is None else signer.sign(topic, payload, at_ms)
    await world.operator.bus.publish(topic, payload, properties=properties)
    return world.broker.published[-1]


async def refusal(world: World, transaction: str) -> tuple[ErrorCode, str]:
    error = (await world.operator.ended(transaction)).error
    assert error is not None
    return error.code, error.message


def ended(world: World, transaction: str) -> list[Response]:
    return [
        response
        for response in world.operator.responses
        if response.transaction == transaction and response.status != "progress"
    ]


def told(world: World) -> list[str | None]:
    return [happening.reason for happening in world.operator.told("message_forged")]


async def test_what_agents_obey_is_signed_and_brings_the_key(world: World) -> None:
    async with world.orchestrator(), world.agents("a"):
        assert (await world.operator.serve(Model())).status == "ok"
        for topic in (
            STATE,
            TOPICS.topic("model_state", model="m"),
            TOPICS.topic("assignment", node="a"),
        ):
            kept = world.broker.retained[topic]
            assert VERIFIER.check(kept, "orchestrator").by.name == "orchestrator"
        kept = world.broker.retained[TOPICS.topic("assignment", node="a")]
        (stage,) = decode_json(kept.payload, Assignment).stages
        assert TOKEN.secret is not None
        keys = PipelineKeys(bytes.fromhex(TOKEN.secret), "test")
        assert stage.key == keys.key(stage.pipeline, stage.generation).hex()
        assert stage.key not in repr(stage)
        world.broker.cut("orchestrator")
        lost = world.broker.retained[STATE]
        assert decode_json(lost.payload, OrchestratorState).state == "lost"
        VERIFIER.check(lost, "orchestrator")
        world.broker.mend("orchestrator")
        await until(lambda: world.retained("orchestrator_state")["state"] == "online")
    VERIFIER.check(world.broker.retained[STATE], "orchestrator")


async def test_a_job_goes_through_a_pipeline_whose_messages_are_sealed(world: World) -> None:
    async with world.orchestrator() as orchestrator, world.agents("a", "b"):
        await world.operator.serve(Model(), min_stages=2, max_stages=2)
        assert (await world.answer())["status"] == "ok"
        keys = orchestrator._keys.pipelines
        assert keys is not None
        sent = [m for m in world.broker.published if "/pipeline/" in m.topic and m.payload]
        assert len(sent) == 3
        for message in sent:
            pipeline, generation = message.topic.split("/")[2:4]
            assert keys.mac(pipeline, int(generation)).holds(message)
        # Somebody outside answers first: nobody believes it, and the item's own result counts.
        result = next(m for m in sent if m.topic.endswith("/result"))
        world.broker.publish(result.topic, bytes(result.payload), 1)
        tally = orchestrator._dispatcher._tally
        await until(lambda: tally.dropped["forged_result"] == 1)
        assert (await world.answer("2"))["status"] == "ok"


async def test_a_request_that_nobody_signed_is_forbidden(world: World) -> None:
    async with world.orchestrator(), world.agents("a"):
        assert (await world.operator.serve(Model())).status == "ok"
        await ask_to_stop(world, "unsigned", None)
        code, message = await refusal(world, "unsigned")
        assert code is ErrorCode.FORBIDDEN
        assert "amp4ec join-token NAME --role operator" in message
        for number, signer in enumerate(
            (CLUSTER.signer("orchestrator"), Cluster().signer("operator"))
        ):
            await ask_to_stop(world, f"other {number}", signer, now_ms())
            assert (await refusal(world, f"other {number}"))[0] is ErrorCode.FORBIDDEN
        await until(lambda: told(world) == ["unsigned", "wrong_role", "unknown_signer"])
        assert world.operator.state() is not None
        assert (await world.answer())["status"] == "ok"
        await ask_to_stop(world, "right", OPERATOR, now_ms())
        assert (await world.operator.ended("right")).status == "ok"


@pytest.mark.parametrize("at_ms", [None, 0, -400_000, 400_000])
async def test_a_request_of_another_time_is_forbidden(world: World, at_ms: int | None) -> None:
    async with world.orchestrator():
        await ask_to_stop(world, "stop", OPERATOR, at_ms and now_ms() + at_ms)
        code, message = await refusal(world, "stop")
        assert code is ErrorCode.FORBIDDEN
        assert "clocks" in message
        assert told(world) == ["stale"]


async def test_a_request_that_is_sent_again_by_somebody_else_does_nothing(world: World) -> None:
    async with world.orchestrator() as orchestrator, world.agents("a"):
        assert (await world.operator.serve(Model())).status == "ok"
        sent = await ask_to_stop(world, "stop", OPERATOR, now_ms())
        assert (await world.operator.ended("stop")).status == "ok"
        assert (await world.operator.serve(Model(), "again")).status == "ok"
        count = len(ended(world, "stop"))
        world.broker.publish(sent.topic, bytes(sent.payload), 1, properties=sent.properties)
        await until(lambda: orchestrator._counters["forged_repeated"] == 1)
        await until(lambda: told(world) == ["repeated"])
        assert len(ended(world, "stop")) == count, "who asked has the answer already"
        assert (await world.answer())["status"] == "ok"
        # Whoever asked may ask again, as after a lost connection.
        await ask_to_stop(world, "stop", OPERATOR, now_ms() + 1)
        await until(lambda: len(ended(world, "stop")) == count + 1)


async def test_a_restart_is_no_chance_to_send_a_request_again(world: World) -> None:
    async with world.agents("a"):
        async with world.orchestrator():
            assert (await world.operator.serve(Model())).status == "ok"
            sent = await ask_to_stop(world, "stop", OPERATOR, now_ms())
            assert (await world.operator.ended("stop")).status == "ok"
            assert (await world.operator.serve(Model(), "again")).status == "ok"
        async with world.orchestrator() as orchestrator:
            world.broker.publish(sent.topic, bytes(sent.payload), 1, properties=sent.properties)
            await until(lambda: orchestrator._counters["forged_repeated"] == 1)
            assert (await world.answer())["status"] == "ok"


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]"])
async def test_a_damaged_memory_of_requests_stops_nothing(world: World, damage: bytes) -> None:
    (world.options.state_dir / "requests.json").write_bytes(damage)
    async with world.orchestrator():
        await ask_to_stop(world, "stop", OPERATOR, now_ms())
        assert (await refusal(world, "stop"))[0] is ErrorCode.UNKNOWN_MODEL


async def test_a_restarted_orchestrator_believes_its_own_word_only(world: World) -> None:
    """What the broker says is served, and what nodes were told, may be forged while nobody looks."""
    async with world.agents("a"):
        async with world.orchestrator():
            assert (await world.operator.serve(Model())).status == "ok"
        served = world.retained("model_state", model="m")
        state = decode_json(encode_json(served), ModelState)
        for model, generation in (("m", 10**6), ("evil", 1)):
            forged = replace(state, model=model, generation=generation)
            topic = TOPICS.topic("model_state", model=model)
            world.broker.publish(topic, encode_json(forged), 1, retain=True)
        # Revisions only grow, whichever node they are for.
        forged_order = Assignment(node="b", revision=2**52)
        topic = TOPICS.topic("assignment", node="b")
        world.broker.publish(topic, encode_json(forged_order), 1, retain=True)
        async with world.orchestrator() as orchestrator:
            assert (await world.answer())["status"] == "ok"
            assert list(orchestrator._cluster.models) == ["m"]
            assert world.retained("model_state", model="m")["generation"] < 10**6
            assert world.retained("assignment", node="a")["revision"] < 2**52


async def test_what_a_node_refuses_is_put_on_event(world: World) -> None:
    async with world.orchestrator(), world.agents("a") as (agent,):
        await until(lambda: agent.assignments)
        await agent.report(Forgery(topic="assignment", reason="unsigned", count=1))
        await until(lambda: world.operator.told("forged_assignment_refused"))
        assert world.operator.told("forged_assignment_refused")[0].node == "a"


@pytest.mark.parametrize(
    "credentials", [CLUSTER.agent, CLUSTER.authority.credentials("ann", "operator")]
)
async def test_another_ones_token_is_refused_at_once(
    world: World, credentials: Credentials
) -> None:
    world.options = replace(world.options, broker=url(credentials, "ann"))
    with pytest.raises(ConfigurationError, match="not an orchestrator's") as caught:
        Orchestrator(world.options)
    assert caught.value.got == "the token of ann"
    await asyncio.sleep(0)


async def test_a_successor_with_a_token_of_its_own_goes_on(world: World) -> None:
    """Its signature is another, the pipelines' keys are the same: nothing is loaded anew."""
    async with world.agents("a") as (agent,):
        async with world.orchestrator():
            assert (await world.operator.serve(Model())).status == "ok"
        before = agent.assignments[-1].stages
        other = CLUSTER.authority.credentials("standby", "orchestrator")
        world.options = replace(world.options, broker=url(other, "standby"))
        async with world.orchestrator():
            assert (await world.answer())["status"] == "ok"
            topic = TOPICS.topic("assignment", node="a")
            await until(
                lambda: (
                    VERIFIER.check(world.broker.retained[topic], "orchestrator").by.name
                    == "standby"
                )
            )
            assert agent.assignments[-1].stages == before

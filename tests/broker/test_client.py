"""The client against a real broker, with a stand-in for the orchestrator that follows a script."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amp4ec import BrokerUnreachableError, Client, ConfigurationError, ErrorCode, JobError, Result
from broker.launcher import Broker
from shared.bus import BrokerUrl, Message
from shared.client import conversation
from shared.client.pending import Pending
from shared.codec import decode_json, decode_msgpack, encode_json, encode_msgpack
from shared.messages.job import (
    BatchAnswer,
    BatchInput,
    ErrorAnswer,
    TensorInput,
)  # fmt: skip
from shared.messages.model import ModelState
from shared.messages.node import Hardware, NodeState, Telemetry
from shared.messages.operation import Metrics, NodeStanding, OrchestratorState
from shared.tensor import to_wire
from tests.broker.conftest import until
from tests.broker.stand import JPEG, TOPICS, Stand, answer, error, online


async def test_result_is_typed(client: Client) -> None:
    result = await client.infer("m", JPEG)
    assert isinstance(result, Result)
    assert (result.model, result.generation, result.nodes) == ("m", 7, ("a", "b"))
    assert result.top[0].label == "tabby"
    assert result.latency_s == pytest.approx(0.0125)
    assert result.trace[0].compute_s == 0.01
    assert result.tensors is None
    assert "tabby 50.0%" in str(result)
    assert "12 ms" in str(result)


async def test_request_says_who_and_what(client: Client, stand: Stand) -> None:
    await client.infer("m", JPEG, deadline_s=5, tensors=False)
    request = stand.requests[0]
    properties = request.properties
    job = properties.user_value("job")
    assert request.topic == TOPICS.topic("infer", model="m")
    assert request.payload == JPEG
    assert properties.content_type == "image/jpeg"
    assert properties.response_topic == TOPICS.topic("result", client=client.name, job=str(job))
    assert properties.correlation_data == str(job).encode()
    assert 0 < int(str(properties.user_value("deadline_ms"))) <= 5000
    assert properties.user_value("accept") is None
    assert properties.user_value("priority") is None
    assert properties.user_value("policy") is None
    await client.infer("m", JPEG, priority=9, latest=True)
    assert stand.requests[1].properties.user_value("priority") == "9"
    assert stand.requests[1].properties.user_value("policy") == "latest"
    with pytest.raises(ConfigurationError, match="from 0 to 9"):
        await client.infer("m", JPEG, priority=10)


async def test_tensors_come_as_arrays(client: Client, stand: Stand) -> None:
    logits = np.arange(6, dtype=np.float32).reshape(2, 3)

    def script(message: Message) -> list[bytes]:
        assert message.properties.user_value("accept") == "application/msgpack"
        return [bytes(encode_msgpack(answer(message, tensors={"logits": to_wire(logits)})))]

    stand.script = script
    result = await client.infer("m", np.zeros((1, 3, 4, 4), np.float32), tensors=True)
    assert result.tensors is not None
    np.testing.assert_array_equal(result.tensors["logits"], logits)
    sent = decode_msgpack(stand.requests[0].payload, TensorInput)
    assert (sent.dtype, sent.shape) == ("float32", (1, 3, 4, 4))


async def test_error_answer_is_raised(client: Client, stand: Stand) -> None:
    stand.script = lambda message: [error(message, ErrorCode.OVERLOADED)]
    with pytest.raises(JobError) as raised:
        await client.infer("m", JPEG, retry=False)
    assert raised.value.code == ErrorCode.OVERLOADED
    assert raised.value.expected == "yes"
    assert raised.value.got == "no"
    assert raised.value.retry_after_s == 1.5


async def test_a_refused_job_is_sent_again_when_it_was_told_to(
    client: Client, stand: Stand
) -> None:
    def script(message: Message) -> list[bytes]:
        if len(stand.requests) < 3:
            return [error(message, ErrorCode.OVERLOADED, 0.05)]
        return [encode_json(answer(message))]

    stand.script = script
    assert isinstance(await client.infer("m", JPEG), Result)
    assert len(stand.requests) == 3
    assert len({request.properties.user_value("job") for request in stand.requests}) == 1


@pytest.mark.parametrize(
    "how", [{"retry": False}, {"latest": True}, {"timeout_s": 0.5}, {"deadline_s": 0.5}], ids=str
)
async def test_or_not_where_that_is_of_no_use(
    client: Client, stand: Stand, how: dict[str, Any]
) -> None:
    stand.script = lambda message: [error(message, ErrorCode.OVERLOADED, 2.0)]
    with pytest.raises(JobError) as raised:
        await client.infer("m", JPEG, **how)
    assert raised.value.code == ErrorCode.OVERLOADED
    assert len(stand.requests) == 1


async def test_answer_that_is_none(client: Client, stand: Stand) -> None:
    stand.script = lambda _: [b"{}"]
    with pytest.raises(Exception, match="status"):
        await client.infer("m", JPEG, timeout_s=5)


async def test_many_at_once_get_their_own(client: Client, stand: Stand) -> None:
    def script(message: Message) -> list[bytes]:
        return [encode_json(answer(message, pipeline=message.payload[3:].decode()))]

    stand.script = script
    results = await asyncio.gather(
        *(client.infer("m", b"\xff\xd8\xff" + str(n).encode()) for n in range(50))
    )
    assert [result.pipeline for result in results] == [str(n) for n in range(50)]


async def test_repeated_answers_are_dropped(client: Client, stand: Stand) -> None:
    stand.script = lambda message: [encode_json(answer(message))] * 3
    for _ in range(3):
        await client.infer("m", JPEG)
    assert len(stand.requests) == 3


async def test_silence_is_met_with_the_same_job(
    client: Client, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "REPEAT_FIRST_S", 0.05)

    def script(message: Message) -> list[bytes]:
        return [encode_json(answer(message))] if len(stand.requests) >= 3 else []

    stand.script = script
    await client.infer("m", JPEG, timeout_s=10)
    jobs = {request.properties.user_value("job") for request in stand.requests}
    assert len(jobs) == 1
    assert len(stand.requests) >= 3


async def test_leaving_ends_the_wait_for_room(
    url: BrokerUrl, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.script = lambda message: [error(message, ErrorCode.OVERLOADED, retry_after_s=30.0)]
    waits = asyncio.Event()
    refused = Pending.refused

    def and_waits(pending: Pending) -> None:
        refused(pending)
        waits.set()

    monkeypatch.setattr(Pending, "refused", and_waits)
    async with Client(url) as client:
        job = asyncio.create_task(client.infer("m", JPEG, timeout_s=300))
        await waits.wait()
    with pytest.raises(asyncio.CancelledError):
        await job


async def test_a_repeat_has_what_is_left_of_the_deadline(
    client: Client, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nothing is left: that is for the cluster to say, and 0 would be no deadline at all."""
    monkeypatch.setattr(conversation, "REPEAT_FIRST_S", 0.05)
    stand.script = lambda _: []
    job = asyncio.create_task(client.infer("m", JPEG, timeout_s=60, deadline_s=0.2))
    await until(lambda: len(stand.requests) >= 4)
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    left_ms = [int(r.properties.user_value("deadline_ms") or 0) for r in stand.requests]
    assert left_ms[0] <= 200
    assert left_ms == sorted(left_ms, reverse=True)
    assert left_ms[-1] == 1
    assert {r.properties.expiry_s for r in stand.requests} == {1}, "nor does the broker keep it"


async def test_who_stopped_waiting_leaves_nothing_behind(client: Client, stand: Stand) -> None:
    """Cancelled or timed out: an answer that comes after all disturbs nobody."""
    stand.script = lambda _: []
    cancelled = asyncio.create_task(client.infer("m", JPEG, timeout_s=60))
    await until(lambda: len(stand.requests) == 1)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    with pytest.raises(JobError):
        await client.infer("m", JPEG, timeout_s=0.1)
    assert client._conversation.pending == {}
    for request in stand.requests:
        assert request.properties.response_topic is not None
        await stand.bus.publish(request.properties.response_topic, encode_json(answer(request)))
    stand.script = lambda message: [encode_json(answer(message, generation=8))]
    assert (await client.infer("m", JPEG)).generation == 8


async def test_programs_with_one_login_hear_each_other_and_take_their_own(
    url: BrokerUrl, stand: Stand
) -> None:
    """Two clients of one name, as on a closed broker: each gets all answers of both."""

    def script(message: Message) -> list[bytes]:
        return [encode_json(answer(message, pipeline=message.payload[3:].decode()))]

    stand.script = script
    async with Client(url) as one, Client(url) as other:
        other._conversation.name = one.name
        await other._conversation.bus.subscribe(TOPICS.pattern("result", client=one.name))
        results = await asyncio.gather(
            *(
                client.infer("m", b"\xff\xd8\xff" + f"{index}-{number}".encode())
                for number in range(20)
                for index, client in enumerate((one, other))
            )
        )
    assert [result.pipeline for result in results] == [
        f"{index}-{number}" for number in range(20) for index in range(2)
    ]


async def test_new_orchestrator_is_asked_at_once(client: Client, stand: Stand) -> None:
    stand.script = lambda _: []
    job = asyncio.create_task(client.infer("m", JPEG, timeout_s=20))
    await until(lambda: len(stand.requests) == 1)
    stand.script = lambda message: [encode_json(answer(message))]
    await stand.announce(online(incarnation=2))
    await job
    assert len(stand.requests) == 2


async def test_broker_restart_loses_no_job(client: Client, stand: Stand, broker: Broker) -> None:
    stand.script = lambda _: []
    job = asyncio.create_task(client.infer("m", JPEG, timeout_s=30))
    await until(lambda: len(stand.requests) == 1)
    stand.script = lambda message: [encode_json(answer(message))]
    await broker.kill()
    await broker.start()
    result = await job
    assert result.generation == 7


async def test_no_answer_in_time(client: Client, stand: Stand) -> None:
    stand.script = lambda _: []
    with pytest.raises(JobError, match="orchestrator is online") as raised:
        await client.infer("m", JPEG, timeout_s=0.2)
    assert raised.value.code == ErrorCode.DEADLINE


async def test_orchestrator_that_is_gone_is_named(client: Client, stand: Stand) -> None:
    stand.script = lambda _: []
    await stand.announce(OrchestratorState(state="lost", incarnation=1))
    with pytest.raises(JobError, match="the orchestrator is lost") as raised:
        await client.infer("m", JPEG, timeout_s=0.5)
    assert raised.value.code == ErrorCode.UNAVAILABLE


async def test_no_orchestrator_at_all(url: BrokerUrl) -> None:
    async with Client(url) as client:
        with pytest.raises(JobError, match="no orchestrator has announced itself"):
            await client.infer("m", JPEG)


async def test_too_large_is_refused_before_the_wire(client: Client, stand: Stand) -> None:
    with pytest.raises(JobError) as raised:
        await client.infer("m", bytes(1000_001))
    assert raised.value.code == ErrorCode.TOO_LARGE
    assert raised.value.expected == "at most 1000000 bytes"
    assert raised.value.got == "1000001 bytes"
    assert stand.requests == []


async def test_missing_file(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        await client.infer("m", tmp_path / "nothing.jpg")


async def test_name_that_cannot_be_one(client: Client) -> None:
    with pytest.raises(ConfigurationError, match="model"):
        await client.infer("a/b", JPEG)


async def test_batch_in_order_with_an_error_inside(client: Client, stand: Stand) -> None:
    def script(message: Message) -> list[bytes]:
        images = decode_msgpack(message.payload, BatchInput).images
        job = message.properties.user_value("job") or ""
        results: list[object] = [
            decode_json(error(message, ErrorCode.BAD_INPUT), ErrorAnswer)
            if bytes(image) == JPEG
            else answer(message, pipeline=str(len(image)))
            for image in images
        ]
        return [encode_json(BatchAnswer(job=job, model="m", results=results, latency_ms=1.0))]

    stand.script = script
    photograph = np.zeros((4, 5, 3), np.uint8)
    results = await client.infer_batch("m", [photograph, JPEG, JPEG + b"1"])
    first, second, third = results
    assert isinstance(first, Result)
    assert isinstance(second, JobError)
    assert isinstance(third, Result)
    assert third.pipeline == str(len(JPEG) + 1)
    assert await client.infer_batch("m", []) == []


async def test_batch_takes_no_mixture(client: Client) -> None:
    with pytest.raises(JobError, match="not both"):
        await client.infer_batch("m", [JPEG, np.zeros((1, 3, 2, 2), np.float32)])


async def test_status(client: Client, stand: Stand) -> None:
    hardware = Hardware(cpu=0.5, cores=2, memory_bytes=10**9, architecture="x86_64")
    for node, state in (("a", "online"), ("b", "lost")):
        birth = NodeState(state=state, node=node, incarnation=5, hardware=hardware)  # type: ignore[arg-type]
        topic = TOPICS.topic("node_state", node=node)
        await stand.bus.publish(topic, encode_json(birth), retain=True)
    model = ModelState(state="serving", model="m", generation=3)
    await stand.bus.publish(TOPICS.topic("model_state", model="m"), encode_json(model), retain=True)
    status = await client.status(wait_s=0.05)
    assert status.orchestrator is not None
    assert [node.state.node for node in status.nodes] == ["a", "b"]
    assert [node.state.node for node in status.online] == ["a"]
    assert status.model("m") == model
    assert status.model("other") is None
    assert status.nodes[0].telemetry is None

    telemetry = Telemetry(
        node="a", incarnation=5, uptime_s=1, cpu_percent=50, memory_used_bytes=1,
        memory_limit_bytes=2, network_received_bytes=0, network_sent_bytes=0, round_trip_s=None,
        queue=0, stability=1,
    )  # fmt: skip
    lost = NodeStanding(state="lost", for_s=3.0, until_s=60.0)
    metrics = Metrics(
        counters={}, models={}, nodes_online=1, cpu_s=0.0, memory_bytes=1, nodes={"b": lost}
    )
    waiting = asyncio.create_task(client.status(wait_s=10))
    await stand.bus.publish(TOPICS.topic("telemetry", node="a"), encode_json(telemetry), qos=0)
    await stand.bus.publish(TOPICS.topic("metrics"), encode_json(metrics), qos=0)
    here, gone = (await waiting).nodes
    assert here.telemetry == telemetry
    assert gone.standing == lost

    await stand.bus.publish(TOPICS.topic("model_state", model="m"), b"", retain=True)
    async with asyncio.timeout(10):
        while (await client.status(wait_s=0)).models:  # noqa: ASYNC110 (polled with a deadline)
            await asyncio.sleep(0.005)


async def test_unreachable_broker(unused_port: int) -> None:
    with pytest.raises(BrokerUnreachableError, match=str(unused_port)):
        async with Client(f"127.0.0.1:{unused_port}", connect_timeout_s=0.3):
            pytest.fail("there is no broker")


async def test_leaving_cancels_what_waits(url: BrokerUrl, stand: Stand) -> None:
    stand.script = lambda _: []
    async with Client(url) as client:
        job = asyncio.create_task(client.infer("m", JPEG, timeout_s=30))
        await until(lambda: len(stand.requests) == 1)
    with pytest.raises(asyncio.CancelledError):
        await job

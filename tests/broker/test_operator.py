"""Requests of an operator over a real broker, to a stand-in for the orchestrator."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from deploy.operator import NotAnsweredError, connect, new_transaction
from shared.artifact_store import ArtifactStore
from shared.bus import BrokerUrl, Message, MqttControlBus
from shared.codec import decode_json, encode_json
from shared.errors import BrokerUnreachableError, ErrorCode, JobError
from shared.ids import ORCHESTRATOR
from shared.messages.job import ErrorBody
from shared.messages.operation import OrchestratorState, Response, ServeRequest, StopRequest
from shared.messages.stage import Blob
from shared.signing import Verifier
from shared.topics import DEFAULT_ROOT, Topics
from shared.transfer import MemoryBlobs, Transfers
from tests.broker.conftest import until
from tests.fakes.keys import Cluster

TOPICS = Topics()


@dataclass
class Stand:
    """Answers requests as `script` says; may fetch blobs."""

    bus: MqttControlBus
    transfers: Transfers
    script: Callable[[bytes], Awaitable[list[Response]]]
    requests: list[bytes] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    async def announce(self, incarnation: int = 1, state: str = "online") -> None:
        birth = OrchestratorState(state=state, incarnation=incarnation)  # type: ignore[arg-type]
        topic = TOPICS.topic("orchestrator_state")
        await self.bus.publish(topic, encode_json(birth), retain=True)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            async for message in self.bus.messages():
                name, levels = TOPICS.parse(message.topic)
                if name == "request":
                    self.requests.append(bytes(message.payload))
                    self.messages.append(message)
                    group.create_task(self.answer(levels["verb"], bytes(message.payload)))
                else:
                    self.transfers.handle(name, levels, message)

    async def answer(self, verb: str, payload: bytes) -> None:
        for response in await self.script(payload):
            await self.bus.publish(TOPICS.topic("response", verb=verb), encode_json(response))


async def done(payload: bytes) -> list[Response]:
    transaction = decode_json(payload, StopRequest).transaction
    return [
        Response(transaction="another", status="ok", data={"model": "of another"}),
        Response(transaction=transaction, status="progress", data={"text": "on it"}),
        Response(transaction=transaction, status="ok", data={"model": "m"}),
        Response(transaction=transaction, status="ok", data={"model": "twice"}),
    ]


@asynccontextmanager
async def stand_in(url: BrokerUrl, directory: Path) -> AsyncIterator[Stand]:
    async with MqttControlBus(url, client_id="stand-in", first_connect_timeout_s=5) as bus:
        store = ArtifactStore(directory, 10**8)
        async with Transfers(bus, TOPICS, ORCHESTRATOR, store=store) as transfers:
            await bus.subscribe(TOPICS.pattern("request"))
            stand = Stand(bus, transfers, done)
            task = asyncio.create_task(stand.run())
            yield stand
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def stand(url: BrokerUrl, tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand_in(url, tmp_path / "store") as stand:
        yield stand


def stop() -> StopRequest:
    return StopRequest(transaction=new_transaction(), model="m")


async def test_progress_then_the_end(url: BrokerUrl, stand: Stand) -> None:
    await stand.announce()
    steps: list[str] = []
    async with connect(url, DEFAULT_ROOT) as operator:
        response = await operator.ask(stop(), 10, steps.append)
    assert response.data == {"model": "m"}
    assert steps == ["on it"]
    assert len(stand.requests) == 1


async def test_refusal(url: BrokerUrl, stand: Stand) -> None:
    async def refuse(payload: bytes) -> list[Response]:
        error = ErrorBody(code=ErrorCode.UNKNOWN_MODEL, message="no m", expected="n", got="m")
        transaction = decode_json(payload, StopRequest).transaction
        return [Response(transaction=transaction, status="error", error=error)]

    stand.script = refuse
    await stand.announce()
    async with connect(url, DEFAULT_ROOT) as operator:
        with pytest.raises(JobError, match="no m") as raised:
            await operator.ask(stop(), 10, lambda _: None)
    assert raised.value.code == ErrorCode.UNKNOWN_MODEL


async def test_orchestrator_that_comes_later_is_waited_for(url: BrokerUrl, stand: Stand) -> None:
    steps: list[str] = []
    async with connect(url, DEFAULT_ROOT) as operator:
        asked = asyncio.create_task(operator.ask(stop(), 20, steps.append))
        await until(lambda: steps)
        assert "there is no orchestrator" in steps[0]
        assert stand.requests == []
        await stand.announce()
        assert (await asked).status == "ok"


async def test_new_orchestrator_is_asked_again(url: BrokerUrl, stand: Stand) -> None:
    async def silent(_: bytes) -> list[Response]:
        return []

    stand.script = silent
    await stand.announce()
    async with connect(url, DEFAULT_ROOT) as operator:
        asked = asyncio.create_task(operator.ask(stop(), 20, lambda _: None))
        await until(lambda: len(stand.requests) == 1)
        await stand.announce(state="lost")
        stand.script = done
        await stand.announce(incarnation=2)
        assert (await asked).status == "ok"
    assert stand.requests[0] == stand.requests[1]


async def test_each_time_it_asks_it_signs_anew(url: BrokerUrl, stand: Stand) -> None:
    """Else the second would be taken for somebody's who has listened to the first."""
    cluster = Cluster()
    verifier = Verifier(cluster.authority.public)
    keys = replace(url, credentials=cluster.authority.credentials("ann", "operator"))

    async def silent(_: bytes) -> list[Response]:
        return []

    stand.script = silent
    await stand.announce()
    async with connect(keys, DEFAULT_ROOT) as operator:
        asked = asyncio.create_task(operator.ask(stop(), 20, lambda _: None))
        await until(lambda: len(stand.requests) == 1)
        stand.script = done
        await stand.announce(incarnation=2)
        assert (await asked).status == "ok"
        assert (await operator.ask(stop(), 20, lambda _: None)).status == "ok"
    signed = [verifier.check(message, "operator") for message in stand.messages]
    assert [each.by.name for each in signed] == ["ann"] * 3
    times = [each.at_ms for each in signed if each.at_ms is not None]
    assert times == sorted(set(times))
    assert len(times) == 3
    assert abs(times[0] - time.time() * 1000) < 60_000


@pytest.mark.parametrize(
    ("state", "match"),
    [(None, "there is no orchestrator"), ("lost", "orchestrator is lost"), ("online", "busy")],
)
async def test_silence_says_what_is_missing(
    url: BrokerUrl, stand: Stand, state: str | None, match: str
) -> None:
    async def silent(_: bytes) -> list[Response]:
        return []

    stand.script = silent
    if state is not None:
        await stand.announce(state=state)
    async with connect(url, DEFAULT_ROOT) as operator:
        with pytest.raises(NotAnsweredError, match=match):
            await operator.ask(stop(), 0.3, lambda _: None)


async def test_blobs_are_given(url: BrokerUrl, stand: Stand) -> None:
    data = random.Random(1).randbytes(1_024_000)
    blob = Blob(digest=hashlib.sha256(data).hexdigest(), size=len(data))

    async def fetch(payload: bytes) -> list[Response]:
        request = decode_json(payload, ServeRequest)
        assert request.manifest is not None
        assert request.provider is not None
        path = await stand.transfers.fetch(request.manifest, request.provider)
        ok = path.read_bytes() == data
        return [Response(transaction=request.transaction, status="ok", data={"same": ok})]

    stand.script = fetch
    await stand.announce()
    async with connect(url, DEFAULT_ROOT, MemoryBlobs({blob.digest: data})) as operator:
        request = ServeRequest(
            transaction=new_transaction(),
            model="m",
            manifest=blob,
            blobs=[],
            provider=operator.peer,
        )
        response = await operator.ask(request, 20, lambda _: None)
        assert response.data == {"same": True}
        assert operator.bytes_sent >= len(data)


async def test_unreachable_broker(unused_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.operator.CONNECT_S", 0.3)
    with pytest.raises(BrokerUnreachableError, match=str(unused_port)):
        async with connect(BrokerUrl.parse(f"127.0.0.1:{unused_port}"), DEFAULT_ROOT):
            pytest.fail("there is no broker")

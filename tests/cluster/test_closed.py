"""A closed cluster as its user makes it: `broker init`, tokens for everybody, answers over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amp4ec import Client
from deploy.photo import PHOTO
from deploy.supervisor import Child, child_environment, command
from shared.bus import BrokerUrl, Message, MqttControlBus
from shared.codec import decode_json, encode_json, encode_msgpack
from shared.errors import BrokerError, BrokerUnreachableError
from shared.messages.job import Activation
from shared.messages.operation import OrchestratorState, Response, StopRequest
from shared.messages.stage import Assignment
from shared.topics import Topics
from tests.cluster.conftest import MODEL

pytestmark = pytest.mark.timeout(180)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def amp4ec(*arguments: str) -> str:
    """What a command that ends prints."""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


class Closed:
    """The directory, and the children that run with its tokens."""

    def __init__(self, directory: Path, work: Path) -> None:
        self.directory = directory
        self.work = work
        self.children = contextlib.AsyncExitStack()

    def token(self, name: str) -> str:
        return f"@{self.directory / 'tokens' / name}"

    async def issue(self, name: str, role: str) -> str:
        file = self.work / f"{name}.token"
        await amp4ec(
            "join-token",
            name,
            "--role",
            role,
            "--directory",
            str(self.directory),
            "--output",
            str(file),
        )
        return f"@{file}"

    async def start(self, name: str, *arguments: str) -> Child:
        child = await Child.start(name, arguments, self.work / f"{name}.log")
        self.children.push_async_callback(child.stop)
        return child


@pytest.fixture
async def closed(tmp_path: Path) -> AsyncIterator[Closed]:
    directory = tmp_path / "closed"
    await amp4ec(
        "broker", "init", str(directory), "--host", "localhost", "--port", str(free_port())
    )
    site = Closed(directory, tmp_path)
    async with site.children:
        await site.start("broker", "broker", "--directory", str(directory), "--bind", "127.0.0.1")
        await site.start(
            "orchestrator", "orchestrator", "--broker", site.token("orchestrator"),
            "--state-dir", str(tmp_path / "state"),
        )  # fmt: skip
        for name in ("pi-1", "pi-2"):
            await site.start(
                name, "agent", "--broker", await site.issue(name, "agent"),
                "--cpus", "0.5", "--cache-dir", str(tmp_path / f"cache-{name}"),
            )  # fmt: skip
        yield site


async def test_a_model_is_served_and_answered_in_a_closed_cluster(closed: Closed) -> None:
    await amp4ec(
        "serve", MODEL, "--broker", closed.token("operator"), "--weights", "none",
        "--min-stages", "2", "--timeout", "120s",
    )  # fmt: skip
    camera = await closed.issue("camera", "client")
    for token in (camera, closed.token("operator")):
        answer = json.loads(await amp4ec("infer", MODEL, str(PHOTO), "--broker", token, "--json"))
        first: dict[str, Any] = answer[0] if isinstance(answer, list) else answer
        assert first["status"] == "ok"
        assert sorted(first["nodes"]) == ["pi-1", "pi-2"]
    async with Client(camera) as one, Client(camera) as other:
        # Two programs with one login hear each other's answers and take their own.
        results = await asyncio.gather(
            *(client.infer(MODEL, PHOTO) for client in (one, other) for _ in range(3))
        )
        assert all(set(result.nodes) == {"pi-1", "pi-2"} for result in results)
        status = await one.status()
        assert sorted(node.state.node for node in status.nodes) == ["pi-1", "pi-2"]
    wall = await closed.issue("wall", "monitor")
    async with Client(wall) as monitor:
        assert [model.model for model in (await monitor.status()).models] == [MODEL]
        with pytest.raises(BrokerError, match=r"(?i)not authori[sz]ed"):
            await monitor.infer(MODEL, PHOTO)
    await amp4ec("join-token", "camera", "--revoke", "--directory", str(closed.directory))
    with pytest.raises(BrokerUnreachableError):
        async with Client(camera, connect_timeout_s=2):
            pass


class Intruder:
    """Somebody with a login of the broker's and no keys: with the orchestrator's, as good as the broker."""

    def __init__(self, token: str, name: str) -> None:
        url = replace(BrokerUrl.parse(token), credentials=None)
        self.topics = Topics()
        self.bus = MqttControlBus(url, client_id=f"intruder-{name}", first_connect_timeout_s=10)
        self.heard: list[Message] = []

    @contextlib.asynccontextmanager
    async def inside(self) -> AsyncIterator[Intruder]:
        async with self.bus:
            await self.bus.subscribe(self.topics.root + "/#")
            reader = asyncio.create_task(self._read())
            try:
                yield self
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self.bus.messages():
            self.heard.append(message)

    def on(self, name: str, **levels: str) -> list[Message]:
        topic = self.topics.topic(name, **levels)
        return [message for message in self.heard if message.topic == topic and message.payload]

    def latest(self, name: str, **levels: str) -> Message:
        return self.on(name, **levels)[-1]

    def happened(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(message.payload) for message in self.on("event")]
        return [line for line in lines if line["event"] == event]

    async def wait(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 (what is watched has no event)
                await asyncio.sleep(0.05)


async def serve(closed: Closed) -> None:
    await amp4ec(
        "serve", MODEL, "--broker", closed.token("operator"), "--weights", "none",
        "--min-stages", "2", "--timeout", "120s",
    )  # fmt: skip


async def test_a_broker_that_was_broken_into_commands_nobody(closed: Closed) -> None:
    """It says what it wants on every topic, and what it has heard once more: what runs goes on."""
    camera = await closed.issue("camera", "client")
    async with Intruder(closed.token("orchestrator"), "broker").inside() as broker:
        await serve(closed)
        await broker.wait(lambda: broker.on("assignment", node="pi-2"))
        told = broker.latest("assignment", node="pi-1")
        assignment = decode_json(told.payload, Assignment)
        (stage,) = assignment.stages
        assert stage.key is not None
        another_model = replace(stage, generation=99, weights=[])
        later = replace(assignment, revision=assignment.revision + 1000)
        forged: tuple[tuple[Assignment, str, Any], ...] = (
            (replace(later, stages=[another_model]), "pi-1", told.properties),
            (replace(later, stages=[]), "pi-1", None),
            (replace(later, node="pi-2"), "pi-2", told.properties),
        )
        for order, node, properties in forged:
            topic = broker.topics.topic("assignment", node=node)
            await broker.bus.publish(topic, encode_json(order), retain=True, properties=properties)
        # Of another node, word for word.
        pi_2 = broker.topics.topic("assignment", node="pi-2")
        await broker.bus.publish(pi_2, bytes(told.payload), retain=True, properties=told.properties)
        state = decode_json(broker.latest("orchestrator_state").payload, OrchestratorState)
        greater = replace(state, incarnation=state.incarnation + 9, term=state.term + 9)
        topic = broker.topics.topic("orchestrator_state")
        await broker.bus.publish(topic, encode_json(greater), retain=True)
        expected = {
            ("pi-1", "forged_assignment_refused", "unsigned"),
            ("pi-1", "forged_assignment_refused", "bad_signature"),
            ("pi-2", "forged_assignment_refused", "bad_signature"),
            ("pi-1", "forged_orchestrator_state_refused", "unsigned"),
        }

        def told_of() -> bool:
            lines = [
                (line["node"], line["event"], line["reason"])
                for what in ("assignment", "orchestrator_state")
                for line in broker.happened(f"forged_{what}_refused")
            ]
            return expected <= set(lines)

        await broker.wait(told_of)
        stop = encode_json(StopRequest(transaction="forged", model=MODEL))
        await broker.bus.publish(broker.topics.topic("request", verb="stop"), stop)
        await broker.wait(lambda: broker.on("response", verb="stop"))
        answer = decode_json(broker.latest("response", verb="stop").payload, Response)
        assert answer.error is not None
        assert answer.error.code == "forbidden"
        request = broker.latest("request", verb="serve")
        await broker.bus.publish(
            request.topic, bytes(request.payload), properties=request.properties
        )
        await broker.wait(
            lambda: any(line["reason"] == "repeated" for line in broker.happened("message_forged"))
        )
        async with Client(camera) as client:
            results = [await client.infer(MODEL, PHOTO) for _ in range(5)]
        assert [sorted(result.nodes) for result in results] == [["pi-1", "pi-2"]] * 5
        assert {result.generation for result in results} == {stage.generation}


async def test_a_node_feeds_no_pipeline_but_its_own(closed: Closed) -> None:
    """Its login lets it write to every pipeline: what it sends is dropped, and the jobs do not notice."""
    camera = await closed.issue("camera", "client")
    await serve(closed)
    outside = Intruder(await closed.issue("pi-3", "agent"), "pi-3")
    async with (
        Intruder(closed.token("orchestrator"), "witness").inside() as witness,
        outside.inside(),
        Client(camera) as client,
    ):
        first = await client.infer(MODEL, PHOTO)
        place = {"pipeline": first.pipeline, "generation": str(first.generation)}
        activation = Activation(job="forged", item=0, attempt=1)
        topics = (
            outside.topics.topic("activation", **place, stage="0"),
            outside.topics.topic("activation", **place, stage="1"),
            outside.topics.topic("stage_result", **place),
        )
        for topic in topics:
            await outside.bus.publish(topic, bytes(encode_msgpack(activation)))

        def dropped() -> bool:
            counters = [json.loads(each.payload)["counters"] for each in witness.on("metrics")]
            return any(each.get("dropped_forged_result") for each in counters)

        await witness.wait(dropped)
        for name in first.nodes:
            log = closed.work / f"{name}.log"
            await witness.wait(lambda log=log: '"kind":"forged"' in log.read_text())  # type: ignore[misc]
        await witness.wait(lambda: len(witness.happened("forged_activation_refused")) == 2)
        assert (await client.infer(MODEL, PHOTO)).nodes == first.nodes
        results = [m for m in witness.heard if m.topic == topics[2]]
        assert sum(b"forged" in m.payload for m in results) == 1, "only what the node itself sent"


async def test_a_revoked_operator_asks_for_nothing_more(closed: Closed) -> None:
    ann = await closed.issue("ann", "operator")
    await amp4ec("plan", MODEL, "--broker", closed.token("operator"), "--live", "--weights", "none")
    await amp4ec("join-token", "ann", "--revoke", "--directory", str(closed.directory))
    with pytest.raises(AssertionError, match=r"(?i)not authori[sz]ed|no connection|reach"):
        await amp4ec("stop", MODEL, "--broker", ann)

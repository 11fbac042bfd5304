"""`/ws` on the fake wire: a snapshot, then what comes; the broker's absence, slow browsers, forgeries."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestrator.options import OrchestratorOptions
from orchestrator.web import live as live_module
from orchestrator.web.address import HttpAddress
from orchestrator.web.live import live
from orchestrator.web.mailbox import Mailbox
from orchestrator.web.server import Site, serve
from orchestrator.web.watch import MOST_EVENTS, Watch
from shared.bus import BrokerUrl, ControlBus
from shared.codec import encode_json
from shared.messages.model import ModelState
from shared.messages.node import NodeState
from shared.messages.operation import Happening, Metrics, OrchestratorState
from shared.signing import Admission
from shared.topics import Topics
from tests.fakes.cluster import until
from tests.fakes.keys import Cluster
from tests.fakes.wire import FakeBroker

TOPICS = Topics("test")
STATE = TOPICS.topic("orchestrator_state")
EVENT = TOPICS.topic("event")
Frame = dict[str, Any]


def happening(text: str) -> bytes:
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return encode_json(Happening(event="node_joined", text=text, at=at))


def node(name: str) -> bytes:
    return encode_json(NodeState(state="online", node=name, incarnation=1))


@dataclass
class World:
    """A broker in memory, something to publish with, and the server."""

    wire: FakeBroker
    speaker: ControlBus
    watch: Watch
    site: Site
    address: HttpAddress
    http: aiohttp.ClientSession
    earlier: list[Happening]

    async def say(self, name: str, payload: bytes, **levels: str) -> None:
        topic = TOPICS.topic(name, **levels)
        await self.speaker.publish(topic, payload, retain=name.endswith("state"))

    async def browser(self, **how: Any) -> aiohttp.ClientWebSocketResponse:
        return await self.http.ws_connect("/ws", **how)


async def frame(page: aiohttp.ClientWebSocketResponse) -> Frame:
    async with asyncio.timeout(5):
        told: Frame = await page.receive_json()
    return told


async def messages(page: aiohttp.ClientWebSocketResponse, count: int) -> list[list[Any]]:
    """The next messages, of as many frames as they come in."""
    found: list[list[Any]] = []
    while len(found) < count:
        told = await frame(page)
        if told["kind"] == "messages":
            found.extend(told["messages"])
    return found


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    wire = FakeBroker()
    earlier: list[Happening] = []
    watch = Watch(
        wire.control("page", will=None),
        TOPICS,
        Admission(None),
        earlier=lambda: earlier,
        grace_s=0.05,
    )
    site = Site(
        options=OrchestratorOptions(
            broker=BrokerUrl(host="10.0.0.9", username="ada", password="secret-word"),
            root="test",
            state_dir=tmp_path,
        ),
        watch=watch,
        leading=lambda: None,
    )
    speaker = wire.control("speaker", will=None)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(speaker)
        await stack.enter_async_context(watch.running())
        address = await stack.enter_async_context(serve(HttpAddress(0), site, (live,)))
        url = f"http://127.0.0.1:{address.port}"
        http = await stack.enter_async_context(aiohttp.ClientSession(url))
        await until(lambda: watch.connected)
        yield World(wire, speaker, watch, site, address, http, earlier)


async def test_a_snapshot_and_then_what_comes(world: World) -> None:
    await world.say("node_state", node("pi"), node="pi")
    await world.say("event", happening("pi joined"))
    await until(lambda: world.watch.events)
    async with await world.browser() as page:
        first = await frame(page)
        assert first["kind"] == "snapshot"
        assert first["root"] == "test"
        assert first["connected"] is True
        assert [(topic, told["state"]) for topic, told in first["topics"]] == [
            ("node/pi/state", "online")
        ]
        assert [event["text"] for event in first["events"]] == ["pi joined"]
        await world.say("event", happening("<b>pi</b> left"))
        await world.say("node_state", b"", node="pi")
        told = await messages(page, 2)
        assert [topic for topic, _ in told] == ["event", "node/pi/state"]
        assert told[0][1]["text"] == "<b>pi</b> left"
        assert told[1][1] is None


async def test_no_credential_is_in_what_a_browser_gets(world: World) -> None:
    async with await world.browser() as page:
        first = await frame(page)
        assert first["broker"] == "mqtt://10.0.0.9:1883"
        text = json.dumps(first)
        assert "secret-word" not in text
        assert "ada" not in text


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
async def test_other_sites_pages_get_no_socket(world: World, headers: dict[str, str]) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await world.browser(headers=headers)
    assert refused.value.status == 403


async def test_a_thousand_events_are_kept_and_no_more(world: World) -> None:
    for number in range(MOST_EVENTS + 10):
        await world.say("event", happening(str(number)))
    await until(lambda: world.watch.events and world.watch.events[-1].text == str(MOST_EVENTS + 9))
    async with await world.browser(max_msg_size=0) as page:
        events = (await frame(page))["events"]
        assert [event["text"] for event in events] == [
            str(number) for number in range(10, MOST_EVENTS + 10)
        ]


async def test_the_charts_begin_with_a_past(world: World) -> None:
    metrics = Metrics(counters={}, models={}, nodes_online=2, cpu_s=1.0, memory_bytes=1)
    for _ in range(3):
        await world.say("metrics", encode_json(metrics))
    await until(lambda: len(world.watch.history.moments) == 3)
    async with await world.browser() as page:
        assert len((await frame(page))["history"]) == 3


async def test_the_broker_away_and_back(world: World) -> None:
    """What is not said again after a reconnection is gone, and what happened meanwhile is caught up with."""
    await world.say("node_state", node("pi"), node="pi")
    await world.say("node_state", node("ghost"), node="ghost")
    await until(lambda: len(world.watch.overview.nodes) == 2)
    async with await world.browser() as page:
        await frame(page)
        world.wire.cut("page")
        assert await frame(page) == {"kind": "connection", "connected": False}
        await world.say("node_state", b"", node="ghost")
        left = Happening(event="node_left", text="ghost left", at=datetime.now(UTC).isoformat())
        world.earlier.append(left)
        world.wire.mend("page")
        await until(lambda: world.watch.events)
        # It was on its way, too: what is caught up with is not told twice.
        await world.say("event", encode_json(left))
        seen: list[list[Any]] = []
        back = False
        while not back or ["node/ghost/state", None] not in seen:
            told = await frame(page)
            if told["kind"] == "connection":
                back = told["connected"]
            else:
                seen.extend(told["messages"])
        assert [told["text"] for topic, told in seen if topic == "event"] == ["ghost left"]
        assert [*world.watch.events] == [left]
        assert [*world.watch.overview.nodes] == ["pi"]


async def test_what_is_no_message_is_dropped(world: World) -> None:
    async with await world.browser() as page:
        await frame(page)
        for payload in (b"{", b"\xff\xfe", b"[]", b'{"event": 1}', b"x" * (2 << 20)):
            await world.say("event", payload)
            await world.say("telemetry", payload, node="pi")
        await world.say("event", happening("still here"))
        assert [told["text"] for _, told in await messages(page, 1)] == ["still here"]


async def test_on_a_closed_cluster_nobody_but_the_orchestrator_is_believed(tmp_path: Path) -> None:
    wire, cluster = FakeBroker(), Cluster()
    watch = Watch(wire.control("page", will=None), TOPICS, Admission(cluster.agent), grace_s=0.05)
    speaker = wire.control("speaker", will=None)
    true = encode_json(OrchestratorState(state="online", incarnation=2))
    forged = encode_json(OrchestratorState(state="lost", incarnation=3))
    async with speaker, watch.running():
        await speaker.publish(STATE, true, properties=cluster.signer().sign(STATE, true))
        await speaker.publish(STATE, forged)
        await speaker.publish(EVENT, happening("after it"))
        await until(lambda: watch.events)
        assert watch.overview.orchestrator is not None
        assert watch.overview.orchestrator.incarnation == 2
        model = TOPICS.topic("model_state", model="m")
        served = encode_json(ModelState(state="serving", model="m", generation=1))
        await speaker.publish(model, served, properties=cluster.signer().sign(model, served))
        await until(lambda: watch.overview.models)
        # The broker has forgotten it: that nobody says it any more needs no signature.
        wire.cut("page")
        await until(lambda: not watch.connected)
        wire.mend("page")
        await until(lambda: not watch.overview.models)


async def test_a_browser_that_does_not_read_is_let_go(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would miss events, so it has to begin again; the others get all of them."""
    monkeypatch.setattr(live_module, "Mailbox", lambda: Mailbox(most_items=50))
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.setblocking(False)
    await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", world.address.port))
    reader, writer = await asyncio.open_connection(sock=small, limit=4096)
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    await writer.drain()
    assert b"101" in await reader.readline()
    monkeypatch.undo()
    async with await world.browser(max_msg_size=0) as quick:
        await frame(quick)
        # Eleven megabytes are more than the kernel keeps for who does not read.
        for number in range(12):
            await world.say("event", happening(f"{number} {'x' * 900_000}"))
        for number in range(60):
            await world.say("event", happening(f"small {number}"))
        told = await messages(quick, 72)
        assert told[-1][1]["text"] == "small 59"
    # Whatever it reads now ends: with a close frame, or with the connection.
    async with asyncio.timeout(10):
        while await reader.read(1 << 20):
            pass
    writer.close()


async def test_the_end_of_the_server_is_told(world: World) -> None:
    async with await world.browser() as page:
        await frame(page)
        world.site.closing.set()
        async with asyncio.timeout(5):
            said = await page.receive()
        assert said.type is aiohttp.WSMsgType.CLOSE
        assert (said.data, said.extra) == (1001, "the orchestrator ends")

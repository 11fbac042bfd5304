"""A main broker and a branch, two real Mosquittos: what crosses, and what a cut between them leaves."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from broker.access import Role, User
from broker.bridge import Bridge
from broker.closed import ClosedBroker
from broker.config import BrokerConfig
from broker.launcher import Broker
from shared.bus import BrokerUrl, Message, MqttControlBus, Properties
from shared.topics import Topics
from tests.broker.conftest import until
from tests.fakes.delay import DelayRelay

TOPICS = Topics()
PROPERTIES = Properties(
    response_topic=f"{TOPICS.root}/result/me",
    correlation_data=b"\x00\xffjob",
    content_type="image/jpeg",
    user=(("job", "j-1"), ("mac", "ff"), ("job", "again")),
)


class Side:
    """A client of one of the two brokers that hears everything it may."""

    def __init__(self, url: BrokerUrl, name: str) -> None:
        self.bus = MqttControlBus(url, client_id=name, first_connect_timeout_s=10)
        self.heard: list[Message] = []

    async def publish(
        self,
        name: str,
        payload: bytes,
        *,
        retain: bool = False,
        properties: Properties | None = None,
        **levels: str | int,
    ) -> None:
        topic = TOPICS.topic(name, **levels)
        await self.bus.publish(topic, payload, retain=retain, properties=properties)

    def payloads(self, name: str, **levels: str | int) -> list[bytes]:
        topic = TOPICS.topic(name, **levels)
        return [bytes(message.payload) for message in self.heard if message.topic == topic]

    @contextlib.asynccontextmanager
    async def inside(self) -> AsyncIterator[Side]:
        async with self.bus:
            reader = asyncio.create_task(self._read())
            await self.bus.subscribe(f"{TOPICS.root}/#")
            await self.bus.subscribe("$SYS/broker/connection/+/state")
            try:
                yield self
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    def bridged(self) -> bool:
        """Whether the branch says that its bridge stands."""
        said = [m.payload for m in self.heard if m.topic.startswith("$SYS/broker/connection/")]
        return bool(said) and bytes(said[-1]) == b"1"

    async def _read(self) -> None:
        async for message in self.bus.messages():
            self.heard.append(message)


class Pair:
    """Clients of both, and the wire between the brokers."""

    def __init__(self, main: Side, branch: Side, wire: DelayRelay, main_broker: Broker) -> None:
        self.main, self.branch, self.wire, self.main_broker = main, branch, wire, main_broker

    async def crossed(self) -> None:
        """Wait until a message crosses in each direction: subscriptions are made on both sides."""
        count = 0

        def came() -> bool:
            return b"there" in self.main.payloads("report", node="probe") and b"back" in (
                self.branch.payloads("assignment", node="probe")
            )

        async with asyncio.timeout(30):
            while not came():
                count += 1
                await self.branch.publish("report", b"there", node="probe")
                await self.main.publish("assignment", b"back", node="probe")
                with contextlib.suppress(TimeoutError):
                    await until(came, 0.5)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with contextlib.AsyncExitStack() as stack:
        main = await stack.enter_async_context(Broker(directory=tmp_path / "main"))
        wire = await stack.enter_async_context(DelayRelay("127.0.0.1", main.port))
        bridge = Bridge(
            remote=BrokerUrl.parse(f"127.0.0.1:{wire.port}"), root=TOPICS.root, name="barn"
        )
        branch = await stack.enter_async_context(
            Broker(directory=tmp_path / "branch", config=BrokerConfig(bridge=bridge))
        )
        sides = [
            await stack.enter_async_context(Side(BrokerUrl.parse(broker.url), name).inside())
            for broker, name in ((main, "at-main"), (branch, "at-branch"))
        ]
        pair = Pair(sides[0], sides[1], wire, main)
        await pair.crossed()
        yield pair


async def test_a_job_and_its_answer_cross_with_their_properties_and_once(pair: Pair) -> None:
    await pair.branch.publish("infer", b"image", properties=PROPERTIES, model="m")
    await until(lambda: pair.main.payloads("infer", model="m"))
    (job,) = [m for m in pair.main.heard if m.payload == b"image"]
    assert (job.properties, job.qos) == (PROPERTIES, 1)
    for number in range(20):
        await pair.main.publish(
            "activation",
            b"in %d" % number,
            properties=PROPERTIES,
            pipeline="p",
            generation=1,
            stage=0,
        )
        await pair.branch.publish(
            "activation",
            b"on %d" % number,
            properties=PROPERTIES,
            pipeline="p",
            generation=1,
            stage=1,
        )
    await pair.branch.publish("stage_result", b"made", pipeline="p", generation=1)
    await pair.main.bus.publish(f"{TOPICS.root}/result/me", b"answer", properties=PROPERTIES)
    await until(lambda: any(m.payload == b"answer" for m in pair.branch.heard))
    await until(lambda: pair.main.payloads("stage_result", pipeline="p", generation=1))
    for side in (pair.main, pair.branch):
        for stage, word in ((0, b"in"), (1, b"on")):
            came = side.payloads("activation", pipeline="p", generation=1, stage=stage)
            assert came == [word + b" %d" % number for number in range(20)]  # in order, none twice
        assert [m.payload for m in side.heard].count(b"answer") == 1
        assert [m.payload for m in side.heard].count(b"image") == 1


async def test_what_stays_stays(pair: Pair) -> None:
    await pair.branch.publish("request", b"stop everything", verb="stop")
    await pair.main.publish("orchestrator_beat", b"beat", retain=True)
    await pair.branch.publish("artifact_probe", b"\0" * 1000, peer="pi-1")
    await pair.branch.publish("assignment", b"do as I say", node="pi-1")
    await pair.main.publish("node_state", b"posing", node="pi-9")
    # What was sent after them has crossed: on each side, they would have before it.
    await pair.branch.publish("report", b"last", node="pi-1")
    await pair.main.publish("assignment", b"last", node="pi-2")
    await until(lambda: pair.main.payloads("report", node="pi-1"))
    await until(lambda: pair.branch.payloads("assignment", node="pi-2"))
    heard = {bytes(m.payload) for m in pair.main.heard}
    assert not heard & {b"stop everything", b"\0" * 1000, b"do as I say"}
    assert not {bytes(m.payload) for m in pair.branch.heard} & {b"beat", b"posing"}


async def test_after_a_cut_both_sides_have_what_was_said_last(pair: Pair) -> None:
    """Retained states that changed on their own side meanwhile, and jobs that waited at the branch.

    What was cleared at the main broker meanwhile stays at the branch: Mosquitto 2.0.11 keeps no session of an
    MQTT 5 bridge, and only sends again what is retained (`broker/CLUSTERS.md`).
    """
    await pair.branch.publish("node_state", b"online", retain=True, node="pi-1")
    await pair.main.publish("model_state", b"loading", retain=True, model="m")
    await until(lambda: pair.main.payloads("node_state", node="pi-1"))
    await until(lambda: pair.branch.payloads("model_state", model="m"))
    assert pair.branch.bridged()

    pair.wire.cut()
    await until(lambda: not pair.branch.bridged())
    await pair.branch.publish("node_state", b"lost", retain=True, node="pi-1")
    await pair.main.publish("model_state", b"serving", retain=True, model="m")
    for number in range(10):
        await pair.branch.publish("infer", b"%d" % number, properties=PROPERTIES, model="m")
    pair.wire.heal()
    await until(pair.branch.bridged, 30)
    await until(lambda: len(pair.main.payloads("infer", model="m")) >= 10, 30)
    await pair.crossed()

    came = pair.main.payloads("infer", model="m")
    assert list(dict.fromkeys(came)) == [b"%d" % number for number in range(10)]
    for side in (pair.main, pair.branch):
        late = Side(side.bus._url, "late")
        async with late.inside():
            await until(partial(late.payloads, "node_state", node="pi-1"))
            await until(partial(late.payloads, "model_state", model="m"))
            assert late.payloads("node_state", node="pi-1") == [b"lost"]
            assert late.payloads("model_state", model="m") == [b"serving"]


async def test_a_last_will_at_the_branch_is_heard_at_the_main_broker(pair: Pair) -> None:
    from shared.bus import Publication

    topic = TOPICS.topic("node_state", node="pi-1")
    dying = MqttControlBus(
        pair.branch.bus._url,
        client_id="pi-1",
        will=Publication(topic=topic, payload=b"lost", retain=True),
        first_connect_timeout_s=10,
    )
    async with dying:
        await dying.publish(topic, b"online", retain=True)
        assert dying._connection is not None
        wire = dying._connection._paho.socket()
        assert isinstance(wire, socket.socket)
        wire.shutdown(socket.SHUT_RDWR)
        await until(lambda: b"lost" in pair.main.payloads("node_state", node="pi-1"))


async def test_a_closed_branch_of_a_closed_broker(tmp_path: Path, unused_port: int) -> None:
    """Its agents trust the main broker's authority, and its bridge may do what it has to and no more."""
    now = dt.datetime.now(dt.UTC)
    home = ClosedBroker.create(tmp_path / "main", hosts=["localhost"], port=unused_port, now=now)
    barn = ClosedBroker.create(
        tmp_path / "barn",
        hosts=["localhost"],
        now=now,
        main=home.add(User(name="barn", role=Role.BRIDGE)),
    )
    agent = barn.add(User(name="pi-1", role=Role.AGENT))
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(
            Broker(
                directory=home.directory,
                port=home.port,
                config=BrokerConfig(security=home.security),
            )
        )
        branch = await stack.enter_async_context(
            Broker(
                directory=barn.directory,
                config=BrokerConfig(security=barn.security, bridge=barn.bridge()),
            )
        )
        assert (barn.directory / "mosquitto.conf").stat().st_mode & 0o077 == 0  # it has a password
        main = BrokerUrl.parse(f"@{home.token_file('orchestrator')}")
        assert main.credentials is not None
        assert agent.credentials is not None
        assert agent.credentials.authority == main.credentials.authority
        agent = replace(agent, port=branch.port)
        sides = [
            await stack.enter_async_context(Side(url, name).inside())
            for url, name in ((main, "orchestrator"), (agent, "pi-1"))
        ]
        orchestrator, device = sides
        async with asyncio.timeout(30):
            while not (
                orchestrator.payloads("report", node="pi-1")
                and device.payloads("assignment", node="pi-1")
            ):
                await device.publish("report", b"here", node="pi-1")
                await orchestrator.publish("assignment", b"do", node="pi-1", properties=PROPERTIES)
                await asyncio.sleep(0.1)
        (told, *_) = [m for m in device.heard if m.payload == b"do"]
        assert told.properties == PROPERTIES

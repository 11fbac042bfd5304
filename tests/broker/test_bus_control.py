from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.config import BrokerConfig
from broker.launcher import Broker, find_mosquitto
from shared.bus import (
    Backoff,
    BrokerUrl,
    ControlBus,
    Message,
    MqttControlBus,
    Properties,
    Publication,
)
from shared.errors import BrokerError, BrokerUnreachableError
from tests.broker.conftest import until
from tests.fakes.hostile import HostileClient, publish_packet, user_property


def control(url: BrokerUrl, name: str, **settings: object) -> MqttControlBus:
    settings.setdefault("first_connect_timeout_s", 10.0)
    settings.setdefault("backoff", Backoff(first_s=0.02, limit_s=0.1))
    return MqttControlBus(url, client_id=name, **settings)  # type: ignore[arg-type]


async def take(bus: ControlBus, count: int) -> list[Message]:
    messages: list[Message] = []
    async with asyncio.timeout(10):
        async for message in bus.messages():
            messages.append(message)
            if len(messages) == count:
                break
    return messages


@contextlib.asynccontextmanager
async def collecting(bus: ControlBus) -> AsyncIterator[list[Message]]:
    received: list[Message] = []

    async def collect() -> None:
        async for message in bus.messages():
            received.append(message)  # noqa: PERF401 (watched while it grows)

    task = asyncio.create_task(collect())
    try:
        yield received
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_carries_payload_and_properties(url: BrokerUrl) -> None:
    properties = Properties(
        response_topic="result/me/1",
        correlation_data=b"\x00\xff",
        content_type="image/jpeg",
        user=(("job", "7"), ("job", "8")),
        expiry_s=60,
    )
    async with control(url, "one") as bus:
        await bus.subscribe("a/+/c")
        await bus.publish("a/b/c", b"payload", properties=properties)
        await bus.publish("a/b", b"not for us")
        await bus.publish("a/x/c", b"", 0)
        first, second = await take(bus, 2)
    assert (first.topic, first.payload, first.qos, first.retain) == ("a/b/c", b"payload", 1, False)
    assert first.properties == properties
    assert first.properties.user_value("job") == "7"
    assert (second.topic, second.payload, second.qos) == ("a/x/c", b"", 0)
    assert second.properties == Properties()


async def test_subscribing_before_the_connection_and_retained_messages(url: BrokerUrl) -> None:
    async with control(url, "one") as first:
        await first.publish("state", b"kept", retain=True)
    second = control(url, "two")
    await second.subscribe("state")
    async with second:
        (message,) = await take(second, 1)
        assert message.payload == b"kept"
        assert message.retain
        await second.unsubscribe("state")
        await second.subscribe("end")
        await second.publish("state", b"unheard")
        await second.publish("end", b"")
        (message,) = await take(second, 1)
    assert message.topic == "end"


async def test_messages_end_when_the_bus_is_left(url: BrokerUrl) -> None:
    bus = control(url, "one")
    await bus.subscribe("a")
    async with bus:
        await bus.publish("a", b"1")
        await until(lambda: bus._inbox.qsize() == 1)
    assert [message.payload async for message in bus.messages()] == [b"1"]


async def test_comes_back_after_the_broker_was_killed(broker: Broker, url: BrokerUrl) -> None:
    births = 0
    bus = control(url, "one")

    async def birth() -> None:
        nonlocal births
        births += 1
        await bus.publish("birth", str(births).encode())

    bus.on_connect(birth)
    await bus.subscribe("birth")
    await bus.subscribe("later")
    async with bus, collecting(bus) as received:
        await until(lambda: [m.payload for m in received] == [b"1"])
        assert bus.reconnections == 0
        await broker.kill()
        await until(lambda: not bus.connected and bus.failure is not None)
        # Published into the gap: waits for the connection.
        waiting = asyncio.create_task(bus.publish("later", b"x"))
        await broker.start()
        await waiting
        await until(lambda: {m.payload for m in received} == {b"1", b"2", b"x"})
        assert bus.reconnections == 1
        assert bus.connected
        assert bus.failure is None


async def test_a_publication_lost_with_its_connection_is_sent_again(
    broker: Broker, url: BrokerUrl
) -> None:
    bus = control(url, "one", publish_timeout_s=20.0)
    async with bus:
        # Stopped, the broker takes the bytes and answers nothing; then it dies.
        os.kill(broker.pid, signal.SIGSTOP)
        publishing = asyncio.create_task(bus.publish("a", b"x", retain=True))
        await until(lambda: bus._connection is not None and bus._connection._answers)
        await broker.kill()
        await broker.start()
        await publishing
        await bus.subscribe("a")
        (message,) = await take(bus, 1)
    assert message.payload == b"x"


async def test_a_birth_that_fails_is_tried_again(
    url: BrokerUrl, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = 0

    async def birth() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ValueError("the first one fails")

    bus = control(url, "one")
    bus.on_connect(birth)
    async with bus:
        await until(lambda: attempts == 2 and bus.connected)
    assert "the first one fails" in caplog.text


async def test_will_fires_on_an_abrupt_end_and_not_on_a_clean_leave(url: BrokerUrl) -> None:
    will = Publication(topic="gone/one", payload=b"lost", retain=True)
    async with control(url, "watch") as watch, collecting(watch) as received:
        await watch.subscribe("gone/#")
        async with control(url, "one", will=will):
            pass
        # Whatever the broker had to say about that has come before this.
        await watch.publish("gone/marker", b"")
        await until(lambda: received)
        assert [m.topic for m in received] == ["gone/marker"]

        async with control(url, "one", will=will) as bus:
            assert bus._connection is not None
            sock = bus._connection._paho.socket()
            assert isinstance(sock, socket.socket)
            sock.shutdown(socket.SHUT_RDWR)
            await until(lambda: len(received) == 2)
        assert (received[1].topic, received[1].payload) == ("gone/one", b"lost")


async def test_the_broker_holds_what_a_slow_reader_has_not_taken(url: BrokerUrl) -> None:
    async with control(url, "source") as source, control(url, "slow", receive_maximum=4) as slow:
        await slow.subscribe("a")
        for number in range(20):
            await source.publish("a", b"%d" % number)
        await slow.round_trip()
        assert slow._inbox.qsize() == 4
        messages = await take(slow, 20)
        assert slow.dropped == 0
    assert [m.payload for m in messages] == [b"%d" % number for number in range(20)]


async def test_what_is_too_fast_at_qos_0_is_dropped_and_counted(
    url: BrokerUrl, caplog: pytest.LogCaptureFixture
) -> None:
    async with control(url, "source") as source, control(url, "slow", receive_maximum=4) as slow:
        await slow.subscribe("a", 0)
        for number in range(20):
            await source.publish("a", b"%d" % number, 0)
        await until(lambda: slow.dropped == 16)
        assert [m.payload for m in await take(slow, 4)] == [b"0", b"1", b"2", b"3"]
    assert "messages dropped" in caplog.text


async def test_manual_acknowledgement_survives_a_reconnection(
    broker: Broker, url: BrokerUrl
) -> None:
    jobs = control(
        url, "jobs", manual_ack=True, session_expiry_s=3600, clean_start=False, receive_maximum=100
    )
    await jobs.subscribe("job")
    async with jobs, control(url, "source") as source:
        for number in range(6):
            await source.publish("job", b"%d" % number)
        first = await take(jobs, 6)
        for message in (first[1], first[4], first[4]):
            jobs.acknowledge(message)
        await jobs.round_trip()
        await broker.restart()
        await until(lambda: jobs.reconnections == 1 and jobs.connected)
        again = await take(jobs, 4)
        assert [m.payload for m in again] == [b"0", b"2", b"3", b"5"]
        assert all(m.duplicate for m in again)
        jobs.acknowledge(first[0])  # of the earlier connection: harmless
        for message in again:
            jobs.acknowledge(message)
        await jobs.round_trip()
    async with control(url, "jobs", session_expiry_s=3600, clean_start=False) as jobs:
        await jobs.subscribe("job")
        async with control(url, "source") as source:
            await source.publish("job", b"last")
        (message,) = await take(jobs, 1)
    assert message.payload == b"last"


async def test_a_message_counts_as_done_when_the_reader_comes_back(url: BrokerUrl) -> None:
    async with control(url, "source") as source:
        async with control(url, "one", session_expiry_s=3600) as bus:
            await bus.subscribe("a")
            await source.publish("a", b"1")
            await source.publish("a", b"2")
            await take(bus, 2)  # breaks off with the second in hand
            await bus.round_trip()
        async with control(url, "one", session_expiry_s=3600, clean_start=False) as bus:
            (message,) = await take(bus, 1)
    assert message.payload == b"2"
    assert message.duplicate


async def test_the_socket_does_not_wait_for_full_packets(url: BrokerUrl) -> None:
    async with control(url, "one") as bus:
        assert bus._connection is not None
        sock = bus._connection._paho.socket()
        assert isinstance(sock, socket.socket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_round_trip_is_measured_without_a_message(url: BrokerUrl) -> None:
    async with control(url, "watch") as watch, control(url, "one") as bus:
        await watch.subscribe("#")
        assert 0 < await bus.round_trip() < 5
        await watch.publish("marker", b"")
        (message,) = await take(watch, 1)
    assert message.topic == "marker"


async def test_an_answer_for_which_nobody_waits_any_more(
    broker: Broker, url: BrokerUrl, caplog: pytest.LogCaptureFixture
) -> None:
    async with control(url, "one", publish_timeout_s=0.05) as bus:
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            with pytest.raises(BrokerUnreachableError):
                await bus.round_trip()
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        # In the same stream as the late answer, and after it.
        await bus.subscribe("a")
        await bus.publish("a", b"1", timeout_s=10.0)
        assert [m.payload for m in await take(bus, 1)] == [b"1"]
    assert caplog.text == ""


async def test_what_is_larger_than_the_owner_takes_does_not_come(url: BrokerUrl) -> None:
    async with (
        control(url, "source") as source,
        control(url, "small", maximum_packet_bytes=1000) as small,
    ):
        await small.subscribe("a")
        for qos in (0, 1):
            for size in (5000, 10, 2000, 20):
                await source.publish("a", bytes(size), qos)
        await source.publish("a", bytes(3000), retain=True)
        await small.subscribe("a")
        await source.publish("a", b"last")
        sizes = [len(m.payload) for m in await take(small, 5)]
    assert sizes == [10, 20, 10, 20, 4]


async def test_a_payload_of_20_mb(url: BrokerUrl) -> None:
    payload = bytes(range(256)) * (20_000_000 // 256)
    async with control(url, "one") as bus:
        await bus.subscribe("big")
        await bus.publish("big", payload)
        (message,) = await take(bus, 1)
    assert message.payload == payload


async def test_nobody_at_the_address(unused_port: int) -> None:
    url = BrokerUrl(host="127.0.0.1", port=unused_port)
    with pytest.raises(BrokerUnreachableError) as caught:
        async with control(url, "one", first_connect_timeout_s=0.2):
            pytest.fail("entered without a broker")
    assert f"127.0.0.1:{unused_port}" in str(caught.value)
    assert "amp4ec broker" in str(caught.value)
    assert "refused" in str(caught.value)


async def test_a_service_begins_before_its_broker(tmp_path: Path, unused_port: int) -> None:
    url = BrokerUrl(host="127.0.0.1", port=unused_port)
    async with control(url, "one", first_connect_timeout_s=None) as bus:
        assert not bus.connected
        with pytest.raises(BrokerUnreachableError, match=f"127.0.0.1:{unused_port}"):
            await bus.publish("a", b"x", timeout_s=0.05)
        async with Broker(directory=tmp_path, port=unused_port):
            await bus.publish("a", b"x")
            assert bus.failure is None
            assert bus.reconnections == 0


async def test_leaving_while_connecting_leaves_no_socket_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.bus.connection.CONNECT_TIMEOUT_S", 0.3)
    # Accepts, never answers: aiomqtt waits for its CONNACK.
    accepted: list[asyncio.StreamWriter] = []
    closed = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        await reader.read()
        closed.set()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    async with server:
        url = BrokerUrl(host="127.0.0.1", port=port)
        with pytest.raises(BrokerUnreachableError, match="no connection"):
            async with control(url, "one", first_connect_timeout_s=0.1):
                pytest.fail("entered without an answer")
        async with asyncio.timeout(10):
            await closed.wait()
    assert accepted


async def test_a_wrong_password_is_said_at_once(tmp_path: Path, unused_port: int) -> None:
    async with _broker_with_login(tmp_path, unused_port, "anna", "s3cret/@"):
        good = BrokerUrl.parse(f"mqtt://anna:s3cret%2F%40@127.0.0.1:{unused_port}")
        async with control(good, "one") as bus:
            await bus.publish("a", b"x")
        for text in ("mqtt://anna:wrong@127.0.0.1", "mqtt://127.0.0.1"):
            with pytest.raises(BrokerUnreachableError, match="refused the login") as caught:
                async with control(BrokerUrl.parse(f"{text}:{unused_port}"), "two"):
                    pytest.fail("entered with a wrong password")
            assert "wrong" not in str(caught.value)


async def test_what_is_too_large_is_refused_before_the_wire(tmp_path: Path) -> None:
    config = BrokerConfig(max_packet_size=3000)
    async with (
        Broker(directory=tmp_path, config=config) as broker,
        control(BrokerUrl.parse(broker.url), "one") as bus,
    ):
        with pytest.raises(BrokerError, match="expected at most 1976 bytes; got 2000 bytes"):
            await bus.publish("a", bytes(2000))
        await bus.publish("a", bytes(1976))
        assert bus.reconnections == 0


async def test_what_the_broker_forbids_is_said(tmp_path: Path, unused_port: int) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite open/#\n")
    async with _mosquitto(tmp_path, unused_port, f"allow_anonymous true\nacl_file {acl}\n"):
        url = BrokerUrl(host="127.0.0.1", port=unused_port)
        async with control(url, "one") as bus:
            await bus.publish("open/a", b"x")
            with pytest.raises(BrokerError, match="Not authorized"):
                await bus.publish("closed", b"x")
            assert bus.reconnections == 0


@contextlib.asynccontextmanager
async def _broker_with_login(
    directory: Path, port: int, user: str, password: str
) -> AsyncIterator[None]:
    passwords = directory / "passwords"
    making = await asyncio.create_subprocess_exec(
        "mosquitto_passwd", "-b", "-c", passwords, user, password
    )
    assert await making.wait() == 0
    options = f"allow_anonymous false\npassword_file {passwords}\n"
    async with _mosquitto(directory, port, options):
        yield


@contextlib.asynccontextmanager
async def _mosquitto(directory: Path, port: int, options: str) -> AsyncIterator[None]:
    """A broker that is not ours, with options of its own."""
    config = directory / "other.conf"
    config.write_text(f"listener {port} 127.0.0.1\nset_tcp_nodelay true\nuser root\n{options}")
    process = await asyncio.create_subprocess_exec(
        find_mosquitto(), "-c", config, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.01)
                    continue
                writer.close()
                await writer.wait_closed()
                break
        yield
    finally:
        process.terminate()
        await process.wait()


def _hostile_properties() -> dict[str, bytes]:
    return {
        "byte order mark": user_property("\ufeff".encode(), b"x"),
        "format indicator": b"\x01\x02",
        "many": user_property(b"") * 100_000,
        "emoji": user_property("\U0001f600".encode(), b"x"),
    }


@pytest.mark.parametrize("name", _hostile_properties())
async def test_properties_that_a_broker_hands_on_end_no_connection(
    broker: Broker, url: BrokerUrl, name: str
) -> None:
    """paho hung up over the first two, at each connection again; over the third the loop stood for 16 s."""

    def attack() -> bool:
        with HostileClient(broker.port) as hostile:
            properties = _hostile_properties()[name]
            hostile.send(publish_packet("t", b"evil", properties=properties, qos=1, retain=True))
            return hostile.accepted()

    async with control(url, "one") as bus, collecting(bus) as received:
        await bus.subscribe("t")
        assert await asyncio.to_thread(attack)
        await bus.publish("t", b"good")
        await until(lambda: [message.payload for message in received] == [b"evil", b"good"])
        assert bus.reconnections == 0
    async with control(url, "two") as bus, collecting(bus) as received:
        await bus.subscribe("t")
        await bus.publish("t", b"", retain=True)
        await until(lambda: [message.payload for message in received] == [b"evil", b""])
        assert bus.reconnections == 0

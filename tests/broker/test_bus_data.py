from __future__ import annotations

import asyncio
import dataclasses
import socket
import threading
import time
from pathlib import Path

import pytest

from broker.config import BrokerConfig
from broker.launcher import Broker, find_mosquitto
from shared.bus import Backoff, BrokerUrl, MqttControlBus, MqttDataBus, Properties
from shared.errors import BrokerError, BrokerUnreachableError
from tests.broker.conftest import poll_until, receive


def data(url: BrokerUrl, name: str, **settings: object) -> MqttDataBus:
    settings.setdefault("backoff", Backoff(first_s=0.02, limit_s=0.1))
    return MqttDataBus(url, name, **settings)  # type: ignore[arg-type]


def settle(bus: MqttDataBus) -> None:
    """Until the broker has dealt with everything said so far: it answers in order."""
    bus.publish("settle", b"")
    assert bus.flush(10)


async def test_carries_payload_and_properties(url: BrokerUrl) -> None:
    def scenario() -> None:
        properties = Properties(response_topic="result/me", user=(("job", "7"),))
        bus = data(url, "one")
        bus.subscribe("a/+")
        assert bus.connect(10)
        assert (bus.connected, bus.sessions, bus.session_present) == (True, 1, False)
        bus.publish("a/1", b"bytes", properties=properties)
        bus.publish("a/2", bytearray(b"bytearray"), 0)
        bus.publish("a/3", memoryview(b"memoryview"))
        first, second, third = receive(bus, 3)
        assert (first.topic, first.payload, first.qos) == ("a/1", b"bytes", 1)
        assert first.properties == properties
        assert (second.payload, second.qos) == (b"bytearray", 0)
        assert third.payload == b"memoryview"
        assert type(third.payload) is bytes
        assert bus.bytes_received == bus.bytes_sent == len(b"bytesbytearraymemoryview")
        assert bus.receive() is None
        bus.unsubscribe("a/+")
        bus.subscribe("end")
        bus.publish("a/1", b"unheard")
        bus.publish("end", b"")
        assert [m.topic for m in receive(bus, 1)] == ["end"]
        bus.close()
        bus.close()

    await asyncio.to_thread(scenario)


async def test_both_faces_meet_on_the_same_topics(url: BrokerUrl) -> None:
    async with MqttControlBus(url, client_id="control", first_connect_timeout_s=10) as control:
        await control.subscribe("to/control")
        bus = data(url, "data")
        bus.subscribe("to/data")

        def stage() -> None:
            assert bus.connect(10)
            settle(bus)
            bus.publish("to/control", b"ready")
            (message,) = receive(bus, 1)
            bus.publish("to/control", message.payload.upper())
            assert bus.flush(10)
            bus.close()

        running = asyncio.create_task(asyncio.to_thread(stage))
        messages = control.messages()
        assert (await anext(messages)).payload == b"ready"
        await control.publish("to/data", b"activation")
        assert (await anext(messages)).payload == b"ACTIVATION"
        await running


async def test_the_socket_does_not_wait_for_full_packets(url: BrokerUrl) -> None:
    bus = data(url, "one")
    assert bus.connect(10)
    assert bus._link is not None
    sock = bus._link.socket
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    bus.close()


async def test_acknowledgements_do_not_wake_and_are_not_forgotten(url: BrokerUrl) -> None:
    def scenario() -> None:
        bus = data(url, "one")
        assert bus.connect(10)
        bus.publish("to/nobody", b"one")
        deadline = time.monotonic() + 10
        # Nothing but the acknowledgement comes: it is read although it alone wakes nobody.
        while bus.unacknowledged and time.monotonic() < deadline:
            bus.poll(0.2)
        assert bus.unacknowledged == 0
        bus.publish("to/nobody", b"two")
        assert bus.flush(10)
        assert bus.unacknowledged == 0
        bus.close()

    await asyncio.to_thread(scenario)


async def test_comes_back_after_the_broker_was_killed(broker: Broker, url: BrokerUrl) -> None:
    bus = data(url, "one")
    bus.subscribe("a")
    assert await asyncio.to_thread(bus.connect, 10)
    await broker.kill()
    await asyncio.to_thread(poll_until, bus, lambda: not bus.connected)
    assert bus.failure
    # Kept until there is a connection; QoS 0 is not.
    bus.publish("a", b"kept")
    bus.publish("a", b"dropped", 0)
    assert bus.unacknowledged == 1
    await broker.start()
    (message,) = await asyncio.to_thread(receive, bus, 1)
    assert message.payload == b"kept"
    assert bus.connected
    assert bus.sessions == 2
    await asyncio.to_thread(bus.close)


async def test_a_broker_that_comes_later(tmp_path: Path, unused_port: int) -> None:
    bus = data(BrokerUrl(host="127.0.0.1", port=unused_port), "one")
    assert not bus.connect(0.05)
    assert "refused" in (bus.failure or "")
    bus.publish("a", b"early", retain=True)
    async with Broker(directory=tmp_path, port=unused_port):
        await asyncio.to_thread(poll_until, bus, lambda: bus.connected)
        assert await asyncio.to_thread(bus.flush, 10)
        bus.subscribe("a")
        (message,) = await asyncio.to_thread(receive, bus, 1)
        assert message.payload == b"early"
        await asyncio.to_thread(bus.close)


async def test_wake_from_another_thread(url: BrokerUrl) -> None:
    def scenario() -> None:
        bus = data(url, "one")
        assert bus.connect(10)
        settle(bus)
        begin = time.monotonic()
        waker = threading.Timer(0.05, bus.wake)
        waker.start()
        bus.poll(60)
        waker.join()
        assert time.monotonic() - begin < 30
        # A wake-up that comes before the wait ends that wait.
        for _ in range(100_000):
            bus.wake()
        bus.poll(60)
        assert time.monotonic() - begin < 30
        bus.close()
        bus.wake()

    await asyncio.to_thread(scenario)


async def test_wake_ends_a_wait_without_a_broker(unused_port: int) -> None:
    bus = data(
        BrokerUrl(host="127.0.0.1", port=unused_port),
        "one",
        backoff=Backoff(first_s=60, limit_s=60),
    )
    assert not bus.connect()
    bus.wake()
    begin = time.monotonic()
    await asyncio.to_thread(bus.poll, 60)
    assert time.monotonic() - begin < 30
    bus.close()


async def test_redelivers_exactly_what_was_not_acknowledged(url: BrokerUrl) -> None:
    def scenario() -> None:
        source = data(url, "source")
        assert source.connect(10)
        jobs = data(
            url,
            "jobs",
            clean_start=False,
            session_expiry_s=3600,
            manual_ack=True,
            receive_maximum=100,
        )
        jobs.subscribe("job")
        assert jobs.connect(10)
        settle(jobs)
        for number in range(100):
            source.publish("job", b"%d" % number)
        assert source.flush(10)
        first = receive(jobs, 90)
        # 10 more wait here unread: those come again too, and only once.
        poll_until(jobs, lambda: len(jobs._inbox) == 10)
        for message in reversed(first[::2]):
            jobs.acknowledge(message)
            jobs.acknowledge(message)
        settle(jobs)
        _break(jobs)
        poll_until(jobs, lambda: jobs.sessions == 2)
        assert jobs.session_present
        again = receive(jobs, 55)
        expected = {b"%d" % n for n in range(100)} - {m.payload for m in first[::2]}
        assert {m.payload for m in again} == expected
        assert all(message.duplicate for message in again)
        for message in first:
            jobs.acknowledge(message)  # of an earlier connection: harmless
        settle(jobs)
        _break(jobs)
        poll_until(jobs, lambda: jobs.sessions == 3)
        assert {m.payload for m in receive(jobs, 55)} == expected
        settle(jobs)
        assert jobs.receive() is None
        jobs.close()
        source.close()

    await asyncio.to_thread(scenario)


async def test_the_broker_holds_what_is_beyond_the_receive_maximum(url: BrokerUrl) -> None:
    def scenario() -> None:
        bus = data(url, "one", manual_ack=True, receive_maximum=4)
        bus.subscribe("a")
        assert bus.connect(10)
        for number in range(10):
            bus.publish("a", b"%d" % number)
        settle(bus)
        assert len(bus._inbox) == 4
        for number in range(10):
            (message,) = receive(bus, 1)
            assert message.payload == b"%d" % number
            bus.acknowledge(message)
        bus.close()

    await asyncio.to_thread(scenario)


async def test_a_full_inbox_holds_the_broker_back(url: BrokerUrl) -> None:
    def scenario() -> None:
        source, slow = data(url, "source"), data(url, "slow", inbox_limit=3)
        slow.subscribe("a")
        assert source.connect(10)
        assert slow.connect(10)
        settle(slow)
        for number in range(20):
            source.publish("a", b"%d" % number)
        assert source.flush(10)
        poll_until(slow, lambda: len(slow._inbox) >= 3)
        for _ in range(10):
            slow.poll(0.01)
        assert len(slow._inbox) == 3
        assert len(receive(slow, 20)) == 20
        source.close()
        slow.close()

    await asyncio.to_thread(scenario)


async def test_the_outgoing_queue_is_bounded(unused_port: int) -> None:
    url = BrokerUrl(host="127.0.0.1", port=unused_port)
    bus = data(url, "one", queue_messages=3, queue_bytes=100)
    bus.publish("a", bytes(200))  # one is always taken
    with pytest.raises(BrokerUnreachableError, match="does not acknowledge"):
        bus.publish("a", b"x")
    bus.close()
    bus = data(url, "two", queue_messages=3, queue_bytes=100)
    for _ in range(3):
        bus.publish("a", b"x")
    with pytest.raises(BrokerUnreachableError, match="3 messages"):
        bus.publish("a", b"x")
    bus.publish("a", b"x", 0)
    assert not bus.flush(0.01)
    bus.close()


async def test_what_is_too_large_is_refused_before_the_wire(tmp_path: Path) -> None:
    config = BrokerConfig(max_packet_size=3000)
    async with Broker(directory=tmp_path, config=config) as broker:
        bus = data(BrokerUrl.parse(broker.url), "one")
        assert await asyncio.to_thread(bus.connect, 10)
        with pytest.raises(BrokerError, match="larger than the broker takes"):
            bus.publish("a", bytes(2000))
        await asyncio.to_thread(settle, bus)
        assert bus.sessions == 1
        await asyncio.to_thread(bus.close)


async def test_a_payload_of_20_mb(url: BrokerUrl) -> None:
    def scenario() -> None:
        payload = bytes(range(256)) * (20_000_000 // 256)
        bus = data(url, "one")
        bus.subscribe("big")
        assert bus.connect(10)
        bus.publish("big", payload)
        (message,) = receive(bus, 1, 30)
        assert message.payload == payload
        bus.close()

    await asyncio.to_thread(scenario)


async def test_the_connection_outlives_a_computation_longer_than_the_keep_alive(
    url: BrokerUrl,
) -> None:
    def scenario() -> None:
        bus = data(url, "one", keepalive_s=1)
        bus.subscribe("a")
        assert bus.connect(10)
        settle(bus)
        bus.publish("a", b"")
        # A computation: nobody looks at the connection. The broker waits 1.5 keep-alives.
        deadline = time.monotonic() + 1.2
        while time.monotonic() < deadline:
            threading.Event().wait(0.05)
        assert receive(bus, 1)
        # And in a long wait it is kept alive, though there is nothing to return for.
        deadline = time.monotonic() + 2.5
        while (left_s := deadline - time.monotonic()) > 0:
            assert not bus.poll(left_s)
        assert (bus.connected, bus.sessions) == (True, 1)
        bus.close()

    await asyncio.to_thread(scenario)


async def test_the_connection_outlives_a_backlog_longer_than_the_keep_alive(url: BrokerUrl) -> None:
    def scenario() -> None:
        source = data(url, "source")
        slow = data(url, "slow", keepalive_s=1, inbox_limit=1, manual_ack=True)
        slow.subscribe("a")
        assert source.connect(10)
        assert slow.connect(10)
        settle(slow)
        for number in range(999):
            source.publish("a", b"%d" % number)
        assert source.flush(10)
        # All of them come at once, and there is no reason to read again while they are worked on.
        deadline = time.monotonic() + 3.5
        taken = 0
        while time.monotonic() < deadline:
            assert slow.poll(1.0)
            message = slow.receive()
            assert message is not None
            assert message.payload == b"%d" % taken
            taken += 1
            slow.acknowledge(message)
            threading.Event().wait(0.01)
        assert taken < 999, "the backlog was too short"
        assert (slow.connected, slow.sessions) == (True, 1)
        source.close()
        slow.close()

    await asyncio.to_thread(scenario)


async def test_what_the_socket_does_not_take_at_once_goes_later(url: BrokerUrl) -> None:
    def scenario() -> None:
        bus = data(url, "one")
        bus.subscribe("a")
        assert bus.connect(10)
        assert bus._link is not None
        bus._link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        payloads = [bytes((number,)) * (number * 3000) for number in range(1, 20)]
        for payload in payloads:
            bus.publish("a", payload)
        assert bus._session.outgoing
        assert [m.payload for m in receive(bus, len(payloads))] == payloads
        assert bus.flush(10)
        assert bus.sessions == 1
        bus.close()

    await asyncio.to_thread(scenario)


async def test_the_broker_dies_in_the_middle_of_a_payload(broker: Broker, url: BrokerUrl) -> None:
    payload = bytes(range(256)) * (20_000_000 // 256)
    bus = data(url, "one")
    bus.subscribe("big")
    assert await asyncio.to_thread(bus.connect, 10)
    bus.publish("big", payload)
    await asyncio.to_thread(poll_until, bus, lambda: bus._session.reader.missing_bytes)
    await broker.kill()
    await asyncio.to_thread(poll_until, bus, lambda: not bus.connected)
    await broker.start()
    (message,) = await asyncio.to_thread(receive, bus, 1)
    assert message.payload == payload
    assert await asyncio.to_thread(bus.flush, 10)
    await asyncio.to_thread(bus.close)


async def test_what_is_published_before_close_arrives(
    url: BrokerUrl, caplog: pytest.LogCaptureFixture
) -> None:
    def scenario() -> None:
        sink, source = data(url, "sink"), data(url, "source")
        sink.subscribe("a")
        source.subscribe("a")
        assert sink.connect(10)
        assert source.connect(10)
        settle(sink)
        for _ in range(20):
            source.publish("a", bytes(500_000))
        source.close()  # with much on its way to it, too
        assert not caplog.messages
        assert len(receive(sink, 20)) == 20
        sink.close()

    await asyncio.to_thread(scenario)


async def test_publications_may_leave_together(url: BrokerUrl) -> None:
    def scenario() -> None:
        bus, other = data(url, "one", gather_writes=True), data(url, "other")
        other.subscribe("a")
        assert bus.connect(10)
        assert other.connect(10)
        settle(other)
        for number in range(3):
            bus.publish("a", b"%d" % number)
        assert bus._session.outgoing
        bus.poll(0)
        assert not bus._session.outgoing
        assert [m.payload for m in receive(other, 3)] == [b"0", b"1", b"2"]
        bus.publish("a", b"3")
        bus.close()
        assert receive(other, 1)[0].payload == b"3"
        other.close()

    await asyncio.to_thread(scenario)


async def test_a_broker_that_wants_a_login(tmp_path: Path, unused_port: int) -> None:
    passwords, config = tmp_path / "passwords", tmp_path / "login.conf"
    making = await asyncio.create_subprocess_exec(
        "mosquitto_passwd", "-b", "-c", passwords, "ann", "secret"
    )
    assert await making.wait() == 0
    config.write_text(
        f"listener {unused_port} 127.0.0.1\npassword_file {passwords}\nallow_anonymous false\nuser root\n"
    )
    process = await asyncio.create_subprocess_exec(
        find_mosquitto(), "-c", config, stderr=asyncio.subprocess.DEVNULL
    )
    wrong = BrokerUrl(host="127.0.0.1", port=unused_port, username="ann", password="guessed")
    bus = data(wrong, "one")
    await asyncio.to_thread(poll_until, bus, lambda: "said" in (bus.failure or ""))
    assert bus.failure == "the broker said: not authorized"
    bus.close()
    bus = data(dataclasses.replace(wrong, password="secret"), "one")
    assert await asyncio.to_thread(bus.connect, 10)
    bus.close()
    process.terminate()
    await process.wait()


async def test_a_second_client_of_the_same_name_ends_the_first(url: BrokerUrl) -> None:
    def scenario() -> None:
        first = data(url, "one", backoff=Backoff(first_s=60, limit_s=60))
        second = data(url, "one")
        assert first.connect(10)
        assert second.connect(10)
        poll_until(first, lambda: not first.connected)
        assert first.failure == "the broker closed the connection"  # Mosquitto 2.0 says no more
        first.close()
        second.close()

    await asyncio.to_thread(scenario)


@pytest.mark.parametrize(
    "garbage", [b"\x15\x03\x01\x00\x02\x02\x50", b"HTTP/1.1 400 Bad Request\r\n"]
)
async def test_something_else_answers(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            bus = data(BrokerUrl(host="127.0.0.1", port=server.getsockname()[1]), "one")
            bus.connect()
            for _ in range(2):  # it hangs up, and comes again
                stranger = _accept(server, bus)
                stranger.sendall(garbage)
                poll_until(bus, lambda: bus.failure)
                assert stranger.recv(1000)[0] == 0x10
                stranger.close()
            assert "packet" in (bus.failure or "")
            bus.close()
        assert len(caplog.messages) == 1

    await asyncio.to_thread(scenario)


def _accept(server: socket.socket, bus: MqttDataBus) -> socket.socket:
    server.setblocking(False)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        bus.poll(0.02)
        try:
            stranger, _ = server.accept()
        except BlockingIOError:
            continue
        stranger.settimeout(10)
        return stranger
    raise AssertionError("nobody came")


def _break(bus: MqttDataBus) -> None:
    assert bus._link is not None
    bus._link.socket.shutdown(socket.SHUT_RDWR)

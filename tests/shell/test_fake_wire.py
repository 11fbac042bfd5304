"""The fake wire must do what the real one does, or shells are tested against a fiction."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bus import ControlBus, DataBus, Message, Properties, Publication
from shared.errors import BrokerUnreachableError
from tests.fakes.faces import FakeControlBus, FakeDataBus
from tests.fakes.wire import FakeBroker, Mischief


def faces_are_complete(control: FakeControlBus, data: FakeDataBus) -> tuple[ControlBus, DataBus]:
    """Checked by mypy: the fakes implement the protocols."""
    return control, data


def drain(bus: DataBus) -> list[bytes | bytearray]:
    payloads = []
    while (message := bus.receive()) is not None:
        payloads.append(message.payload)
    return payloads


async def take(bus: ControlBus, count: int) -> list[Message]:
    messages: list[Message] = []
    async with asyncio.timeout(5):
        async for message in bus.messages():
            messages.append(message)
            if len(messages) == count:
                break
    return messages


def test_data_faces_carry_messages() -> None:
    broker = FakeBroker()
    one, two = broker.data("one"), broker.data("two")
    two.subscribe("a/+")
    assert one.connect()
    assert two.connect()
    properties = Properties(response_topic="result/x", correlation_data=b"7")
    one.publish("a/1", memoryview(b"x"), properties=properties)
    one.publish("b/1", b"unheard")
    assert two.poll(0)
    message = two.receive()
    assert message is not None
    assert (message.topic, message.payload, message.properties) == ("a/1", b"x", properties)
    assert not two.poll(0)
    assert (one.bytes_sent, two.bytes_received) == (8, 1)
    with pytest.raises(ValueError, match="not a topic"):
        one.publish("a/+", b"")


async def test_control_and_data_meet() -> None:
    broker = FakeBroker()
    stage = broker.data("stage")
    stage.subscribe("to/stage")
    stage.connect()
    async with broker.control("service") as service:
        await service.subscribe("to/service")
        await service.publish("to/stage", b"1")
        assert drain(stage) == [b"1"]
        stage.publish("to/service", b"2")
        (message,) = await take(service, 1)
        assert message.payload == b"2"
        assert await service.round_trip() > 0
    assert [message async for message in service.messages()] == []


async def test_a_stage_in_a_thread_of_its_own() -> None:
    broker = FakeBroker()

    def run() -> None:
        stage = broker.data("stage")
        stage.subscribe("in")
        stage.connect()
        stage.publish("out", b"ready")
        while True:
            stage.poll(5)
            for payload in drain(stage):
                if payload == b"end":
                    return
                stage.publish("out", payload.upper())

    async with broker.control("service") as service:
        await service.subscribe("out")
        thread = threading.Thread(target=run)
        thread.start()
        (ready,) = await take(service, 1)
        await service.publish("in", b"x")
        (message,) = await take(service, 1)
        await service.publish("in", b"end")
        await asyncio.to_thread(thread.join)
    assert (ready.payload, message.payload) == (b"ready", b"X")


async def test_retained_messages_come_with_each_subscription() -> None:
    broker = FakeBroker()
    broker.publish("state/1", b"old", 1, retain=True)
    broker.publish("state/1", b"new", 1, retain=True)
    broker.publish("state/2", b"x", 1, retain=True)
    broker.publish("state/2", b"", 1, retain=True)
    async with broker.control("one") as bus:
        await bus.subscribe("state/#")
        (message,) = await take(bus, 1)
        assert (message.payload, message.retain) == (b"new", True)
        await bus.publish("state/1", b"live", retain=True)
        (message,) = await take(bus, 1)
        assert (message.payload, message.retain) == (b"live", False)
        broker.cut("one")
        broker.mend("one")
        (message,) = await take(bus, 1)
        assert (message.payload, message.retain) == (b"live", True)


async def test_wills_are_for_abrupt_ends() -> None:
    broker = FakeBroker()
    watch = broker.data("watch")
    watch.subscribe("gone/#")
    watch.connect()
    will = Publication(topic="gone/one", payload=b"lost", retain=True)
    async with broker.control("one", will=will):
        pass
    assert drain(watch) == []
    async with broker.control("one", will=will) as bus:
        broker.cut("one")
        assert not bus.connected
        assert drain(watch) == [b"lost"]
    assert broker.retained["gone/one"].payload == b"lost"


async def test_births_after_every_connection() -> None:
    broker = FakeBroker()
    births: list[bool] = []
    bus = broker.control("one")

    async def birth() -> None:
        births.append(bus.connected)
        await bus.publish("birth", b"")

    bus.on_connect(birth)
    async with bus:
        await bus.publish("after", b"")
        broker.stop()
        assert not bus.connected
        waiting = asyncio.create_task(bus.publish("gap", b""))
        await asyncio.sleep(0)
        broker.start()
        await waiting
        assert bus.reconnections == 1
    assert births == [True, True]
    assert [m.topic for m in broker.published].count("birth") == 2


async def test_publishing_without_a_connection_ends_with_the_brokers_time() -> None:
    broker = FakeBroker()
    async with broker.control("one") as bus:
        await bus.round_trip()
        broker.stop()
        waiting = asyncio.create_task(bus.publish("a", b"", timeout_s=3))
        await asyncio.sleep(0)
        broker.advance(2.9)
        await asyncio.sleep(0)
        assert not waiting.done()
        broker.advance(0.2)
        with pytest.raises(BrokerUnreachableError):
            await waiting


def test_redelivers_exactly_what_was_not_acknowledged() -> None:
    broker = FakeBroker()
    jobs = broker.data("jobs", session_expiry_s=60, manual_ack=True, receive_maximum=5)
    jobs.subscribe("job")
    jobs.connect()
    for number in range(8):
        broker.publish("job", b"%d" % number, 1)
    first = [message for message in iter(jobs.receive, None) if message is not None]
    assert len(first) == 5  # the broker holds the rest
    for message in (first[0], first[3], first[3]):
        jobs.acknowledge(message)
    assert drain(jobs) == [b"5", b"6"]
    broker.cut("jobs")
    broker.publish("job", b"8", 1)
    jobs.acknowledge(first[1])  # too late: harmless
    broker.mend("jobs")
    assert (jobs.sessions, jobs.session_present) == (2, True)
    again = [message for message in iter(jobs.receive, None) if message is not None]
    assert [m.payload for m in again] == [b"1", b"2", b"4", b"5", b"6"]
    assert all(m.duplicate for m in again)
    for message in again:
        jobs.acknowledge(message)
    assert drain(jobs) == [b"7", b"8"]


def test_a_session_without_an_expiry_ends_with_its_connection() -> None:
    broker = FakeBroker()
    short, long = broker.data("short"), broker.data("long", session_expiry_s=60)
    for bus in (short, long):
        bus.subscribe("a")
        bus.connect()
    broker.stop()
    broker.start()
    assert (short.session_present, long.session_present) == (False, True)
    broker.cut("long")
    broker.advance(61)
    broker.mend("long")
    assert not long.session_present


def test_what_is_published_without_a_connection() -> None:
    broker = FakeBroker()
    bus = broker.data("one", queue_messages=2)
    assert not bus.connected
    bus.publish("a", b"1")
    bus.publish("a", b"lost", 0)
    bus.publish("a", b"2")
    with pytest.raises(BrokerUnreachableError):
        bus.publish("a", b"3")
    assert not bus.flush(0)
    assert bus.connect()
    assert bus.flush(0)
    assert [m.payload for m in broker.published] == [b"1", b"2"]


def test_delays_keep_the_order_unless_told_otherwise() -> None:
    def arrivals(*, reorder: bool) -> list[bytes | bytearray]:
        broker = FakeBroker(seed=1, mischief=(Mischief(delay_s=(0.1, 1.0), reorder=reorder),))
        bus = broker.data("one")
        bus.subscribe("a")
        bus.connect()
        for number in range(10):
            broker.publish("a", b"%d" % number, 1)
        assert drain(bus) == []
        broker.advance(1.0)
        return drain(bus)

    in_order = [b"%d" % number for number in range(10)]
    assert arrivals(reorder=False) == in_order
    assert arrivals(reorder=True) != in_order
    assert sorted(arrivals(reorder=True)) == in_order
    assert arrivals(reorder=True) == arrivals(reorder=True)


def test_drops_are_for_qos_0_and_losses_for_all() -> None:
    for mischief, qos, left in (
        (Mischief(drop_ratio=1.0), 0, 0),
        (Mischief(drop_ratio=1.0), 1, 1),
        (Mischief(lose_ratio=1.0), 1, 0),
        (Mischief(lose_ratio=1.0, pattern="other"), 1, 1),
        (Mischief(repeat_ratio=1.0), 1, 2),
    ):
        broker = FakeBroker(mischief=(mischief,))
        bus = broker.data("one")
        bus.subscribe("a")
        bus.connect()
        broker.publish("a", b"x", qos)  # type: ignore[arg-type]
        assert len(drain(bus)) == left, mischief


@given(
    seed=st.integers(0, 1000),
    steps=st.lists(st.sampled_from(("publish", "cut", "mend", "receive", "advance")), max_size=60),
)
def test_nothing_of_qos_1_is_lost_in_any_history(seed: int, steps: list[str]) -> None:
    broker = FakeBroker(
        seed=seed, mischief=(Mischief(repeat_ratio=0.3, delay_s=(0.0, 2.0), reorder=True),)
    )
    bus = broker.data("one", session_expiry_s=10_000, manual_ack=True, receive_maximum=3)
    bus.subscribe("a")
    bus.connect()
    sent = 0
    seen: set[bytes] = set()

    def receive() -> None:
        while (message := bus.receive()) is not None:
            seen.add(bytes(message.payload))
            bus.acknowledge(message)

    for step in steps:
        match step:
            case "publish":
                broker.publish("a", b"%d" % sent, 1)
                sent += 1
            case "cut":
                broker.cut("one")
            case "mend":
                broker.mend("one")
            case "receive":
                receive()
            case _:
                broker.advance(0.5)
    broker.mend("one")
    broker.advance(10)
    receive()
    assert seen == {b"%d" % number for number in range(sent)}

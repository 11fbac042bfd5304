"""The client's side of MQTT 5 without a network: what goes out for what is said and what comes in."""

from __future__ import annotations

import dataclasses
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bus import Properties, Qos
from shared.bus.mqtt5 import encode_puback, encode_publish, encode_subscribe, mark_duplicate
from shared.bus.mqtt5_values import BadPacketError, encode_variable_integer
from shared.bus.outbox import Outbox
from shared.bus.session import RefusedError, Session, SessionSettings
from shared.errors import BrokerError, BrokerUnreachableError

SETTINGS = SessionSettings(
    client_id="me",
    username=None,
    password=None,
    clean_start=True,
    session_expiry_s=0,
    manual_ack=False,
    maximum_packet_bytes=128 << 20,
    receive_maximum=64,
    inbox_bytes=1 << 20,
    keepalive_s=30,
    queue_messages=1000,
    queue_bytes=1 << 20,
)


def session(**settings: object) -> Session:
    return Session(dataclasses.replace(SETTINGS, **settings))  # type: ignore[arg-type]


def feed(to: Session, data: bytes, inbox_limit: int | None = None) -> None:
    view = memoryview(data)
    while view:
        space = to.reader.space()
        count = min(len(space), len(view))
        space[:count] = view[:count]
        view = view[count:]
        to.reader.filled(count)
        to.received(inbox_limit)


def drain(of: Session) -> bytes:
    data = b"".join(of.outgoing)
    assert len(data) == of.outgoing_bytes
    of.pressing = False
    of.sent(len(data))
    assert not of.outgoing
    return data


def connack(*, present: bool = False, properties: bytes = b"", reason: int = 0) -> bytes:
    body = bytes((present, reason)) + encode_variable_integer(len(properties)) + properties
    return b"\x20" + encode_variable_integer(len(body)) + body


def opened(**settings: object) -> Session:
    made = session(**settings)
    made.begin()
    assert drain(made)[0] == 0x10
    feed(made, connack())
    return made


def publication(
    topic: str, payload: bytes, packet_id: int, *, retain: bool = False, qos: Qos = 1
) -> bytes:
    header = encode_publish(topic, len(payload), qos, packet_id, retain=retain, properties=None)
    return header + payload


def publish(of: Session, topic: str, payload: bytes, qos: Qos = 1) -> None:
    of.publish(topic, payload, qos, retain=False, properties=None)


def test_a_message_is_acknowledged_when_it_arrives() -> None:
    bus = opened()
    feed(bus, publication("a", b"1", 7) + publication("b", b"2", 0, qos=0))
    assert [(m.topic, m.payload, m.handle) for m in bus.inbox] == [
        ("a", b"1", None),
        ("b", b"2", None),
    ]
    assert not bus.pressing
    assert drain(bus) == encode_puback(7)
    assert bus.bytes_received == 2


def test_or_when_its_owner_says_so_and_once() -> None:
    bus = opened(manual_ack=True)
    feed(bus, publication("a", b"1", 7) + publication("a", b"2", 8))
    first, second = bus.inbox
    assert drain(bus) == b""
    assert first.handle is not None
    assert second.handle is not None
    bus.acknowledge(second.handle)
    bus.acknowledge(second.handle)
    assert drain(bus) == encode_puback(8)
    # The identifier came again: the handle of the earlier message does nothing to the later.
    feed(bus, publication("a", b"3", 8))
    bus.acknowledge(second.handle)
    assert drain(bus) == b""
    bus.end()
    bus.begin()
    feed(bus, connack(present=True))
    drain(bus)
    bus.acknowledge(first.handle)
    assert drain(bus) == b""


def test_an_inbox_is_bounded_in_bytes_and_always_takes_one() -> None:
    bus = opened(inbox_bytes=10)
    feed(bus, publication("a", b"x" * 50, 1) + publication("a", b"y" * 4, 2), inbox_limit=9)
    assert [m.payload for m in bus.inbox] == [b"x" * 50]
    assert bus.full(9)
    assert not bus.received(9), "what is left stays unread, so that TCP holds the broker back"
    assert bus.take() is not None
    assert not bus.full(9)
    assert bus.received(9)
    taken = bus.take()
    assert taken is not None
    assert (taken.payload, bus.take(), bus.inbox_bytes) == (b"y" * 4, None, 0)


def test_redelivery_replaces_what_was_not_read() -> None:
    bus = opened(manual_ack=True, session_expiry_s=10)
    feed(bus, publication("a", b"1", 7) + publication("a", b"0", 0, qos=0))
    bus.end()
    bus.begin()
    feed(bus, connack(present=True) + mark_duplicate(publication("a", b"1", 7)))
    assert [(m.payload, m.duplicate) for m in bus.inbox] == [(b"0", False), (b"1", True)]


def test_the_window_is_the_brokers_and_the_others_wait_in_order() -> None:
    bus = session()
    bus.begin()
    drain(bus)
    feed(bus, connack(properties=b"\x21\x00\x02"))
    for number in range(4):
        publish(bus, "a", b"%d" % number)
    assert drain(bus) == publication("a", b"0", 1) + publication("a", b"1", 2)
    feed(bus, encode_puback(2))
    assert bus.pressing
    assert drain(bus) == publication("a", b"2", 3)
    feed(bus, encode_puback(99) + encode_puback(4))  # of nothing, and of what was never sent
    assert drain(bus) == b""
    assert len(bus.outbox) == 3


@pytest.mark.parametrize("present", [True, False])
def test_what_was_not_acknowledged_is_sent_again(present: bool) -> None:
    bus = opened()
    bus.subscribe("x", 1)
    drain(bus)
    publish(bus, "a", b"0")
    publish(bus, "a", b"lost", 0)
    publish(bus, "a", b"1")
    drain(bus)
    feed(bus, encode_puback(2))
    bus.end()
    publish(bus, "a", b"2")
    publish(bus, "a", b"dropped", 0)
    assert drain(bus) == b""
    bus.begin()
    drain(bus)
    feed(bus, connack(present=present))
    again = publication("a", b"1", 3)
    assert drain(bus) == (
        encode_subscribe(5, [("x", 1)])  # first: an answer must not find us unsubscribed
        + (mark_duplicate(again) if present else again)
        + publication("a", b"2", 4)
    )


def test_a_payload_goes_out_as_it_is_however_little_the_socket_takes() -> None:
    bus = opened()
    payload = bytearray(b"0123456789")
    bus.publish("a", memoryview(payload).cast("H"), 1, retain=False, properties=Properties())
    whole = b"".join(bus.outgoing)
    assert whole.endswith(payload)
    assert len(bus.outgoing) == 2
    taken = bytearray()
    while bus.outgoing:
        taken += bytes(bus.outgoing[0])[:1]
        bus.sent(1)
    assert taken == whole
    assert bus.bytes_sent == 10


def test_what_a_broker_that_takes_nothing_leaves() -> None:
    bus = opened(queue_messages=2, queue_bytes=100)
    publish(bus, "a", bytes(60))
    with pytest.raises(BrokerUnreachableError, match="does not acknowledge"):
        publish(bus, "a", bytes(60))
    for _ in range(10):
        publish(bus, "a", bytes(60), 0)
    assert bus.outgoing_bytes < 300


def test_what_is_refused_is_counted_and_said() -> None:
    bus = opened()
    publish(bus, "a", b"abc")
    bus.subscribe("b", 1)
    feed(bus, b"\x40\x03\x00\x01\x87" + b"\x90\x04\x00\x02\x00\x87")
    assert bus.refused == 1
    assert len(bus.outbox) == 0
    assert bus.complaints == [
        "refused a message of 3 bytes: not authorized",
        "refused a subscription to b: not authorized",
    ]


def test_connack_says_how_to_go_on() -> None:
    bus = session(client_id="")
    bus.begin()
    drain(bus)
    feed(bus, connack(properties=b"\x12\x00\x03ab1\x13\x00\x05\x27\x00\x00\x08\x00"))
    assert bus.keepalive_s == 5
    with pytest.raises(BrokerError, match="larger than the broker takes"):
        publish(bus, "a", bytes(1025))
    bus.end()
    bus.begin()
    assert drain(bus).endswith(b"\x00\x03ab1")  # the name that we were given names our session


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (connack(reason=0x86), RefusedError, "bad user name"),
        (connack(properties=b"\x24\x00"), RefusedError, "no messages of QoS 1"),
        (b"\xd0\x00", BadPacketError, "expected CONNACK; got PINGRESP"),
        (publication("a", b"", 1), BadPacketError, "expected CONNACK; got PUBLISH"),
        (connack() + connack(), BadPacketError, "second CONNACK"),
        (connack() + b"\xe0\x01\x8e", RefusedError, "session taken over"),
        (connack() + b"\x34\x06\x00\x01a\x00\x01\x00", BadPacketError, "QoS 2"),
    ],
)
def test_the_connection_ends(data: bytes, error: type[Exception], words: str) -> None:
    bus = session()
    bus.begin()
    with pytest.raises(error, match=words):
        feed(bus, data)


def test_the_session_is_forgotten_once_or_always() -> None:
    for settings, later in (
        ({"session_expiry_s": 60}, 0),
        ({"session_expiry_s": 0}, 2),
        ({"clean_start": False}, 0),
    ):
        bus = session(**settings)
        bus.begin()
        first = drain(bus)[9]
        bus.end()
        bus.begin()
        assert drain(bus)[9] == first  # nobody answered: it is still the first
        feed(bus, connack())
        bus.end()
        bus.begin()
        assert drain(bus)[9] == later
        assert first == (0 if "clean_start" in settings else 2)


def test_a_full_inbox_holds_packets_back() -> None:
    bus = opened()
    feed(bus, b"".join(publication("a", b"%d" % n, n) for n in range(1, 6)), inbox_limit=2)
    assert [m.payload for m in bus.inbox] == [b"1", b"2"]
    bus.inbox.clear()
    assert bus.received(2)
    assert [m.payload for m in bus.inbox] == [b"3", b"4"]
    assert drain(bus) == b"".join(map(encode_puback, range(1, 5)))


# The outbox, by random history

steps = st.lists(
    st.one_of(
        st.just(("publish",)),
        st.just(("request",)),
        st.tuples(st.just("acknowledge"), st.integers(0, 5)),
        st.tuples(st.just("open"), st.integers(1, 4), st.booleans()),
        st.just(("close",)),
    ),
    max_size=60,
)


@given(steps, st.integers(0, 65_534))
def test_the_outbox_loses_nothing_and_keeps_order(
    steps: list[tuple[object, ...]], last: int
) -> None:
    outbox = Outbox(limit_messages=10, limit_bytes=1000, _last_id=last)
    kept: dict[int, int] = {}  # what was published and not acknowledged
    sent: deque[int] = deque()  # of these, what went out on this connection
    window, number = 0, 0

    def pump() -> None:
        while (due := outbox.due()) is not None:
            sent.append(int(bytes(due[1])))

    for step in steps:
        match step:
            case ("publish",) if len(kept) < 10:
                outbox.check_room(4)
                packet_id = outbox.next_id()
                assert 1 <= packet_id <= 65_535
                assert packet_id not in kept
                number += 1
                payload = b"%04d" % number
                kept[packet_id] = number
                if outbox.add(packet_id, b"\x32", payload, 4):
                    sent.append(number)
            case ("publish",):
                with pytest.raises(BrokerUnreachableError):
                    outbox.check_room(4)
            case ("request",):
                packet_id = outbox.reserve_id()
                assert packet_id not in kept
                assert outbox.next_id() != packet_id
                outbox.release_id(packet_id)
            case ("acknowledge", int(index)) if sent:
                gone = sent[index % len(sent)]
                sent.remove(gone)
                packet_id = next(key for key, value in kept.items() if value == gone)
                del kept[packet_id]
                assert outbox.remove(packet_id) == 4
                assert outbox.remove(packet_id) is None
                pump()
            case ("open", int(size), bool(present)):
                window = size
                sent.clear()
                outbox.opened(window, session_present=present)
                pump()
            case ("close",):
                window = 0
                sent.clear()
                outbox.closed()
            case _:
                pass
        assert len(outbox) == len(kept)
        # As many as may be are under way, and they are the oldest.
        assert list(sent) == sorted(kept.values())[: min(window, len(kept))]

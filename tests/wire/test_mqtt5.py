"""The MQTT 5 codec: bytes written by hand from the standard, paho's bytes, every split, and garbage."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import paho.mqtt.client as paho
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

from shared.bus import NO_PROPERTIES, Properties, Qos
from shared.bus.mqtt5 import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingresp,
    Puback,
    Publish,
    Suback,
    check_filter,
    encode_connect,
    encode_disconnect,
    encode_pingreq,
    encode_puback,
    encode_publish,
    encode_subscribe,
    encode_unsubscribe,
    mark_duplicate,
    reason_text,
)
from shared.bus.mqtt5_reader import PacketReader
from shared.bus.mqtt5_values import BadPacketError, encode_variable_integer
from tests.fakes.hostile import publish_packet, text, user_property

LIMIT = 1 << 20
EVERYTHING = Properties(
    response_topic="r/1",
    correlation_data=b"\x00\xff",
    content_type="image/jpeg",
    user=(("job", "7"), ("job", "8")),
    expiry_s=258,
)


def read(
    data: bytes, sizes: Iterator[int] | None = None, *, limit: int = LIMIT, buffer: int = 64
) -> list[Packet]:
    """The packets in `data`, received in pieces of these sizes."""
    reader, packets, view = PacketReader(limit, buffer), [], memoryview(data)
    while view:
        space = reader.space()
        assert len(space) > 0
        count = min(len(space), len(view), next(sizes) if sizes is not None else len(view))
        space[:count] = view[:count]
        view = view[count:]
        reader.filled(count)
        assert reader.missing_bytes <= limit
        while (packet := reader.next()) is not None:
            packets.append(packet)
    return packets


def publish(
    topic: str,
    payload: bytes,
    qos: Qos = 1,
    packet_id: int = 1,
    *,
    retain: bool = False,
    properties: Properties | None = None,
) -> bytes:
    header = encode_publish(
        topic, len(payload), qos, packet_id, retain=retain, properties=properties
    )
    return header + payload


# What we send, against the standard


def test_connect() -> None:
    packet = encode_connect(
        Connect(
            client_id="me",
            clean_start=True,
            session_expiry_s=3600,
            receive_maximum=64,
            maximum_packet_bytes=1 << 20,
            keepalive_s=30,
            username="u",
            password="pä",
        )
    )
    assert packet == (
        b"\x10\x24"  # CONNECT, 36 bytes
        b"\x00\x04MQTT\x05"  # protocol name and version
        b"\xc2"  # user name, password, clean start
        b"\x00\x1e"  # keep alive
        b"\x0d"  # 13 bytes of properties
        b"\x11\x00\x00\x0e\x10"  # session expiry interval
        b"\x21\x00\x40"  # receive maximum
        b"\x27\x00\x10\x00\x00"  # maximum packet size
        b"\x00\x02me\x00\x01u\x00\x03p\xc3\xa4"
    )


def test_connect_without_login_keeps_the_session() -> None:
    packet = encode_connect(
        Connect(
            client_id="",
            clean_start=False,
            session_expiry_s=1 << 40,
            receive_maximum=1,
            maximum_packet_bytes=1,
            keepalive_s=0,
        )
    )
    assert packet[9] == 0
    assert packet[13:18] == b"\x11\xff\xff\xff\xff"  # for ever
    assert packet[-2:] == b"\x00\x00"


def test_publish() -> None:
    assert publish("a/b", b"hi", 0) == b"\x30\x08\x00\x03a/b\x00hi"
    packet = publish("a/b", b"hi", 1, 0x1234, retain=True)
    assert packet == b"\x33\x0a\x00\x03a/b\x12\x34\x00hi"
    assert mark_duplicate(packet) == b"\x3b" + packet[1:]
    assert publish("t", bytes(200), 0)[:3] == b"\x30\xcc\x01"
    assert publish("t", b"", 1, 1, properties=EVERYTHING) == (
        b"\x32\x35\x00\x01t\x00\x01"
        b"\x2f"
        b"\x02\x00\x00\x01\x02"
        b"\x03\x00\x0aimage/jpeg"
        b"\x08\x00\x03r/1"
        b"\x09\x00\x02\x00\xff"
        b"\x26\x00\x03job\x00\x017"
        b"\x26\x00\x03job\x00\x018"
    )


def test_the_others_that_we_send() -> None:
    assert encode_puback(0x0102) == b"\x40\x02\x01\x02"
    assert encode_subscribe(10, [("a/+", 1), ("#", 0)]) == (
        b"\x82\x0d\x00\x0a\x00\x00\x03a/+\x01\x00\x01#\x00"
    )
    assert encode_unsubscribe(10, "a/+") == b"\xa2\x08\x00\x0a\x00\x00\x03a/+"
    assert encode_pingreq() == b"\xc0\x00"
    assert encode_disconnect() == b"\xe0\x00"
    assert encode_disconnect(0x81) == b"\xe0\x01\x81"


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (0, b"\x00"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (16_383, b"\xff\x7f"),
        (16_384, b"\x80\x80\x01"),
        (2_097_152, b"\x80\x80\x80\x01"),
        (268_435_455, b"\xff\xff\xff\x7f"),
    ],
)
def test_variable_byte_integers(value: int, data: bytes) -> None:
    assert encode_variable_integer(value) == data


def test_what_cannot_be_said_is_refused_before_the_wire() -> None:
    for topic in ("", "a/+", "#", "a\0b", "x" * 65_536, "\ud800"):
        with pytest.raises(ValueError):
            publish(topic, b"")
    for pattern in ("", "a+", "a/#/b", "b#", "x" * 65_536):
        with pytest.raises(ValueError):
            check_filter(pattern)
    for pattern in ("#", "+", "a/+/b/#", "/", "$share/group/a"):
        check_filter(pattern)
    with pytest.raises(ValueError):
        encode_variable_integer(268_435_456)
    with pytest.raises(ValueError):
        publish("a", b"", properties=Properties(correlation_data=bytes(65_536)))


# What we receive, against the standard


@pytest.mark.parametrize(
    ("data", "packet"),
    [
        (b"\x20\x03\x01\x00\x00", Connack(session_present=True, reason=0)),
        (
            (
                b"\x20\x1c\x00\x00\x19\x21\x00\x14\x27\x00\x00\x0b\xb8\x24\x01\x13\x00\x3c"
                b"\x12\x00\x02id\x22\x00\x0a\x25\x01\x2a\x01"
            ),
            Connack(
                session_present=False,
                reason=0,
                receive_maximum=20,
                maximum_packet_bytes=3000,
                maximum_qos=1,
                keepalive_s=60,
                client_id="id",
            ),
        ),
        (
            b"\x20\x0a\x00\x87\x07\x1f\x00\x04nope",
            Connack(session_present=False, reason=0x87, why="nope"),
        ),
        (b"\x40\x02\x01\x02", Puback(0x0102, 0)),
        (b"\x40\x03\x01\x02\x10", Puback(0x0102, 0x10)),
        (b"\x40\x0a\x01\x02\x97\x06\x1f\x00\x03why", Puback(0x0102, 0x97)),
        (b"\x90\x05\x00\x0a\x00\x01\x87", Suback(10, (1, 0x87))),
        (b"\xb0\x04\x00\x0a\x00\x11", Suback(10, (0x11,))),
        (b"\xd0\x00", Pingresp()),
        (b"\xe0\x00", Disconnect(0)),
        (b"\xe0\x01\x8b", Disconnect(0x8B)),
        (b"\xe0\x07\x8e\x05\x1f\x00\x02by", Disconnect(0x8E, "by")),
    ],
)
def test_what_a_broker_sends(data: bytes, packet: Packet) -> None:
    assert read(data) == [packet]


def test_a_message_with_and_without_properties() -> None:
    plain = Publish("t", b"hi", 1, True, True, 7, NO_PROPERTIES)
    assert read(b"\x3b\x08\x00\x01t\x00\x07\x00hi") == [plain]
    # subscription identifier, payload format, and one of ours
    full = b"\x30\x10\x00\x01t\x0a\x0b\x80\x01\x01\x01\x02\x00\x00\x00\x09hi"
    (message,) = read(full)
    assert isinstance(message, Publish)
    assert (message.payload, message.properties) == (b"hi", Properties(expiry_s=9))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x34\x06\x00\x01t\x00\x01\x00", "QoS"),
        (b"\x36\x06\x00\x01t\x00\x01\x00", "QoS"),
        (b"\x32\x06\x00\x01t\x00\x00\x00", "packet identifier"),
        (b"\x30\x03\x00\x00\x00", "without a topic"),
        (b"\x30\x07\x00\x01t\x03\x23\x00\x01", "alias"),
        (b"\x30\x04\x00\x05a\x00", "shorter than its own header"),
        (b"\x30\x01\x00", "shorter than its own header"),
        (b"\x30\x04\x00\x01\xff\x00", "UTF-8"),
        (b"\x30\x09\x00\x01t\x80\x80\x80\x80\x01\x00", "longer than four bytes"),
        (b"\x30\x06\x00\x01t\x02\x7f\x00", "does not know"),
        (b"\x30\x0c\x00\x01t\x08\x03\x00\x01a\x03\x00\x01a", "twice"),
        (b"\x30\x07\x00\x01t\x03\x09\x00\x05", "in the middle"),
        (b"\x20\x02\x02\x00", "cannot be"),
        (b"\x20\x06\x00\x00\x03\x21\x00\x00", "cannot be"),
        (b"\x40\x01\x00", "in the middle"),
        (b"\xd0\x01\x00", "longer than its fields"),
        (b"\xf0\x00", "no broker sends"),
        (b"\x10\x00", "no broker sends"),
        (b"\x50\x02\x00\x01", "no broker sends"),
        (b"\x41\x02\x00\x01", "no broker sends"),
        (b"\x40\x80\x80\x80\x80\x01", "longer than four bytes"),
    ],
)
def test_what_no_broker_may_send(data: bytes, words: str) -> None:
    with pytest.raises(BadPacketError, match=words):
        read(data)


def test_what_is_too_large_is_refused_by_its_length() -> None:
    with pytest.raises(BadPacketError, match="larger than we take") as caught:
        read(b"\x30\xff\xff\xff\x7f\x00\x01t")
    assert caught.value.reason == 0x95


def test_a_large_payload_is_received_into_a_buffer_of_its_own() -> None:
    payload = bytes(range(256)) * 40
    reader = PacketReader(LIMIT, 64)
    data = publish("t", payload)
    space = reader.space()
    space[:] = data[:64]
    reader.filled(64)
    assert reader.next() is None
    assert reader.missing_bytes == len(data) - 64
    rest = reader.space()
    assert len(rest) == len(data) - 64
    rest[:] = data[64:]
    reader.filled(len(rest))
    packet = reader.next()
    assert isinstance(packet, Publish)
    assert packet.payload == payload
    assert rest.obj is packet.payload
    assert reader.next() is None
    assert len(reader.space()) == 64


def test_reason_codes_in_words() -> None:
    assert reason_text(0x87) == "not authorized"
    assert reason_text(0x87, "ask Ann") == "not authorized (ask Ann)"
    assert reason_text(0xF7) == "reason code 0xf7"


# Against paho


@contextmanager
def paho_and_we(name: str) -> Iterator[tuple[paho.Client, socket.socket]]:
    """paho, connected to a socket of ours as to a broker."""
    client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5)
    client.username, client.password = "u", "p"
    properties = PahoProperties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = 60
    properties.ReceiveMaximum = 7
    properties.MaximumPacketSize = 1000
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        client.connect(host, port, keepalive=20, clean_start=True, properties=properties)
        broker, _ = server.accept()
        with broker:
            broker.settimeout(10)
            yield client, broker
            client.disconnect()
            assert broker.recv(100).endswith(encode_disconnect())
        client.loop_read()


def test_paho_says_the_same() -> None:
    with paho_and_we("name") as (client, broker):
        assert broker.recv(1000) == encode_connect(
            Connect(
                client_id="name",
                clean_start=True,
                session_expiry_s=60,
                receive_maximum=7,
                maximum_packet_bytes=1000,
                keepalive_s=20,
                username="u",
                password="p",
            )
        )
        broker.sendall(b"\x20\x03\x00\x00\x00")
        client.loop_read()
        client.publish("a/b", b"payload", 1, retain=True)
        assert broker.recv(1000) == publish("a/b", b"payload", 1, 1, retain=True)
        client.subscribe("a/#", 1)
        assert broker.recv(1000) == encode_subscribe(2, [("a/#", 1)])
        client.unsubscribe("a/#")
        assert broker.recv(1000) == encode_unsubscribe(3, "a/#")
        everything = PahoProperties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        everything.ResponseTopic = EVERYTHING.response_topic
        everything.CorrelationData = EVERYTHING.correlation_data
        everything.ContentType = EVERYTHING.content_type
        everything.UserProperty = list(EVERYTHING.user)
        everything.MessageExpiryInterval = EVERYTHING.expiry_s
        client.publish("a", b"x", 0, properties=everything)
        (message,) = read(broker.recv(1000))
        assert message == Publish("a", b"x", 0, False, False, 0, EVERYTHING)


def test_paho_understands_us() -> None:
    got: list[paho.MQTTMessage] = []
    with paho_and_we("name") as (client, broker):
        client.on_message = lambda _client, _userdata, message: got.append(message)
        broker.recv(1000)
        broker.sendall(b"\x20\x03\x00\x00\x00")
        client.loop_read()
        broker.sendall(mark_duplicate(publish("a", b"xy", 1, 9, properties=EVERYTHING)))
        client.loop_read()
        assert broker.recv(100) == encode_puback(9)
    (message,) = got
    assert (message.topic, message.payload, message.qos, message.dup) == ("a", b"xy", 1, True)
    assert {
        "ResponseTopic": "r/1",
        "CorrelationData": b"\x00\xff",
        "UserProperty": list(EVERYTHING.user),
        "MessageExpiryInterval": 258,
    }.items() <= vars(message.properties).items()


# Every split, and garbage

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0+#"), max_size=9)
properties = st.builds(
    Properties,
    response_topic=st.none() | texts.filter(bool),
    correlation_data=st.none() | st.binary(max_size=9),
    content_type=st.none() | texts,
    user=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    expiry_s=st.none() | st.integers(0, 0xFFFF_FFFF),
)
messages = st.builds(
    Publish,
    topic=texts.filter(bool),
    payload=st.binary(max_size=300),
    qos=st.just(1),
    retain=st.booleans(),
    duplicate=st.booleans(),
    packet_id=st.integers(1, 65_535),
    properties=properties,
) | st.builds(
    Publish,
    topic=texts.filter(bool),
    payload=st.binary(max_size=300),
    qos=st.just(0),
    retain=st.booleans(),
    duplicate=st.just(value=False),
    packet_id=st.just(0),
    properties=properties,
)
packets = messages | st.builds(Puback, st.integers(1, 65_535), st.just(0)) | st.just(Pingresp())


def bytes_of(packet: Packet) -> bytes:
    match packet:
        case Publish(topic, payload, qos, retain, duplicate, packet_id, of):
            data = publish(
                topic, bytes(payload), 1 if qos else 0, packet_id, retain=retain, properties=of
            )
            return mark_duplicate(data) if duplicate else data
        case Puback(packet_id):
            return encode_puback(packet_id)
        case _:
            return b"\xd0\x00"


@given(st.lists(packets, max_size=6), st.data(), st.sampled_from([16, 64, 1000]))
def test_every_split_gives_the_same_packets(
    sent: list[Packet], data: st.DataObject, buffer: int
) -> None:
    stream = b"".join(map(bytes_of, sent))
    sizes = iter(lambda: data.draw(st.integers(1, 40)), 0)
    assert read(stream, sizes, buffer=buffer) == sent


def test_every_split_in_two() -> None:
    sent: list[Packet] = [
        Publish("a/b", bytes(range(100)), 1, False, False, 5, EVERYTHING),
        Puback(5, 0),
        Publish("c", b"", 0, False, False, 0, NO_PROPERTIES),
    ]
    stream = b"".join(map(bytes_of, sent))
    for cut in range(1, len(stream)):
        assert read(stream, iter([cut, len(stream), len(stream)]), buffer=512) == sent


damaged = st.builds(
    lambda sent, at, byte: _damaged(b"".join(map(bytes_of, sent)), at, byte),
    st.lists(packets, min_size=1, max_size=3),
    st.integers(0, 1000),
    st.integers(0, 255),
)


@given(st.binary(max_size=200) | damaged, st.integers(1, 50))
def test_garbage_gives_our_error_or_packets(data: bytes, size: int) -> None:
    with contextlib.suppress(BadPacketError):
        read(data, iter(lambda: size, 0), limit=5000)


def _damaged(stream: bytes, at: int, byte: int) -> bytes:
    at %= len(stream)
    return stream[:at] + bytes((byte,)) + stream[at + 1 :]


def test_more_properties_than_anybody_needs_are_not_read_and_cost_no_memory_after() -> None:
    reader = PacketReader(64 << 20, 64)
    many = user_property(b"") * 2_000_000
    stream = memoryview(publish_packet("a", b"1", properties=many) + publish_packet("b", b"2"))
    packets: list[Packet] = []
    while stream:
        space = reader.space()
        count = min(len(space), len(stream))
        space[:count] = stream[:count]
        stream = stream[count:]
        reader.filled(count)
        while (packet := reader.next()) is not None:
            packets.append(packet)
    assert [(p.topic, p.payload, p.properties) for p in packets if isinstance(p, Publish)] == [
        ("a", b"1", NO_PROPERTIES), ("b", b"2", NO_PROPERTIES),
    ]  # fmt: skip
    assert len(reader.space()) == 64


def test_the_longest_properties_that_mqtt_has_are_read() -> None:
    longest = Properties(response_topic="r" * 65_535, correlation_data=bytes(65_535))
    (packet,) = read(
        publish_packet(
            "a", properties=b"\x08" + text(b"r" * 65_535) + b"\x09" + text(bytes(65_535))
        )
    )
    assert isinstance(packet, Publish)
    assert packet.properties == longest

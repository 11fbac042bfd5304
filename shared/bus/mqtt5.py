"""The bytes of MQTT 5, as far as AMP4EC speaks it: packets to bytes, and bytes to packets.

Pure and without state; numbers in brackets are sections of the OASIS standard. Clients only: what a
broker sends is decoded, what it receives is encoded. Left out because nobody here uses it: QoS 2, wills
(the control face has one), topic aliases, subscription identifiers, enhanced authentication.

Whatever is wrong with received bytes is a `BadPacketError`, and nothing else is raised for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from shared.bus.limits import LONGEST_EXPIRY_S
from shared.bus.message import NO_PROPERTIES, Properties, Qos
from shared.bus.mqtt5_values import (
    BadPacketError,
    Fields,
    Values,
    encode_fields,
    encode_string,
    encode_variable_integer,
)

CONNECT: Final = 0x10
CONNACK: Final = 0x20
PUBLISH: Final = 0x30
PUBACK: Final = 0x40
SUBSCRIBE: Final = 0x82
SUBACK: Final = 0x90
UNSUBSCRIBE: Final = 0xA2
UNSUBACK: Final = 0xB0
PINGREQ: Final = 0xC0
PINGRESP: Final = 0xD0
DISCONNECT: Final = 0xE0
_CONTROLS: Final = frozenset({CONNACK, PUBACK, SUBACK, UNSUBACK, PINGRESP, DISCONNECT})

SUCCESS: Final = 0x00
MALFORMED_PACKET: Final = 0x81
PROTOCOL_ERROR: Final = 0x82
PACKET_TOO_LARGE: Final = 0x95
FAILURE: Final = 0x80
"""Reason codes from here on say that something did not work (2.4)."""

MAX_PACKET_ID: Final = 0xFFFF
MAX_PROPERTY_BYTES: Final = 192 << 10
"""Of a message: its longest response topic and correlation data, and some to spare. A broker hands on what
a client sends, up to millions of user properties in one packet, and each of them costs a microsecond."""

# Properties (2.2.2.2) that are read or written; the others are skipped.
_MESSAGE_EXPIRY: Final = 0x02
_CONTENT_TYPE: Final = 0x03
_RESPONSE_TOPIC: Final = 0x08
_CORRELATION_DATA: Final = 0x09
_SESSION_EXPIRY: Final = 0x11
_ASSIGNED_CLIENT_ID: Final = 0x12
_SERVER_KEEP_ALIVE: Final = 0x13
_REASON_STRING: Final = 0x1F
_RECEIVE_MAXIMUM: Final = 0x21
_TOPIC_ALIAS: Final = 0x23
_MAXIMUM_QOS: Final = 0x24
_RETAIN_AVAILABLE: Final = 0x25
_WILDCARDS_AVAILABLE: Final = 0x28
_USER: Final = 0x26
_MAXIMUM_PACKET_SIZE: Final = 0x27

_REASONS: Final = {
    0x80: "unspecified error",
    0x81: "malformed packet",
    0x82: "protocol error",
    0x83: "implementation specific error",
    0x84: "unsupported protocol version",
    0x85: "client identifier not valid",
    0x86: "bad user name or password",
    0x87: "not authorized",
    0x88: "server unavailable",
    0x89: "server busy",
    0x8A: "banned",
    0x8B: "server shutting down",
    0x8C: "bad authentication method",
    0x8D: "keep alive timeout",
    0x8E: "session taken over",
    0x8F: "topic filter invalid",
    0x90: "topic name invalid",
    0x91: "packet identifier in use",
    0x93: "receive maximum exceeded",
    0x94: "topic alias invalid",
    0x95: "packet too large",
    0x96: "message rate too high",
    0x97: "quota exceeded",
    0x98: "administrative action",
    0x99: "payload format invalid",
    0x9A: "retain not supported",
    0x9B: "QoS not supported",
    0x9C: "use another server",
    0x9D: "server moved",
    0x9E: "shared subscriptions not supported",
    0x9F: "connection rate exceeded",
    0xA0: "maximum connect time",
    0xA1: "subscription identifiers not supported",
    0xA2: "wildcard subscriptions not supported",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """The first packet of a connection (3.1)."""

    client_id: str
    clean_start: bool
    session_expiry_s: int
    receive_maximum: int
    maximum_packet_bytes: int
    keepalive_s: int
    username: str | None = None
    password: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Connack:
    """The broker's answer to it (3.2). None where the broker leaves the choice to us."""

    session_present: bool
    reason: int
    why: str = ""
    receive_maximum: int = 65_535
    maximum_packet_bytes: int | None = None
    maximum_qos: int = 2
    retain_available: bool = True
    wildcards_available: bool = True
    keepalive_s: int | None = None
    client_id: str | None = None


class Publish(NamedTuple):
    """A message from the broker (3.3).

    A tuple, and no frozen dataclass, because one is made for every message received: beside a runtime,
    which leaves Python no warm caches, setting fields one by one is what messaging costs.
    """

    topic: str
    payload: bytes | bytearray
    qos: int
    retain: bool
    duplicate: bool
    packet_id: int
    """0 at QoS 0."""
    properties: Properties


class Puback(NamedTuple):
    """The broker has a message of ours, or refuses it (3.4). A tuple for the reason that `Publish` is."""

    packet_id: int
    reason: int


@dataclass(frozen=True, slots=True)
class Suback:
    """Answers a SUBSCRIBE (3.9) or an UNSUBSCRIBE (3.11): a reason for each topic filter, in order."""

    packet_id: int
    reasons: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pingresp:
    """The broker is there (3.13)."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The broker ends the connection (3.14)."""

    reason: int
    why: str = ""


Control: TypeAlias = Connack | Puback | Suback | Pingresp | Disconnect
"""What is read as a whole; a PUBLISH is not, since its payload may be large."""
Packet: TypeAlias = Publish | Control


def reason_text(reason: int, why: str = "") -> str:
    """A reason code in words, with the broker's own where it sent some."""
    text = _REASONS.get(reason, f"reason code {reason:#04x}")
    return f"{text} ({why})" if why else text


# What we send


def encode_connect(connect: Connect) -> bytes:
    """CONNECT (3.1)."""
    flags = 0x02 if connect.clean_start else 0
    payload = [encode_string(connect.client_id)]
    if connect.username is not None:
        flags |= 0x80
        payload.append(encode_string(connect.username))
    if connect.password is not None:
        flags |= 0x40
        payload.append(encode_string(connect.password))
    fields = encode_fields(
        [
            (_SESSION_EXPIRY, min(connect.session_expiry_s, LONGEST_EXPIRY_S)),
            (_RECEIVE_MAXIMUM, connect.receive_maximum),
            (_MAXIMUM_PACKET_SIZE, connect.maximum_packet_bytes),
        ]
    )
    head = b"\x00\x04MQTT\x05" + bytes((flags,)) + connect.keepalive_s.to_bytes(2, "big")
    return _packet(CONNECT, head, fields, *payload)


def encode_publish(
    topic: str,
    payload_bytes: int,
    qos: Qos,
    packet_id: int,
    *,
    retain: bool,
    properties: Properties | None,
) -> bytes:
    """PUBLISH (3.3) up to its payload, which follows as it is.

    Raises:
        ValueError: the topic is none that a message can have, or a property is too long.
    """
    name = _topic_name(topic)
    fields = b"\x00" if properties is None else _encode_properties(properties)
    first = PUBLISH | (qos << 1) | retain
    size = len(name) + len(fields) + payload_bytes
    if not qos:
        return b"%c%b%b%b" % (first, encode_variable_integer(size), name, fields)
    return b"%c%b%b%c%c%b" % (
        first, encode_variable_integer(size + 2), name, packet_id >> 8, packet_id & 0xFF, fields,
    )  # fmt: skip


def mark_duplicate(header: bytes) -> bytes:
    """A PUBLISH that is sent again, in the same session (3.3.1.1)."""
    return bytes((header[0] | 0x08,)) + header[1:]


def encode_puback(packet_id: int) -> bytes:
    """PUBACK (3.4) with success, for which the short form stands."""
    return b"\x40\x02%c%c" % (packet_id >> 8, packet_id & 0xFF)


def check_filter(topic: str) -> None:
    """Refuse what is no topic filter (4.7): a broker would end the connection for it.

    Raises:
        ValueError: an empty one, a wildcard that is not a whole level, `#` before the end.
    """
    levels = topic.split("/")
    if (
        not topic
        or any("+" in level and level != "+" for level in levels)
        or any("#" in level and level != "#" for level in levels)
        or "#" in levels[:-1]
    ):
        raise ValueError(f"{topic!r} is no topic filter (MQTT 5, section 4.7)")
    encode_string(topic)


def encode_subscribe(packet_id: int, wishes: Iterable[tuple[str, Qos]]) -> bytes:
    """SUBSCRIBE (3.8) to all of `wishes`, at least one; see `check_filter`."""
    filters = [encode_string(topic) + bytes((qos,)) for topic, qos in wishes]
    return _packet(SUBSCRIBE, packet_id.to_bytes(2, "big"), b"\x00", *filters)


def encode_unsubscribe(packet_id: int, topic: str) -> bytes:
    """UNSUBSCRIBE (3.10)."""
    return _packet(UNSUBSCRIBE, packet_id.to_bytes(2, "big"), b"\x00", encode_string(topic))


def encode_pingreq() -> bytes:
    """PINGREQ (3.12)."""
    return b"\xc0\x00"


def encode_disconnect(reason: int = SUCCESS) -> bytes:
    """DISCONNECT (3.14)."""
    return _packet(DISCONNECT, bytes((reason,))) if reason else _packet(DISCONNECT)


# What we receive


def publish_header_bytes(
    first: int, data: bytes | bytearray, at: int, stop: int, size: int
) -> int | None:
    """How long the variable header of a PUBLISH is, that is, where its payload begins.

    Args:
        first: the packet's first byte, with its flags.
        data: received bytes, of which those in `[at, stop)` belong to this packet.
        at: where the variable header begins.
        stop: where the bytes end that have been received.
        size: the packet's remaining length (2.1.4): header and payload.

    Returns:
        None when it cannot be told yet, or the header itself is not complete.
    """
    if stop - at < 2:
        _check_length(2, size)
        return None
    length = 2 + ((data[at] << 8) | data[at + 1]) + (2 if first & 6 else 0)
    count = 0
    for shift in (0, 7, 14, 21):
        if at + length >= stop:
            _check_length(length + 1, size)
            return None
        byte = data[at + length]
        length += 1
        count |= (byte & 0x7F) << shift
        if byte < 0x80:
            length += count
            _check_length(length, size)
            return length if at + length <= stop else None
    raise BadPacketError("a variable byte integer is longer than four bytes")


def _check_length(header_bytes: int, size: int) -> None:
    if header_bytes > size:
        raise BadPacketError(
            "a message is shorter than its own header",
            expected=f"{header_bytes} bytes",
            got=f"{size} bytes",
        )


def decode_publish(first: int, data: bytes, payload: bytes | bytearray) -> Publish:
    """A PUBLISH out of its parts.

    Properties of more than `MAX_PROPERTY_BYTES` are not read, and taken for none: a connection that ended
    over them would meet the same message again on the next.

    Args:
        first: the packet's first byte, with its flags.
        data: its variable header, complete: topic, packet identifier at QoS 1, properties.
        payload: the rest, or a buffer of its size that is yet to be filled.
    """
    qos = (first >> 1) & 3
    if qos > 1:
        raise BadPacketError(
            "a message came at a QoS that was not subscribed to",
            expected="QoS 0 or 1",
            got=f"QoS {qos}",
            reason=PROTOCOL_ERROR,
        )
    end = 2 + ((data[0] << 8) | data[1])
    try:
        topic = data[2:end].decode()
    except UnicodeDecodeError as error:
        raise BadPacketError(f"a topic is not UTF-8: {error}") from error
    if not topic or "\0" in topic:
        # An empty one would refer to an alias, of which we allow none (3.3.2.3.4).
        raise BadPacketError("a message came without a topic", expected="a topic", got=repr(topic))
    packet_id = 0
    if qos:
        packet_id = (data[end] << 8) | data[end + 1]
        end += 2
        if not packet_id:
            raise BadPacketError(
                "a message came without a packet identifier", reason=PROTOCOL_ERROR
            )
    properties = NO_PROPERTIES
    if data[end] and len(data) - end <= MAX_PROPERTY_BYTES:
        properties = _decode_properties(Fields(data, end))
    return Publish(topic, payload, qos, bool(first & 1), bool(first & 8), packet_id, properties)


def decode_whole_publish(first: int, data: bytes) -> Publish:
    """A PUBLISH whose packet has come completely: `data` is all that follows its length."""
    header = publish_header_bytes(first, data, 0, len(data), len(data))
    if header is None:
        raise BadPacketError("a message ends in the middle of its header")
    return decode_publish(first, data[:header], data[header:])


def check_control(first: int) -> None:
    """Refuse a first byte of none of the other packets that a broker may send to a client of ours."""
    if first not in _CONTROLS:
        raise BadPacketError(
            "a packet came that no broker sends to a client of ours",
            expected="CONNACK, PUBLISH, PUBACK, SUBACK, UNSUBACK, PINGRESP or DISCONNECT",
            got=f"first byte {first:#04x}",
            reason=PROTOCOL_ERROR,
        )


def decode_control(first: int, data: bytes) -> Control:
    """Any other packet; `first` is checked, `data` is all that follows its length."""
    fields = Fields(data)
    packet: Control
    if first == PUBACK:
        packet = Puback(fields.two(), fields.byte() if fields.left else SUCCESS)
        fields.skip_properties()
    elif first in (SUBACK, UNSUBACK):
        packet_id = fields.two()
        fields.skip_properties()
        packet = Suback(packet_id, tuple(fields.rest()))
    elif first == PINGRESP:
        packet = Pingresp()
    elif first == CONNACK:
        packet = _connack(fields)
    else:
        reason = fields.byte() if fields.left else SUCCESS
        packet = Disconnect(reason, fields.properties().text(_REASON_STRING))
    fields.end()
    return packet


def _connack(fields: Fields) -> Connack:
    present, reason = fields.byte(), fields.byte()
    values = fields.properties()
    receive_maximum = values.number(_RECEIVE_MAXIMUM, 65_535)
    maximum_packet_bytes = values.number(_MAXIMUM_PACKET_SIZE)
    if present > 1 or receive_maximum == 0 or maximum_packet_bytes == 0:
        raise BadPacketError("the broker's CONNACK has values that cannot be")
    return Connack(
        session_present=present == 1,
        reason=reason,
        why=values.text(_REASON_STRING),
        receive_maximum=65_535 if receive_maximum is None else receive_maximum,
        maximum_packet_bytes=maximum_packet_bytes,
        maximum_qos=values.number(_MAXIMUM_QOS, 2) or 0,
        retain_available=values.number(_RETAIN_AVAILABLE, 1) != 0,
        wildcards_available=values.number(_WILDCARDS_AVAILABLE, 1) != 0,
        keepalive_s=values.number(_SERVER_KEEP_ALIVE),
        client_id=values.text(_ASSIGNED_CLIENT_ID) or None,
    )


def _decode_properties(fields: Fields) -> Properties:
    values: Values = fields.properties()
    fields.end()
    if _TOPIC_ALIAS in values:
        raise BadPacketError(
            "a message came under a topic alias, and we allow none", reason=PROTOCOL_ERROR
        )
    return Properties(
        response_topic=values.text(_RESPONSE_TOPIC) or None,
        correlation_data=values.binary(_CORRELATION_DATA),
        content_type=values.optional_text(_CONTENT_TYPE),
        user=values.pairs(_USER),
        expiry_s=values.number(_MESSAGE_EXPIRY),
    )


def _encode_properties(properties: Properties) -> bytes:
    fields: list[tuple[int, int | str | bytes | tuple[str, str]]] = []
    if properties.expiry_s is not None:
        fields.append((_MESSAGE_EXPIRY, min(properties.expiry_s, LONGEST_EXPIRY_S)))
    if properties.content_type is not None:
        fields.append((_CONTENT_TYPE, properties.content_type))
    if properties.response_topic is not None:
        fields.append((_RESPONSE_TOPIC, properties.response_topic))
    if properties.correlation_data is not None:
        fields.append((_CORRELATION_DATA, properties.correlation_data))
    fields.extend((_USER, pair) for pair in properties.user)
    return encode_fields(fields)


@lru_cache(maxsize=1024)
def _topic_name(topic: str) -> bytes:
    if not topic or "+" in topic or "#" in topic:
        raise ValueError(
            f"a message cannot be published to {topic!r}: wildcards or no topic at all"
        )
    return encode_string(topic)


def _packet(first: int, *parts: bytes) -> bytes:
    size = sum(map(len, parts))
    return b"".join((bytes((first,)), encode_variable_integer(size), *parts))

"""A client's side of MQTT 5 over any number of connections, without I/O.

Bytes go in by `reader.space()` and `received`, messages come out of `inbox`; what is to be sent lies in
`outgoing`, and the owner says with `sent` how much of it has gone. Who owns it makes the connections:
`begin` when one stands, `end` when it is gone. No clock, no socket, no log: what an operator should read is
left in `complaints`.

Acknowledgements may stay in `outgoing` until something is sent anyway, or until the owner waits; anything
else there is `pressing`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from shared.bus.limits import MAX_PAYLOAD_BYTES, check_size, payload_limit
from shared.bus.message import NO_PROPERTIES, Handle, Message, Properties, Qos
from shared.bus.mqtt5 import (
    FAILURE,
    PROTOCOL_ERROR,
    SUCCESS,
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
    reason_text,
)
from shared.bus.mqtt5_reader import PacketReader
from shared.bus.mqtt5_values import BadPacketError
from shared.bus.outbox import Outbox, Payload


class RefusedError(Exception):
    """The broker ended the connection, or did not make it, and said why. Never leaves `shared.bus`."""

    def __init__(self, text: str, reason: int = FAILURE) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What stays the same over all connections; see `MqttDataBus` for what each means."""

    client_id: str
    username: str | None
    password: str | None
    clean_start: bool
    session_expiry_s: int
    manual_ack: bool
    receive_maximum: int
    maximum_packet_bytes: int
    inbox_bytes: int
    keepalive_s: int
    queue_messages: int
    queue_bytes: int


class Session:
    """See the module. What is public here is for the owner to read; `inbox` is emptied with `take`."""

    def __init__(self, settings: SessionSettings) -> None:
        self.inbox: deque[Message] = deque()
        self.inbox_bytes = 0
        self.outgoing: deque[Payload] = deque()
        self.outgoing_bytes = 0
        self.pressing = False
        self.complaints: list[str] = []
        self.reader = PacketReader(settings.maximum_packet_bytes)
        self.outbox = Outbox(settings.queue_messages, settings.queue_bytes)
        self.connected = False
        self.number = 0
        self.session_present = False
        self.keepalive_s = settings.keepalive_s
        self.awaits_pingresp = False
        self.bytes_received = 0
        self.bytes_sent = 0
        self.refused = 0
        self._settings = settings
        self._manual_ack = settings.manual_ack
        self._client_id = settings.client_id
        self._payload_limit = MAX_PAYLOAD_BYTES
        self._wanted: dict[str, Qos] = {}
        self._asked: dict[int, tuple[str, ...]] = {}  # what SUBSCRIBEs are not answered for
        self._held: dict[int, int] = {}  # packet identifier -> serial of the message it is now
        self._serial = 0

    # The connection

    def begin(self) -> None:
        """A connection stands: introduce ourselves."""
        settings = self._settings
        self.reader = PacketReader(self._settings.maximum_packet_bytes)
        # With an expiry the session is ours from the first connection on, and is kept over the next.
        clean_start = settings.clean_start and (not settings.session_expiry_s or not self.number)
        self._send(
            encode_connect(
                Connect(
                    client_id=self._client_id,
                    clean_start=clean_start,
                    session_expiry_s=settings.session_expiry_s,
                    receive_maximum=settings.receive_maximum,
                    maximum_packet_bytes=settings.maximum_packet_bytes,
                    keepalive_s=settings.keepalive_s,
                    username=settings.username,
                    password=settings.password,
                )
            )
        )

    def end(self) -> None:
        """The connection is gone, and with it all that was on its way."""
        self.connected = False
        self.awaits_pingresp = False
        self.outgoing.clear()
        self.outgoing_bytes = 0
        self.pressing = False
        self.outbox.closed()
        self._asked.clear()

    def ping(self) -> None:
        """Ask the broker whether it is there (3.12)."""
        self.awaits_pingresp = True
        self._send(encode_pingreq())

    def leave(self, reason: int = SUCCESS) -> None:
        """Say goodbye (3.14); the broker keeps the session for its expiry."""
        self._send(encode_disconnect(reason))

    # What the owner says

    def subscribe(self, topic: str, qos: Qos) -> None:
        """Wish for a topic, now and on later connections.

        Raises:
            ValueError: it is no topic filter.
        """
        check_filter(topic)
        self._wanted[topic] = qos
        if self.connected:
            self._subscribe({topic: qos})

    def unsubscribe(self, topic: str) -> None:
        """Take the wish back."""
        self._wanted.pop(topic, None)
        if self.connected:
            packet_id = self.outbox.reserve_id()
            self._asked[packet_id] = ()  # whatever the answer, there is nothing to be done about it
            self._send(encode_unsubscribe(packet_id, topic))

    def publish(
        self, topic: str, payload: Payload, qos: Qos, *, retain: bool, properties: Properties | None
    ) -> None:
        """See `DataBus.publish`; a payload is kept as it is, never copied.

        Raises:
            BrokerUnreachableError, BrokerError, ValueError: as said there.
        """
        if isinstance(payload, memoryview):
            payload = payload.cast("B")  # its length is its number of bytes from here on
        size = len(payload)
        if size > self._payload_limit:
            check_size(topic, size, self._payload_limit)
        if properties is NO_PROPERTIES:
            properties = None
        if qos:
            outbox = self.outbox
            outbox.check_room(size)
            packet_id = outbox.next_id()
            header = encode_publish(
                topic, size, qos, packet_id, retain=retain, properties=properties
            )
            now = outbox.add(packet_id, header, payload, size)
        else:
            header = encode_publish(topic, size, qos, 0, retain=retain, properties=properties)
            # A broker that takes nothing must not fill our memory; QoS 0 may be dropped.
            now = self.connected and self.outgoing_bytes <= self._settings.queue_bytes
            if not now:
                return
        if now:
            self.pressing = True
            self.outgoing.append(header)
            if size:
                self.outgoing.append(payload)
            self.outgoing_bytes += len(header) + size
        self.bytes_sent += size

    def acknowledge(self, handle: Handle) -> None:
        """The message is done; nothing where it is none of this connection, or has been done."""
        if handle.session != self.number or not self.connected:
            return
        if self._held.get(handle.packet_id) == handle.serial:
            del self._held[handle.packet_id]
            self.outgoing.append(encode_puback(handle.packet_id))
            self.outgoing_bytes += 4

    def sent(self, count: int) -> None:
        """The first `count` bytes of `outgoing` are gone."""
        outgoing = self.outgoing
        self.outgoing_bytes -= count
        if not self.outgoing_bytes:
            outgoing.clear()
            return
        while count >= (size := len(outgoing[0])):
            outgoing.popleft()
            count -= size
        if count:
            outgoing[0] = memoryview(outgoing[0])[count:]

    def take(self) -> Message | None:
        """The next message, or None."""
        if not self.inbox:
            return None
        message = self.inbox.popleft()
        self.inbox_bytes -= len(message.payload)
        return message

    # What the broker says

    def full(self, inbox_limit: int | None) -> bool:
        """Whether `inbox` has so many messages, or as many bytes as it may; None: it may always take more."""
        return inbox_limit is not None and (
            len(self.inbox) >= inbox_limit or self.inbox_bytes >= self._settings.inbox_bytes
        )

    def received(self, inbox_limit: int | None) -> bool:
        """Take the packets that have come, until `inbox` is full; whether there were any.

        Raises:
            BadPacketError: the broker speaks something else; hang up with its reason code.
            RefusedError: the broker hung up, and said why.
        """
        reader, any_came = self.reader, False
        while not self.full(inbox_limit):
            packet = reader.next()
            if packet is None:
                break
            any_came = True
            if type(packet) is Publish and self.connected:
                self._message(packet)
            else:
                self._take(packet)
        return any_came

    def _message(self, packet: Publish) -> None:
        topic, payload, qos, retain, duplicate, packet_id, properties = packet
        handle = None
        if qos:
            if self._manual_ack:
                self._serial += 1
                handle = Handle(self.number, self._serial, packet_id)
                self._held[packet_id] = self._serial
            else:
                self.outgoing.append(encode_puback(packet_id))
                self.outgoing_bytes += 4
        size = len(payload)
        self.bytes_received += size
        self.inbox_bytes += size
        self.inbox.append(Message(topic, payload, qos, retain, duplicate, properties, handle))

    def _take(self, packet: Packet) -> None:
        if not self.connected and not isinstance(packet, Connack):
            raise BadPacketError(
                "the broker's first packet is another than it must be",
                expected="CONNACK",
                got=type(packet).__name__.upper(),
                reason=PROTOCOL_ERROR,
            )
        match packet:
            case Puback():
                self._acknowledged(packet)
            case Connack():
                self._greeted(packet)
            case Suback():
                self._answered(packet)
            case Pingresp():
                self.awaits_pingresp = False
            case Disconnect():
                raise RefusedError(reason_text(packet.reason, packet.why), packet.reason)
            case Publish():
                raise AssertionError("messages are taken elsewhere")
            case _:
                assert_never(packet)

    def _greeted(self, connack: Connack) -> None:
        if self.connected:
            raise BadPacketError("a second CONNACK came", reason=PROTOCOL_ERROR)
        if connack.reason >= FAILURE:
            raise RefusedError(reason_text(connack.reason, connack.why), connack.reason)
        if connack.maximum_qos < 1:
            raise RefusedError("it takes no messages of QoS 1, on which all of AMP4EC relies")
        self.connected = True
        self.number += 1
        self.session_present = connack.session_present
        self._client_id = connack.client_id or self._client_id
        self.keepalive_s = (
            self._settings.keepalive_s if connack.keepalive_s is None else connack.keepalive_s
        )
        self._payload_limit = payload_limit(connack.maximum_packet_bytes)
        self._held.clear()
        if self._manual_ack and connack.session_present:
            # The broker delivers again what was not acknowledged; keeping both would double it here,
            # and grow without bound over many reconnections.
            kept = [message for message in self.inbox if message.handle is None]
            self.inbox.clear()
            self.inbox.extend(kept)
            self.inbox_bytes = sum(len(message.payload) for message in kept)
        if self._wanted:
            # Before what is sent again: an answer to that must not find us unsubscribed.
            self._subscribe(self._wanted)
        self.outbox.opened(connack.receive_maximum, session_present=connack.session_present)
        self._send_due()

    def _acknowledged(self, packet: Puback) -> None:
        size_bytes = self.outbox.remove(packet.packet_id)
        if size_bytes is not None and packet.reason >= FAILURE:
            self.refused += 1
            self.complaints.append(
                f"refused a message of {size_bytes} bytes: {reason_text(packet.reason)}"
            )
        self._send_due()

    def _answered(self, packet: Suback) -> None:
        self.outbox.release_id(packet.packet_id)
        for topic, reason in zip(
            self._asked.pop(packet.packet_id, ()), packet.reasons, strict=False
        ):
            if reason >= FAILURE:
                self.complaints.append(f"refused a subscription to {topic}: {reason_text(reason)}")

    # What goes out

    def _send(self, packet: bytes) -> None:
        self.pressing = True
        self.outgoing.append(packet)
        self.outgoing_bytes += len(packet)

    def _send_due(self) -> None:
        while (due := self.outbox.due()) is not None:
            self.pressing = True
            self.outgoing.extend(due)
            self.outgoing_bytes += len(due[0]) + len(due[1])

    def _subscribe(self, wishes: Mapping[str, Qos]) -> None:
        packet_id = self.outbox.reserve_id()
        self._asked[packet_id] = tuple(wishes)
        self._send(encode_subscribe(packet_id, wishes.items()))

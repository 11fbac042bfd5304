"""One connection of the control face: an aiomqtt client, and what waits for its broker.

aiomqtt owns the socket and its place in the event loop. It also acknowledges QoS 1 before anybody has
seen the message, drops messages when its queue is full, hides the broker's answer to a publication,
logs a traceback over an answer for which nobody waits any more, and lets callers wait on after the
connection is gone. So messages, acknowledgements and subscriptions go past it to the paho client
underneath, which is private to it: this file is the only one to take it, and pyproject pins aiomqtt
below 3.

Messages are decoded by `mqtt5`, not by paho: paho ends the connection over properties that Mosquitto hands on
(a user property with U+FEFF in it), again on each new one where such a message is retained, and its time
grows with the square of their number (100,000 empty ones, 500 KB, took 16 s, in the event loop).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import aiomqtt
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import ConnectFlags, error_string
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from shared.bus.fence import SESSION_TAKEN_OVER
from shared.bus.limits import MAX_PAYLOAD_BYTES, check_size, payload_limit, socket_options
from shared.bus.message import Handle, Message, Properties, Publication, Qos
from shared.bus.mqtt5 import decode_whole_publish
from shared.bus.mqtt5_values import BadPacketError
from shared.bus.paho_values import (
    MAX_INFLIGHT,
    connect_properties,
    loss,
    maximum_packet_bytes,
    to_paho,
)
from shared.bus.url import BrokerUrl
from shared.logs import get_log

if TYPE_CHECKING:
    from paho.mqtt.properties import Properties as PahoProperties

_logger = get_log(__name__)

CONNECT_TIMEOUT_S: Final = 5.0
_BAD_LOGIN: Final = frozenset({0x86, 0x87, 0x8C})
"""Bad user name or password, not authorised, bad authentication method (MQTT 5, 3.2.2.2)."""


class ConnectionLostError(Exception):
    """The connection went, or was never made. Never leaves `shared.bus`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """What stays the same over all connections of one bus."""

    url: BrokerUrl
    tls_context: ssl.SSLContext | None
    client_id: str
    will: Publication | None
    session_expiry_s: int
    receive_maximum: int
    maximum_packet_bytes: int
    keepalive_s: int


class _ClosedMeanwhile(logging.Filter):
    """Leaves out asyncio's complaint that aiomqtt waits to write to a socket which was closed a moment ago.

    That is how a port ends that another program has, and `Connection.open` says so.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        closed = isinstance(error, OSError) and error.errno == errno.EBADF
        return not (closed and "add_writer" in record.getMessage())


logging.getLogger("asyncio").addFilter(_ClosedMeanwhile())


class _TlsSocket(ssl.SSLSocket):
    """Closed when its handshake fails: paho leaves that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        """See `ssl.SSLSocket`."""
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            self.close()
            raise


class Connection:
    """From one CONNECT to the loss of it. `number` counts the connections of a bus."""

    def __init__(
        self,
        settings: ConnectionSettings,
        number: int,
        *,
        clean_start: bool,
        deliver: Callable[[Message], bool],
    ) -> None:
        self.number = number
        self.lost = False
        self.session_present = False
        self.bad_login = False
        self.taken_over = False
        self._payload_limit = MAX_PAYLOAD_BYTES
        self._deliver = deliver
        self._serial = 0
        self._held: dict[int, int] = {}  # packet identifier -> serial of the message it is now
        self._answers: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._waiting: set[asyncio.Timeout] = set()
        self._client = _new_client(settings, clean_start=clean_start)
        self._paho: PahoClient = self._client._client  # noqa: SLF001 (see this module's docstring)
        self._take_over()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Connect, and disconnect cleanly at the end.

        Raises:
            ConnectionLostError: nobody answers, or the broker refused (see `bad_login`).
        """
        connecting = asyncio.create_task(self._client.__aenter__(), name="bus: connect")
        try:
            # aiomqtt connects in a thread, which nobody can cancel: left alone it would put its
            # socket into the event loop after everybody has gone.
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            with contextlib.suppress(aiomqtt.MqttError):
                await connecting
            self._hang_up()
            raise
        except aiomqtt.MqttError as error:
            self._hang_up()
            raise ConnectionLostError(_why(error)) from error
        try:
            yield
        finally:
            self._end()
            with contextlib.suppress(aiomqtt.MqttError):
                await self._client.__aexit__(None, None, None)
            self._hang_up()

    async def watch(self) -> NoReturn:
        """Return never; raise when the connection is lost.

        Raises:
            ConnectionLostError: with the reason, as far as it is known.
        """
        try:
            async with self._bound(None):
                # No message comes this way; the iterator ends when the connection does.
                async for _ in self._client.messages:
                    continue
        finally:
            self._end()
        raise ConnectionLostError("the connection was closed")

    async def publish(
        self,
        topic: str,
        payload: bytes,
        qos: Qos,
        *,
        retain: bool,
        properties: Properties | None,
        deadline: float,
    ) -> ReasonCode | None:
        """Send; the broker's answer at QoS 1.

        Raises:
            ConnectionLostError, TimeoutError: no answer; the broker may have the message.
            BrokerError: the payload is larger than the broker takes.
        """
        check_size(topic, len(payload), self._payload_limit)
        async with self._bound(deadline):
            info = self._paho.publish(topic, payload, qos, retain, to_paho(properties))
            if qos == 0 and info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
                return None
            (answer,) = await self._answer(info.rc, info.mid)
            return answer
        raise AssertionError("unreachable: _bound lets no exception through")

    async def subscribe(
        self, wishes: Iterable[tuple[str, Qos]], deadline: float
    ) -> dict[str, ReasonCode]:
        """Subscribe to all; the patterns that the broker refused, with its reason.

        Raises:
            ConnectionLostError, TimeoutError: no answer.
        """
        options = [(pattern, SubscribeOptions(qos=qos)) for pattern, qos in wishes]
        async with self._bound(deadline):
            answers = await self._answer(*self._paho.subscribe(options))
        return {
            pattern: answer
            for (pattern, _), answer in zip(options, answers, strict=True)
            if answer.is_failure
        }

    async def unsubscribe(self, pattern: str, deadline: float) -> None:
        """Unsubscribe; the broker answers also where there was no such subscription.

        Raises:
            ConnectionLostError, TimeoutError: no answer.
        """
        async with self._bound(deadline):
            await self._answer(*self._paho.unsubscribe(pattern))

    async def _answer(self, result: MQTTErrorCode, packet_id: int | None) -> list[ReasonCode]:
        """What the broker says to a packet that was sent with this result."""
        if result != MQTTErrorCode.MQTT_ERR_SUCCESS or packet_id is None:
            # No socket, or 65,535 messages unanswered: this connection is of no more use.
            self._end()
            raise ConnectionLostError(error_string(result))
        answer: asyncio.Future[list[ReasonCode]] = asyncio.get_running_loop().create_future()
        self._answers[packet_id] = answer
        try:
            return await answer
        finally:
            self._answers.pop(packet_id, None)

    def acknowledge(self, handle: Handle) -> None:
        """Tell the broker once that this message is done; nothing if it is not one of ours."""
        if self.lost or handle.session != self.number:
            return
        if self._held.get(handle.packet_id) == handle.serial:
            del self._held[handle.packet_id]
            self._paho.ack(handle.packet_id, 1)

    @contextlib.asynccontextmanager
    async def _bound(self, deadline: float | None) -> AsyncGenerator[None]:
        """Let the body wait until `deadline` (loop time), but no longer than the connection."""
        if self.lost:
            raise ConnectionLostError
        try:
            async with asyncio.timeout_at(deadline) as scope:
                self._waiting.add(scope)
                try:
                    yield
                finally:
                    self._waiting.discard(scope)
        except TimeoutError:
            if self.lost:
                raise ConnectionLostError from None
            raise
        except aiomqtt.MqttError as error:  # aiomqtt noticed the loss before the watch did
            self.taken_over = self.taken_over or _reason(error) == SESSION_TAKEN_OVER
            raise ConnectionLostError(_why(error)) from None

    def _end(self) -> None:
        """The connection is gone: whoever waits for it learns it now."""
        if self.lost:
            return
        self.lost = True
        now = asyncio.get_running_loop().time()
        for scope in self._waiting:
            if not scope.expired():
                scope.reschedule(now)

    def _hang_up(self) -> None:
        """Leave no socket behind, however the connection ended."""
        self.lost = True
        if self._paho.socket() is not None:
            self._paho.disconnect()
            self._paho.loop_write()
        sock = self._paho.socket()
        if isinstance(sock, socket.socket):
            # The goodbye cannot be written. Ended from both sides the socket reads as closed, and
            # aiomqtt's reader takes it out of the event loop.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _take_over(self) -> None:
        greeted = cast("Callable[..., None]", self._paho.on_connect)

        def on_connect(
            paho: PahoClient,
            userdata: Any,
            flags: ConnectFlags,
            reason: ReasonCode,
            properties: PahoProperties | None,
        ) -> None:
            self.session_present = flags.session_present
            self.bad_login = reason.value in _BAD_LOGIN
            self._payload_limit = payload_limit(maximum_packet_bytes(properties))
            greeted(paho, userdata, flags, reason, properties)

        self._paho.manual_ack_set(on=True)
        self._paho.connect_timeout = CONNECT_TIMEOUT_S
        self._paho.on_connect = on_connect
        self._paho._handle_publish = self._on_publish_packet  # type: ignore[method-assign]  # noqa: SLF001
        self._paho.on_publish = self._on_publish
        self._paho.on_subscribe = self._on_answers
        self._paho.on_unsubscribe = self._on_answers

    def _on_publish_packet(self) -> MQTTErrorCode:
        """In place of paho's own: a PUBLISH has come completely."""
        packet = self._paho._in_packet  # noqa: SLF001
        try:
            publish = decode_whole_publish(packet["command"], bytes(packet["packet"]))
        except BadPacketError as error:
            _logger.warning("a broken message", error=error)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        handle = None
        if publish.qos:
            self._serial += 1
            handle = Handle(self.number, self._serial, publish.packet_id)
        message = Message(
            publish.topic,
            publish.payload,
            publish.qos,
            publish.retain,
            publish.duplicate,
            publish.properties,
            handle,
        )
        if self._deliver(message) and handle is not None:
            self._held[publish.packet_id] = handle.serial
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _on_publish(
        self,
        paho: PahoClient,
        userdata: Any,
        mid: int,
        reason: ReasonCode,
        properties: PahoProperties | None,
    ) -> None:
        self._on_answers(paho, userdata, mid, [reason], properties)

    def _on_answers(
        self,
        paho: PahoClient,
        userdata: Any,
        mid: int,
        reasons: list[ReasonCode],
        properties: PahoProperties | None,
    ) -> None:
        """A late one, for which nobody waits any more, says nothing."""
        del paho, userdata, properties
        answer = self._answers.get(mid)
        if answer is not None and not answer.done():
            answer.set_result(reasons)


def _why(error: aiomqtt.MqttError) -> str:
    """aiomqtt's reason, or the one beneath it, without its codes."""
    cause = error.__cause__ or error
    if isinstance(cause, aiomqtt.MqttCodeError) and isinstance(cause.rc, ReasonCode):
        return loss(cause.rc)
    return str(cause)


def _reason(error: aiomqtt.MqttError) -> int | None:
    """The broker's reason code, where it gave one."""
    cause = error.__cause__ or error
    if isinstance(cause, aiomqtt.MqttCodeError) and isinstance(cause.rc, ReasonCode):
        return cause.rc.value
    return None


def _new_client(settings: ConnectionSettings, *, clean_start: bool) -> aiomqtt.Client:
    will = settings.will
    if settings.tls_context is not None:
        settings.tls_context.sslsocket_class = _TlsSocket
    client = aiomqtt.Client(
        settings.url.host,
        settings.url.port,
        username=settings.url.username,
        password=settings.url.password,
        identifier=settings.client_id,
        protocol=aiomqtt.ProtocolVersion.V5,
        will=None
        if will is None
        else aiomqtt.Will(
            will.topic,
            will.payload,
            will.qos,
            will.retain,
            to_paho(will.properties, PacketTypes.WILLMESSAGE),
        ),
        clean_start=clean_start,
        keepalive=settings.keepalive_s,
        timeout=CONNECT_TIMEOUT_S,
        max_inflight_messages=MAX_INFLIGHT,
        properties=connect_properties(
            session_expiry_s=settings.session_expiry_s,
            receive_maximum=settings.receive_maximum,
            maximum_packet_bytes=settings.maximum_packet_bytes,
        ),
        tls_context=settings.tls_context,
        socket_options=socket_options(settings.keepalive_s),
    )
    # aiomqtt warns from ten waiting calls on, which is nothing unusual at a start.
    client.pending_calls_threshold = 1000
    return client

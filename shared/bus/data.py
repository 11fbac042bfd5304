"""The data face: a paho connection owned by the thread that runs a stage.

Rules of this file:

- One thread owns the bus and calls everything; only `wake` may come from elsewhere. paho's own
  thread is never started, so nothing hops between threads: half the CPU per hop (FACTS.md).
- Only paho's public interface. Callbacks note what happened; nothing is published in one, since
  paho then queues it, while outside it writes at once.
- The connection is looked at in `poll` only. A stage may compute for seconds, as long as it stays
  well below 1.5 times the keep-alive, after which the broker gives it up; `poll` reads before it
  judges the keep-alive, so an answer that came during the computation counts.
- Connecting blocks for up to `CONNECT_TIMEOUT_S` where packets vanish; a closed port answers at
  once.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections import deque
from typing import Any, Final

from paho.mqtt.client import (
    MQTT_CLEAN_START_FIRST_ONLY,
    Client,
    ConnectFlags,
    DisconnectFlags,
    MQTTMessage,
    MQTTv5,
)
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties as PahoProperties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from shared.bus.backoff import Backoff
from shared.bus.message import Handle, Message, Properties, Qos
from shared.bus.outbox import Outbox
from shared.bus.paho_values import (
    MAX_INFLIGHT,
    MAX_PAYLOAD_BYTES,
    check_size,
    connect_properties,
    loss,
    message_from_paho,
    payload_limit,
    socket_options,
    to_paho,
)
from shared.bus.url import BrokerUrl
from shared.bus.waiter import Waiter
from shared.errors import BrokerUnreachableError

_logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 2.0
_GOODBYE_S: Final = 1.0
_WORTH_WAKING_BYTES: Final = 9
"""The broker acknowledges a message in 4 bytes; messages on topics of two letters and more are longer
than two of those. Woken for each, a thread pays up to 0.15 ms of CPU where caches are cold, so they are
read with the next message, once a second, and in `flush`."""
_NOW: Final = 0.0
"""A deadline that has passed."""


class MqttDataBus:
    """Implements `shared.bus.faces.DataBus` on a broker; what the verbs promise is said there.

    Args:
        url: The broker.
        client_id: Names the session at the broker; a second connection with it ends the first.
        clean_start: Forget what the session held: at the first connection, or at each where the
            session has no expiry.
        session_expiry_s: How long the broker keeps the session after the connection.
        manual_ack: Messages of QoS 1 are done when `acknowledge` says so, not when they arrive.
        receive_maximum: QoS 1 messages the broker may have under way to us, 1 to 65,535; with
            `manual_ack` the bound on what waits here.
        keepalive_s: Silence after which the connection is questioned.
        inbox_limit: Messages kept for `receive`. At the limit `poll` stops reading and TCP holds
            the broker back; an owner that polls and never receives loses its connection.
        queue_messages: Publications that may wait for the broker's acknowledgement, connected or
            not; beyond it `publish` raises.
        queue_bytes: The same for their payload bytes; one message is always taken.
        backoff: Delays between attempts to connect.
    """

    def __init__(
        self,
        url: BrokerUrl,
        client_id: str,
        *,
        clean_start: bool = True,
        session_expiry_s: int = 0,
        manual_ack: bool = False,
        receive_maximum: int = 64,
        keepalive_s: int = 30,
        inbox_limit: int = 1024,
        queue_messages: int = 1000,
        queue_bytes: int = 64 << 20,
        backoff: Backoff | None = None,
    ) -> None:
        self._url = url
        self._manual_ack = manual_ack
        self._inbox_limit = inbox_limit
        self._backoff = backoff if backoff is not None else Backoff()
        self._socket_options = socket_options(keepalive_s)

        self._connected = False
        self._trying = False
        self._closed = False
        self._session_present = False
        self._sessions = 0
        self._since = 0.0
        self._next_attempt = 0.0
        self._next_misc = 0.0
        self._misc_interval_s = min(1.0, keepalive_s / 4)
        self._failure: str | None = None
        self._wanted: dict[str, Qos] = {}

        self._inbox: deque[Message] = deque()
        self._held: dict[int, int] = {}  # packet identifier -> serial of the message it is now
        self._serial = 0
        self._outbox = Outbox(queue_messages, queue_bytes)
        self._payload_limit = MAX_PAYLOAD_BYTES
        self._bytes_received = 0
        self._bytes_sent = 0
        self._refused = 0

        context = url.tls_context()
        self._waiter = Waiter()
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=MQTTv5,
            reconnect_on_failure=False,
            manual_ack=manual_ack,
        )
        self._client.username = url.username
        self._client.password = url.password
        if context is not None:
            self._client.tls_set_context(context)
        self._client.connect_timeout = CONNECT_TIMEOUT_S
        self._client.max_inflight_messages = MAX_INFLIGHT
        self._client.on_socket_open = self._on_socket_open
        self._client.on_socket_close = self._on_socket_close
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        self._client.connect_async(
            url.host,
            url.port,
            keepalive_s,
            clean_start=(
                MQTT_CLEAN_START_FIRST_ONLY if clean_start and session_expiry_s else clean_start
            ),
            properties=connect_properties(
                session_expiry_s=session_expiry_s, receive_maximum=receive_maximum
            ),
        )

    # What the owner may know

    @property
    def connected(self) -> bool:
        """Whether a connection stands."""
        return self._connected

    @property
    def sessions(self) -> int:
        """Successful connections so far; a change tells the owner of a reconnection."""
        return self._sessions

    @property
    def session_present(self) -> bool:
        """Whether the broker still had this client's session at the last connection."""
        return self._session_present

    @property
    def bytes_received(self) -> int:
        """Payload bytes received so far."""
        return self._bytes_received

    @property
    def bytes_sent(self) -> int:
        """Payload bytes handed over for sending so far."""
        return self._bytes_sent

    @property
    def unacknowledged(self) -> int:
        """Publications that wait for the broker's acknowledgement."""
        return len(self._outbox)

    @property
    def refused(self) -> int:
        """Publications that the broker answered with an error; each is logged with its reason."""
        return self._refused

    @property
    def failure(self) -> str | None:
        """Why there is no connection, as far as known."""
        return None if self._connected else self._failure

    # The owner's verbs

    def connect(self, timeout_s: float = 0.0) -> bool:
        """Begin; True when connected within `timeout_s`. `poll` goes on trying for ever."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._turn(deadline, self._inbox_limit)
            if self._connected or time.monotonic() >= deadline:
                return self._connected

    def subscribe(self, topic: str, qos: Qos = 1) -> None:
        """Receive `topic` on this and every later connection."""
        self._wanted[topic] = qos
        if self._connected:
            self._client.subscribe(topic, qos)

    def unsubscribe(self, topic: str) -> None:
        """Stop receiving `topic`."""
        self._wanted.pop(topic, None)
        if self._connected:
            self._client.unsubscribe(topic)

    def poll(self, timeout_s: float) -> bool:
        """Wait for traffic or `wake`, read what there is, reconnect when due.

        Returns at once when a message already waits. True when one does on return.
        """
        deadline = time.monotonic() + timeout_s if timeout_s > 0 and not self._inbox else _NOW
        self._turn(deadline, self._inbox_limit)
        return bool(self._inbox)

    def receive(self) -> Message | None:
        """The next message, or None. Does not touch the network."""
        return self._inbox.popleft() if self._inbox else None

    def publish(
        self,
        topic: str,
        payload: bytes | bytearray | memoryview,
        qos: Qos = 1,
        *,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> None:
        """Send or, at QoS 1, keep until it can be sent; never waits.

        paho takes no memoryview, so one of those is copied here. bytes and bytearray are kept as
        they are until acknowledged: leave a bytearray alone afterwards.

        Raises:
            BrokerUnreachableError: too much is waiting for the broker's acknowledgement already.
            BrokerError: the payload is larger than the broker takes.
            ValueError: the topic is no topic.
        """
        data = bytes(payload) if isinstance(payload, memoryview) else payload
        check_size(topic, len(data), self._payload_limit)
        if qos:
            self._outbox.check_room(len(data))
        info = self._client.publish(topic, data, qos, retain, to_paho(properties))
        # Without a connection QoS 0 is dropped; QoS 1 is kept, and no code of paho's but this one
        # says otherwise.
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise BrokerUnreachableError(
                f"the broker at {self._url.address} has left a message unacknowledged for as long "
                "as packet identifiers last",
                expected="acknowledgements",
                got=f"{len(self._outbox)} messages waiting",
            )
        if qos:
            self._outbox.add(info.mid, len(data))
        elif info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return
        self._bytes_sent += len(data)

    def acknowledge(self, message: Message) -> None:
        """With `manual_ack`: the message is done, do not deliver it again."""
        handle = message.handle
        if handle is None or handle.session != self._sessions or not self._connected:
            return
        if self._held.get(handle.packet_id) == handle.serial:
            del self._held[handle.packet_id]
            self._client.ack(handle.packet_id, 1)

    def flush(self, timeout_s: float) -> bool:
        """Poll until everything published is acknowledged; False when time ran out."""
        deadline = time.monotonic() + timeout_s
        try:
            while self._outbox or self._client.want_write():
                if time.monotonic() >= deadline:
                    return False
                self._wake_from(1)
                # Acknowledgements come behind messages: read on, however full the inbox is.
                self._turn(deadline, None)
        finally:
            self._wake_from(_WORTH_WAKING_BYTES)
        return True

    def wake(self) -> None:
        """From any thread: make a `poll` that waits, or the next one, return."""
        self._waiter.wake()

    def close(self) -> None:
        """Disconnect cleanly. The session lives on at the broker for its expiry."""
        if self._closed:
            return
        self._closed = True
        self._client.disconnect()
        deadline = time.monotonic() + _GOODBYE_S
        while self._client.socket() is not None and time.monotonic() < deadline:
            self._exchange(deadline, None)
        sock = self._client.socket()
        if sock is not None:
            sock.close()
        self._waiter.close()

    # The connection

    def _turn(self, deadline: float, inbox_limit: int | None) -> None:
        """Wait until `deadline` for one thing to happen, and see to it."""
        assert not self._closed, "the bus is closed"
        while True:
            if not self._connected and time.monotonic() >= self._next_attempt:
                self._attempt()
            due = self._next_misc if self._connected else self._next_attempt
            happened = self._exchange(min(deadline, due), inbox_limit)
            now = time.monotonic()
            if now >= self._next_misc:
                self._next_misc = now + self._misc_interval_s
                if self._connected:
                    self._client.loop_read()  # what was not worth waking for
                self._client.loop_misc()  # after reading, so that an answer in time counts
            if happened or now >= deadline:
                return

    def _exchange(self, deadline: float, inbox_limit: int | None) -> bool:
        """Wait for the socket, then read until it is empty or the inbox full.

        Whether anything happened that the owner may want to see to.
        """
        client = self._client
        happened = False
        while True:
            if self._connected and inbox_limit is not None and len(self._inbox) >= inbox_limit:
                if client.want_write():
                    client.loop_write()
                return True
            readable, writable, woken = self._waiter.wait(
                _NOW if self._decrypted() else deadline, writes=client.want_write()
            )
            happened = happened or readable or writable or woken
            if writable:
                client.loop_write()
            if readable or self._decrypted():
                client.loop_read()
                happened = True
            else:
                return happened
            if not self._waiter.watching:
                return True
            # paho reads a packet or a few at a time; take the rest without waiting.
            deadline = _NOW

    def _wake_from(self, least_bytes: int) -> None:
        """Have `wait` return for incoming data only from so many bytes on, or at the connection's end."""
        sock = self._client.socket()
        # Under TLS the kernel counts the records around them, so that nothing is so small.
        if isinstance(sock, socket.socket) and self._connected and not self._url.tls:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least_bytes)

    def _decrypted(self) -> bool:
        """Whether TLS holds data already taken from the socket, where no poll can see it."""
        if not self._url.tls:
            return False
        sock = self._client.socket()
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def _attempt(self) -> None:
        self._trying = True
        # Time for the broker to accept; after that the attempt is made again.
        self._next_attempt = time.monotonic() + 2 * CONNECT_TIMEOUT_S
        try:
            self._client.reconnect()
        except OSError as error:  # refused, unknown host, timed out, certificate not trusted
            self._ended(str(error))

    def _ended(self, why: str) -> None:
        """The connection, or the attempt at one, has ended."""
        self._trying = False
        self._connected = False
        self._next_attempt = time.monotonic() + self._backoff.next()
        # Once per cause: a broker away for an hour is one line, not thousands.
        if why != self._failure:
            self._failure = why
            _logger.warning("no data connection to %s: %s; trying again", self._url.address, why)

    # paho's callbacks

    def _on_socket_open(self, client: Client, userdata: Any, sock: Any) -> None:
        del client, userdata
        for option in self._socket_options:
            sock.setsockopt(*option)
        self._waiter.watch(sock)

    def _on_socket_close(self, client: Client, userdata: Any, sock: Any) -> None:
        del client, userdata, sock
        self._waiter.unwatch()

    def _on_connect(
        self,
        client: Client,
        userdata: Any,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: PahoProperties | None,
    ) -> None:
        del client, userdata
        if reason.is_failure:
            self._ended(loss(reason))
            return
        self._connected = True
        self._failure = None
        self._since = time.monotonic()
        self._sessions += 1
        self._session_present = flags.session_present
        self._payload_limit = payload_limit(properties)
        self._wake_from(_WORTH_WAKING_BYTES)
        if self._wanted:
            # Here, so that it goes out before what paho sends again: an answer to that must not
            # find us unsubscribed.
            self._client.subscribe(
                [(topic, SubscribeOptions(qos=qos)) for topic, qos in self._wanted.items()]
            )
        self._held.clear()
        if self._manual_ack and flags.session_present:
            # The broker delivers again what was not acknowledged; keeping both would double it
            # here, and grow without bound over many reconnections.
            self._inbox = deque(message for message in self._inbox if message.handle is None)

    def _on_disconnect(
        self,
        client: Client,
        userdata: Any,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: PahoProperties | None,
    ) -> None:
        del client, userdata, flags, properties
        if self._closed or not self._trying:
            # paho may say it twice, and says it after a refusal too
            self._connected = False
            return
        if self._connected and time.monotonic() - self._since >= Backoff.STABLE_S:
            self._backoff.reset()
        self._ended(loss(reason))

    def _on_message(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        del client, userdata
        handle = None
        if self._manual_ack and message.qos:
            self._serial += 1
            handle = Handle(self._sessions, self._serial, message.mid)
            self._held[message.mid] = self._serial
        self._bytes_received += len(message.payload)
        self._inbox.append(message_from_paho(message, handle))

    def _on_publish(
        self,
        client: Client,
        userdata: Any,
        mid: int,
        reason: ReasonCode,
        properties: PahoProperties | None,
    ) -> None:
        del client, userdata, properties
        size_bytes = self._outbox.remove(mid)
        if size_bytes is not None and reason.is_failure:
            self._refused += 1
            _logger.error(
                "the broker at %s refused a message of %d bytes: %s",
                self._url.address,
                size_bytes,
                reason,
            )

"""The data face: a connection of our own MQTT 5 client, owned by the thread that runs a stage.

Beside a runtime, whose work evicts Python from the caches, messaging costs what it executes: bytecode and
system calls (FACTS.md). So here a message is one `poll`, one `recv` and one `sendmsg`, and a large payload is
copied once, by the kernel. What MQTT says stands in `session`, its bytes in `mqtt5`, the socket in `link`.

Rules of this file:

- One thread owns the bus and calls everything; only `wake` may come from elsewhere.
- Nothing blocks but `poll`, `flush`, `close` and `connect`, for as long as they were told, and the look-up
  of the host's name.
- The connection is looked at in these only, and written to in `publish`. A stage may compute for seconds,
  as long as it stays well below 1.5 times the keep-alive, after which the broker gives it up; `poll` reads
  before it judges the keep-alive, so an answer that came during the computation counts.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from dataclasses import replace
from typing import Final

from shared.bus.backoff import Backoff
from shared.bus.fence import ASK_AGAIN_S, SESSION_TAKEN_OVER, Fence
from shared.bus.limits import MAX_PACKET_BYTES, socket_options
from shared.bus.link import Address, Link, resolve
from shared.bus.message import Message, Properties, Qos
from shared.bus.mqtt5_values import BadPacketError
from shared.bus.rates import WORTH_TIMING_BYTES, DownMeter, UpMeter
from shared.bus.session import RefusedError, Session, SessionSettings
from shared.bus.tls_link import open_link
from shared.bus.url import BrokerUrl
from shared.bus.waiter import Waiter
from shared.link_rates import Rate, Rates
from shared.logs import get_log

_logger = get_log(__name__)

CONNECT_TIMEOUT_S: Final = 4.0
"""For each step from the first packet to the broker's CONNACK."""
_GOODBYE_S: Final = 1.0
_WORTH_WAKING_BYTES: Final = 9
"""The broker acknowledges a message in 4 bytes; messages on topics of two letters and more are longer
than two of those. Woken for each, a thread pays up to 0.15 ms of CPU where caches are cold, so they are
read with the next message, once a second, and in `flush`."""
_ACKNOWLEDGEMENT_BYTES: Final = 4
_WORTH_GATHERING_BYTES: Final = 32 << 10
_MOST_GATHERED_BYTES: Final = 1 << 20
"""Of a payload that is under way so much is waited for at once: 602 KB come in ten pieces and more."""
_AWAY_S: Final = 0.001
"""An owner that comes back within that has done nothing but poll."""
_NOW: Final = 0.0
"""A deadline that has passed."""


class MqttDataBus:
    """Implements `shared.bus.faces.DataBus` on a broker; what the verbs promise is said there.

    Args:
        url: The broker.
        client_id: Names the session at the broker (`BrokerUrl.client_id` of it); a second connection of
            the same login with it ends the first.
        clean_start: Forget what the session held: at the first connection, or at each where the
            session has no expiry.
        session_expiry_s: How long the broker keeps the session after the connection.
        manual_ack: Messages of QoS 1 are done when `acknowledge` says so, not when they arrive.
        receive_maximum: QoS 1 messages the broker may have under way to us, 1 to 65,535; with
            `manual_ack` the bound on what waits here.
        maximum_packet_bytes: The broker keeps larger packets from us: those that nobody here would read.
        keepalive_s: Silence after which the connection is questioned.
        inbox_limit: Messages kept for `receive`. At the limit `poll` stops reading and TCP holds
            the broker back.
        inbox_bytes: The same for their payload bytes; one message is always taken.
        queue_messages: Publications that may wait for the broker's acknowledgement, connected or
            not; beyond it `publish` raises.
        queue_bytes: The same for their payload bytes; one message is always taken.
        gather_writes: Send what is published with the next `poll` or `flush`, all in one go: less work
            for both sides where an owner publishes more than once between two polls.
        backoff: Delays between attempts to connect.
        fence: Asked before each attempt; None lets all through.
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
        maximum_packet_bytes: int = MAX_PACKET_BYTES,
        keepalive_s: int = 30,
        inbox_limit: int = 1024,
        inbox_bytes: int = 64 << 20,
        queue_messages: int = 1000,
        queue_bytes: int = 64 << 20,
        gather_writes: bool = False,
        backoff: Backoff | None = None,
        fence: Fence | None = None,
    ) -> None:
        self._fence = fence
        self._lost_at: float | None = None
        self._url = url
        self._inbox_limit = inbox_limit
        self._gather_writes = gather_writes
        self._backoff = backoff if backoff is not None else Backoff()
        self._socket_options = socket_options(keepalive_s)
        self._tls_context = url.tls_context()
        self._session = Session(
            SessionSettings(
                client_id=url.client_id(client_id),
                username=url.username,
                password=url.password,
                clean_start=clean_start,
                session_expiry_s=session_expiry_s,
                manual_ack=manual_ack,
                receive_maximum=receive_maximum,
                maximum_packet_bytes=maximum_packet_bytes,
                inbox_bytes=inbox_bytes,
                keepalive_s=keepalive_s,
                queue_messages=queue_messages,
                queue_bytes=queue_bytes,
            )
        )
        self._inbox = self._session.inbox
        self._waiter = Waiter()
        self._addresses: deque[Address] = deque()  # of this attempt, not tried yet
        self._link: Link | None = None
        self._open = False  # the link stands, so that MQTT may be spoken
        self._standing = False  # and the broker has greeted us
        self._closed = False
        self._due = _NOW  # when to dial, to give an attempt up, or to look after the connection
        self._failure: str | None = None
        self._blocked = False  # the socket took less than there was
        self._held_back = False  # packets may lie in the reader that the inbox had no room for
        self._least_bytes = _WORTH_WAKING_BYTES
        self._since = 0.0
        self._heard = self._spoke = False  # since the connection was looked after
        self._heard_at = self._spoke_at = self._pinged_at = 0.0
        self._rates = Rates()
        self._up, self._down = UpMeter(), DownMeter()
        self._left_at = 0.0  # when the owner was let go from `poll`
        self._writes = 0  # since the connection was looked after

    # What the owner may know

    @property
    def connected(self) -> bool:
        """Whether a connection stands."""
        return self._session.connected

    @property
    def sessions(self) -> int:
        """Successful connections so far; a change tells the owner of a reconnection."""
        return self._session.number

    @property
    def session_present(self) -> bool:
        """Whether the broker still had this client's session at the last connection."""
        return self._session.session_present

    @property
    def bytes_received(self) -> int:
        """Payload bytes received so far."""
        return self._session.bytes_received

    @property
    def bytes_sent(self) -> int:
        """Payload bytes handed over for sending so far."""
        return self._session.bytes_sent

    @property
    def rates(self) -> Rates:
        """The link's bandwidth as this connection's own traffic shows it; may be read from any thread."""
        return self._rates

    @property
    def unacknowledged(self) -> int:
        """Publications that wait for the broker's acknowledgement."""
        return len(self._session.outbox)

    @property
    def refused(self) -> int:
        """Publications that the broker answered with an error; each is logged with its reason."""
        return self._session.refused

    @property
    def failure(self) -> str | None:
        """Why there is no connection, as far as known."""
        return None if self._standing else self._failure

    # The owner's verbs

    def connect(self, timeout_s: float = 0.0) -> bool:
        """Begin; True when connected within `timeout_s`. `poll` goes on trying for ever."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._turn(deadline, self._inbox_limit)
            if self._standing or time.monotonic() >= deadline:
                return self._standing

    def subscribe(self, topic: str, qos: Qos = 1) -> None:
        """Receive `topic` on this and every later connection.

        Raises:
            ValueError: it is no topic filter.
        """
        self._session.subscribe(topic, qos)
        self._write_what_presses()

    def unsubscribe(self, topic: str) -> None:
        """Stop receiving `topic`."""
        self._session.unsubscribe(topic)
        self._write_what_presses()

    def poll(self, timeout_s: float) -> bool:
        """Wait for traffic or `wake`, read what there is, reconnect when due.

        Returns at once when a message already waits. True when one does on return.
        """
        deadline = time.monotonic() + timeout_s if timeout_s > 0 and not self._inbox else _NOW
        self._turn(deadline, self._inbox_limit)
        return bool(self._inbox)

    def receive(self) -> Message | None:
        """The next message, or None. Does not touch the network."""
        return self._session.take()

    def publish(
        self,
        topic: str,
        payload: bytes | bytearray | memoryview,
        qos: Qos = 1,
        *,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> None:
        """Send or, at QoS 1, keep until it can be sent; never waits. See `gather_writes`.

        The payload is kept as it is until acknowledged: leave what may change alone afterwards.

        Raises:
            BrokerUnreachableError: too much is waiting for the broker's acknowledgement already.
            BrokerError: the payload is larger than the broker takes.
            ValueError: the topic is no topic.
        """
        session = self._session
        session.publish(topic, payload, qos, retain=retain, properties=properties)
        if session.pressing and not self._blocked and not self._gather_writes:
            self._write()

    def acknowledge(self, message: Message) -> None:
        """With `manual_ack`: the message is done, do not deliver it again."""
        if message.handle is not None:
            self._session.acknowledge(message.handle)

    def flush(self, timeout_s: float) -> bool:
        """Poll until everything published is acknowledged; False when time ran out."""
        deadline = time.monotonic() + timeout_s
        session = self._session
        try:
            while True:
                if session.outgoing and not self._blocked:
                    self._write()
                if not session.outbox and not session.outgoing:
                    return True
                if time.monotonic() >= deadline:
                    return False
                self._least_bytes = 1
                self._gather()
                # Acknowledgements come behind messages: read on, however full the inbox is.
                self._turn(deadline, None)
        finally:
            self._least_bytes = _WORTH_WAKING_BYTES
            self._gather()

    def wake(self) -> None:
        """From any thread: make a `poll` that waits, or the next one, return."""
        self._waiter.wake()

    def close(self) -> None:
        """Disconnect cleanly. The session lives on at the broker for its expiry."""
        if self._closed:
            return
        self._closed = True
        if self._standing:
            self._session.leave()
            with contextlib.suppress(OSError):
                self._say_goodbye()
        self._hang_up()
        self._waiter.close()

    # The connection

    def _turn(self, deadline: float, inbox_limit: int | None) -> None:
        """Wait until `deadline` for one thing to happen, and see to it."""
        assert not self._closed, "the bus is closed"
        if self._down.coming_bytes and time.monotonic() - self._left_at > _AWAY_S:
            self._down.away()
        while True:
            if self._link is None and time.monotonic() >= self._due:
                self._dial()
            happened = self._exchange(min(deadline, self._due), inbox_limit)
            now = time.monotonic()
            if now >= self._due and self._link is not None:
                happened = self._look_after(now, inbox_limit) or happened
            if happened or now >= deadline:
                self._left_at = now
                return

    def _exchange(self, deadline: float, inbox_limit: int | None) -> bool:
        """Wait for the socket or a word, then write, and read until there is no more or the inbox is full.

        Whether anything happened that the owner may want to see to.
        """
        link, session = self._link, self._session
        if link is None:
            return self._waiter.wait(deadline, writes=False)[2]
        if not self._open:
            readable, writable, woken = self._waiter.wait(deadline, writes=link.wants_write)
            return ((readable or writable) and self._advance(link)) or woken
        if session.outgoing and not self._blocked:
            self._write()  # at the latest now, before we wait
            if self._link is None:
                return True
        happened = False
        if self._held_back:
            happened = self._take(inbox_limit)
        if session.full(inbox_limit):
            if self._blocked and self._waiter.wait(_NOW, writes=True)[1]:
                self._write()
            return True
        readable, writable, woken = self._waiter.wait(
            _NOW if happened or link.pending() else deadline, writes=self._blocked
        )
        if writable:
            self._write()
        if (readable or link.pending()) and self._link is not None:
            happened = self._read(link, inbox_limit) or happened
        return happened or woken

    def _read(self, link: Link, inbox_limit: int | None) -> bool:
        """Receive until there is no more or the inbox is full; whether a packet came, or the end."""
        happened = False
        missing = self._session.reader.missing_bytes
        try:
            while True:
                reader = self._session.reader
                space = reader.space()
                count = link.receive(space)
                if count is None:
                    break
                reader.filled(count)
                self._heard = True
                happened = self._take(inbox_limit) or happened
                if self._link is None:
                    return True
                missing = reader.missing_bytes
                if self._down.coming_bytes and not missing:
                    self._came()
                if self._held_back or (count < len(space) and not link.pending()):
                    break
        except OSError as error:
            self._ended(str(error))
            return True
        self._gather()
        if missing >= WORTH_TIMING_BYTES and not self._down.coming_bytes and not self._held_back:
            self._down.began(time.monotonic(), missing)
        return happened

    def _take(self, inbox_limit: int | None) -> bool:
        """Have the session take what was received; whether that was anything."""
        session = self._session
        try:
            happened = session.received(inbox_limit)
        except RefusedError as error:
            self._ended(f"the broker said: {error}")
            if error.reason == SESSION_TAKEN_OVER and self._fence is not None:
                self._fence.taken_over()
            return True
        except BadPacketError as error:
            session.leave(error.reason)
            self._write()
            self._ended(str(error))
            return True
        self._held_back = session.full(inbox_limit)
        if session.connected and not self._standing:
            self._greeted()
        if session.pressing and not self._blocked:
            self._write()
        while session.complaints:
            _logger.error(
                "the broker complains", what=session.complaints.pop(), address=self._url.address
            )
        return happened

    def _came(self) -> None:
        now = time.monotonic()
        rate = self._down.arrived(now)
        if rate is not None:
            self._rates = replace(self._rates, down=Rate(rate, now))

    def _write_what_presses(self) -> None:
        if self._session.pressing and not self._blocked:
            self._write()

    def _write(self) -> None:
        """Send as much as the socket takes; the rest when it takes more."""
        link, session = self._link, self._session
        if link is None:
            return
        session.pressing = False
        self._spoke = True
        self._writes += (
            not self._blocked
        )  # what follows on a write that was cut short is none of its own
        try:
            while session.outgoing:
                count = link.send(session.outgoing)
                if not count:
                    break
                session.sent(count)
            self._blocked = not link.flush() or bool(session.outgoing)
        except OSError as error:
            self._ended(str(error))

    def _gather(self) -> None:
        """Be woken for what is worth it: a message, its last bytes, or most of a large one."""
        if not self._standing or self._link is None:
            return
        reader, window = self._session.reader, self._session.outbox.window
        missing = reader.missing_bytes
        least = self._least_bytes
        if missing >= _WORTH_GATHERING_BYTES:
            least = min(missing, _MOST_GATHERED_BYTES)
        elif reader.in_packet or window * _ACKNOWLEDGEMENT_BYTES < least:
            # Networks cut where they like, so the end of a message may come alone. And where all that
            # may be under way is acknowledged in fewer bytes, the next publication waits for just that.
            least = 1
        self._link.wake_from(least)

    # Its beginning, its upkeep, and its end

    def _dial(self) -> None:
        """Begin with the next address of the host."""
        if self._fence is not None and not self._fence.may_connect(self._lost_at):
            self._due = time.monotonic() + ASK_AGAIN_S
            return
        try:
            if not self._addresses:
                self._addresses.extend(resolve(self._url))
            self._link = open_link(
                self._url.host, self._addresses.popleft(), self._tls_context, self._socket_options
            )
        except OSError as error:  # unknown host, refused at once, no route
            self._ended(str(error))
            return
        self._open = False
        self._due = time.monotonic() + CONNECT_TIMEOUT_S
        self._waiter.watch(self._link.socket)

    def _advance(self, link: Link) -> bool:
        """Go on with connecting; whether it ended."""
        try:
            self._open = link.advance()
        except OSError as error:  # refused, timed out, certificate not trusted
            self._ended(str(error))
            return True
        self._due = time.monotonic() + CONNECT_TIMEOUT_S
        if self._open:
            self._blocked = self._held_back = False
            self._session.begin()
            self._write()
        return False

    def _greeted(self) -> None:
        self._standing = True
        self._failure = None
        self._addresses.clear()
        self._up.connected()
        now = self._since = self._heard_at = self._spoke_at = time.monotonic()
        self._due = now + self._upkeep_s()

    def _upkeep_s(self) -> float:
        keepalive_s = self._session.keepalive_s
        return min(1.0, keepalive_s / 4) if keepalive_s else 1.0

    def _look_after(self, now: float, inbox_limit: int | None) -> bool:
        """Once a second: read what was not worth waking for, then judge the keep-alive (3.1.2.10).

        Whether anything was read: a message may have come just then.
        """
        link, session = self._link, self._session
        if link is None or not self._standing:
            self._ended(f"no answer within {CONNECT_TIMEOUT_S:g} s")
            return False
        self._due = now + self._upkeep_s()
        self._ask_what_went(link, now)
        happened = not self._held_back and self._read(link, inbox_limit)
        keepalive_s = session.keepalive_s
        if self._link is None or not keepalive_s:
            return happened
        # Who has no room does not read, and hears nothing of a broker that is there; it is asked all the
        # same, so that it hears of us.
        self._heard_at = now if self._heard or self._held_back else self._heard_at
        self._spoke_at = now if self._spoke else self._spoke_at
        self._heard = self._spoke = False
        if session.awaits_pingresp and not self._held_back:
            if now - max(self._pinged_at, self._heard_at) >= keepalive_s:
                self._ended(f"the broker has been silent for {keepalive_s} s")
        elif now - min(self._heard_at, self._spoke_at) >= keepalive_s:
            self._pinged_at = now
            session.ping()
            self._write_what_presses()
        return happened

    def _ask_what_went(self, link: Link, now: float) -> None:
        writes, self._writes = self._writes, 0
        with contextlib.suppress(OSError):  # gone: the next read says so
            sent = link.sent()
            rate = None if sent is None else self._up.take(sent, writes)
            if rate is not None:
                self._rates = replace(self._rates, up=Rate(rate, now))

    def _ended(self, why: str) -> None:
        """The connection, or the attempt at one, has ended."""
        now = time.monotonic()
        if self._standing:
            self._lost_at = now
            if now - self._since >= Backoff.STABLE_S:
                self._backoff.reset()
        if self._open:
            self._addresses.clear()  # somebody answered: the others are no better
        self._hang_up()
        if self._closed:
            return
        if self._addresses:
            self._due = now
            return
        self._due = now + self._backoff.next()
        # Once per cause: a broker away for an hour is one line, not thousands.
        if why != self._failure:
            self._failure = why
            _logger.warning(
                "no data connection to the broker, trying again",
                address=self._url.address,
                reason=why,
            )

    def _hang_up(self) -> None:
        self._session.end()
        self._down.away()
        self._open = self._standing = self._blocked = self._held_back = False
        if self._link is not None:
            self._waiter.unwatch()
            self._link.close()
            self._link = None

    def _say_goodbye(self) -> None:
        """Send what waits, and let the broker close the connection.

        Closed with data unread on our side it would be reset, and what the broker has not read yet lost.
        """
        deadline = time.monotonic() + _GOODBYE_S
        self._least_bytes = 1
        self._gather()
        self._write()
        while self._blocked and time.monotonic() < deadline:
            self._exchange(deadline, None)
        if self._link is None:
            return
        self._link.half_close()
        space = memoryview(bytearray(1 << 16))
        while self._waiter.wait(deadline, writes=False)[0]:
            self._link.receive(space)  # until it raises: that is the end

"""A broker in memory, with both faces of the bus, for tests of shells.

It does what MQTT does where our code relies on it: wildcards, retained messages, wills on an abrupt
end, persistent sessions, a receive maximum, redelivery of what was not acknowledged, response topics
carried as they are. And it does on purpose what a network does: a seeded `Mischief` loses, delays,
repeats and reorders. Time is a number that the test moves with `advance`; nothing here reads a clock
but `FakeDataBus.poll`, which may have to wait for another thread.

Faces do not reconnect by themselves: `cut` breaks a connection, `mend` makes it again, and `stop` and
`start` do so to all.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from shared.bus import Handle, Message, Properties, Publication, Qos, topic_matches
from shared.bus.message import NO_PROPERTIES
from tests.fakes.faces import FakeControlBus, FakeDataBus


@dataclass(frozen=True, slots=True, kw_only=True)
class Mischief:
    """What the wire does to deliveries that match `pattern`. Ratios are probabilities in [0, 1]."""

    pattern: str = "#"
    drop_ratio: float = 0.0
    """QoS 0 only, as MQTT has it."""
    lose_ratio: float = 0.0
    """QoS 1 too: what a broker that was killed had taken and not passed on."""
    repeat_ratio: float = 0.0
    delay_s: tuple[float, float] = (0.0, 0.0)
    """Drawn evenly between these, in seconds of the broker's time."""
    reorder: bool = False
    """Whether a message may overtake an earlier one to the same client."""


class Receiver(Protocol):
    """What a face must offer the broker."""

    def take(self, message: Message) -> None:
        """A message has arrived."""

    def opened(self, number: int, *, session_present: bool) -> None:
        """Connection `number` of this client stands."""

    def closed(self) -> None:
        """The connection is gone."""


@dataclass(slots=True)
class Session:
    """What the broker knows of one client."""

    client_id: str
    will: Publication | None = None
    expiry_s: int = 0
    receive_maximum: int = 64
    subscriptions: dict[str, Qos] = field(default_factory=dict)
    receiver: Receiver | None = None
    connection: int = 0
    expires_at: float = 0.0
    waiting: deque[Message] = field(default_factory=deque)
    unacknowledged: dict[int, Message] = field(default_factory=dict)
    """By serial, which here is also the packet identifier."""
    last_due: float = 0.0


class FakeBroker:
    """See the module's docstring. Deterministic for a seed as long as one thread uses it."""

    def __init__(self, *, seed: int = 0, mischief: tuple[Mischief, ...] = ()) -> None:
        self.now = 0.0
        self.mischief = mischief
        self.published: list[Message] = []
        """Everything published so far, in order: what a `mosquitto_sub -t '#'` would have seen."""
        self.running = True
        self.retained: dict[str, Message] = {}
        self.sessions: dict[str, Session] = {}
        self._random = random.Random(seed)
        self._order = itertools.count()
        self._serials = itertools.count(1)
        self._on_the_way: list[tuple[float, int, str, Message]] = []
        self._alarms: list[tuple[float, int, Callable[[], None]]] = []
        self._connections: dict[str, int] = {}
        self._receivers: dict[str, tuple[Session, Receiver]] = {}
        self.lock = threading.RLock()

    def control(
        self,
        client_id: str,
        *,
        will: Publication | None = None,
        clean_start: bool = True,
        session_expiry_s: int = 0,
        manual_ack: bool = False,
        receive_maximum: int = 256,
        publish_timeout_s: float = 10.0,
    ) -> FakeControlBus:
        """A control face, to be entered."""
        wish = Session(client_id, will, session_expiry_s, receive_maximum)
        return FakeControlBus(
            self,
            wish,
            clean_start=clean_start,
            manual_ack=manual_ack,
            publish_timeout_s=publish_timeout_s,
        )

    def data(
        self,
        client_id: str,
        *,
        clean_start: bool = True,
        session_expiry_s: int = 0,
        manual_ack: bool = False,
        receive_maximum: int = 64,
        queue_messages: int = 1000,
    ) -> FakeDataBus:
        """A data face, to be connected."""
        wish = Session(client_id, None, session_expiry_s, receive_maximum)
        return FakeDataBus(
            self,
            wish,
            clean_start=clean_start,
            manual_ack=manual_ack,
            queue_messages=queue_messages,
        )

    # What a test does to the network

    def advance(self, seconds: float) -> None:
        """Let time pass; what is due on the way is delivered, alarms ring, in order."""
        with self.lock:
            end = self.now + seconds
            while True:
                due = min(
                    (queue[0][0] for queue in (self._on_the_way, self._alarms) if queue),
                    default=end + 1,
                )
                if due > end:
                    break
                self.now = max(self.now, due)
                if self._alarms and self._alarms[0][0] <= due:
                    heapq.heappop(self._alarms)[2]()
                else:
                    self._arrive()
            self.now = end
            for session in list(self.sessions.values()):
                if session.receiver is None and session.expires_at <= self.now:
                    del self.sessions[session.client_id]

    def cut(self, client_id: str) -> None:
        """Break a client's connection: its will is published."""
        with self.lock:
            self._end(client_id, clean=False)

    def mend(self, client_id: str) -> None:
        """Connect it again, as the real faces do by themselves."""
        with self.lock:
            wish, receiver = self._receivers[client_id]
            if self.running and not self._connected(client_id):
                # A client that comes back wants its session; only the first start may be clean.
                self.connect(wish, receiver, clean_start=not wish.expiry_s)

    def stop(self) -> None:
        """The broker goes: every connection breaks, and nobody publishes wills."""
        with self.lock:
            self.running = False
            for session in list(self.sessions.values()):
                session.will = None
                if session.receiver is not None:
                    self._end(session.client_id, clean=False)

    def start(self) -> None:
        """It comes back with its retained messages and persistent sessions."""
        with self.lock:
            self.running = True
            for client_id in list(self._receivers):
                self.mend(client_id)

    def alarm(self, at: float, ring: Callable[[], None]) -> None:
        """Call `ring` when time has passed `at`."""
        heapq.heappush(self._alarms, (at, next(self._order), ring))

    # What a face does

    def connect(self, wish: Session, receiver: Receiver, *, clean_start: bool) -> bool:
        """Open a session; False while the broker is away. An earlier connection is thrown out."""
        with self.lock:
            client_id = wish.client_id
            self._receivers[client_id] = (wish, receiver)
            if not self.running:
                return False
            self._end(client_id, clean=False)
            known = self.sessions.get(client_id)
            if known is None or clean_start:
                session = replace(
                    wish, subscriptions={}, waiting=deque(), unacknowledged={}, last_due=self.now
                )
                present = False
            else:
                session, present = known, True
                session.will = wish.will
            number = self._connections[client_id] = self._connections.get(client_id, 0) + 1
            session.connection = number
            session.receiver = receiver
            self.sessions[client_id] = session
            again = [
                replace(message, duplicate=True) for message in session.unacknowledged.values()
            ]
            session.unacknowledged.clear()
            session.waiting.extendleft(reversed(again))
            receiver.opened(number, session_present=present)
            self._pump(session)
            return True

    def disconnect(self, client_id: str) -> None:
        """A clean goodbye: no will."""
        with self.lock:
            self._receivers.pop(client_id, None)
            self._end(client_id, clean=True)

    def subscribe(self, client_id: str, pattern: str, qos: Qos) -> None:
        """Subscribe, and get what is retained."""
        with self.lock:
            session = self.sessions[client_id]
            session.subscriptions[pattern] = qos
            for topic, message in self.retained.items():
                if topic_matches(pattern, topic):
                    self._send(session, replace(message, qos=min(message.qos, qos), retain=True))

    def unsubscribe(self, client_id: str, pattern: str) -> None:
        """Unsubscribe."""
        with self.lock:
            self.sessions[client_id].subscriptions.pop(pattern, None)

    def publish(
        self,
        topic: str,
        payload: bytes,
        qos: Qos,
        *,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> None:
        """Take a message and send it to whoever subscribed."""
        if not topic or "+" in topic or "#" in topic:
            raise ValueError(f"not a topic: {topic!r}")
        with self.lock:
            message = Message(topic, payload, qos, properties=properties or NO_PROPERTIES)
            self.published.append(replace(message, retain=retain))
            if retain and payload:
                self.retained[topic] = message
            elif retain:
                self.retained.pop(topic, None)
            for session in list(self.sessions.values()):
                granted = [
                    granted_qos
                    for pattern, granted_qos in session.subscriptions.items()
                    if topic_matches(pattern, topic)
                ]
                if granted:
                    self._send(session, replace(message, qos=min(qos, max(granted))))

    def acknowledge(self, client_id: str, handle: Handle) -> None:
        """A message is done; one of an earlier connection, or done already, does nothing."""
        with self.lock:
            session = self.sessions.get(client_id)
            if session is None or session.receiver is None:
                return
            if handle.session == session.connection:
                session.unacknowledged.pop(handle.serial, None)
                self._pump(session)

    # On the way

    def _send(self, session: Session, message: Message) -> None:
        mischief = next(
            (each for each in self.mischief if topic_matches(each.pattern, message.topic)), None
        )
        if mischief is None:
            self._enqueue(session, message, self.now)
            self._arrive()
            return
        lost = self._random.random() < mischief.lose_ratio
        dropped = self._random.random() < mischief.drop_ratio and message.qos == 0
        copies = 2 if self._random.random() < mischief.repeat_ratio else 1
        for _ in range(0 if lost or dropped else copies):
            due = self.now + self._random.uniform(*mischief.delay_s)
            if not mischief.reorder:
                due = max(due, session.last_due)
            self._enqueue(session, message, due)
        self._arrive()

    def _enqueue(self, session: Session, message: Message, due: float) -> None:
        session.last_due = max(session.last_due, due)
        heapq.heappush(self._on_the_way, (due, next(self._order), session.client_id, message))

    def _arrive(self) -> None:
        while self._on_the_way and self._on_the_way[0][0] <= self.now:
            _, _, client_id, message = heapq.heappop(self._on_the_way)
            session = self.sessions.get(client_id)
            if session is None or (session.receiver is None and message.qos == 0):
                continue
            if message.qos == 0:
                assert session.receiver is not None
                session.receiver.take(message)
            else:
                session.waiting.append(message)
                self._pump(session)

    def _pump(self, session: Session) -> None:
        while (
            session.receiver is not None
            and session.waiting
            and len(session.unacknowledged) < session.receive_maximum
        ):
            message = session.waiting.popleft()
            serial = next(self._serials)
            message = replace(message, handle=Handle(session.connection, serial, serial))
            session.unacknowledged[serial] = message
            session.receiver.take(message)

    def _connected(self, client_id: str) -> bool:
        session = self.sessions.get(client_id)
        return session is not None and session.receiver is not None

    def _end(self, client_id: str, *, clean: bool) -> None:
        session = self.sessions.get(client_id)
        if session is None or session.receiver is None:
            return
        receiver, session.receiver = session.receiver, None
        will, session.will = session.will, None
        session.expires_at = self.now + session.expiry_s
        if not session.expiry_s:
            del self.sessions[client_id]
        receiver.closed()
        if will is not None and not clean:
            self.publish(
                will.topic, will.payload, will.qos, retain=will.retain, properties=will.properties
            )

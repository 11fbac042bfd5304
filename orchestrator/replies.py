"""Answers on their way out, and the requests that they acknowledge.

A request is acknowledged on the connection that its answer went out on, right after it. Two things come
between: the bus may have no room, then answer and acknowledgement wait; or the connection that the request
came on is gone, then the broker delivers it again, and it must not be answered twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from orchestrator.answers import MSGPACK, Context
from shared.bus import DataBus, Message, Properties
from shared.errors import BrokerError, BrokerUnreachableError
from shared.logs import get_log

log = get_log(__name__)

_MOST_LATE = 4096
ANSWER_EXPIRY_S = 24 * 3600
"""How long the broker keeps an answer for a client that is away; without it, as long as its session."""


@dataclass(frozen=True, slots=True)
class _Reply:
    topic: str
    payload: bytes
    properties: Properties | None
    handles: tuple[object, ...]


class Replies:
    """One per dispatcher, in its thread."""

    def __init__(self, bus: DataBus) -> None:
        self._bus = bus
        self._waiting: deque[_Reply] = deque()
        # Answered when the connection they came on was gone, so that they come again.
        self._late: dict[Hashable, Hashable] = {}
        # Jobs of an earlier orchestrator's store: the broker may deliver them again, too.
        self._stored: dict[Hashable, list[Hashable]] = {}
        self._same: dict[Hashable, Hashable] = {}
        self._epoch = 0

    @property
    def waiting(self) -> int:
        """Answers that the bus has no room for."""
        return len(self._waiting)

    def session_began(self, *, present: bool) -> None:
        """A connection was made; `present` when the broker still had our session."""
        if not present:
            self._epoch += 1  # packet ids begin anew: an old one names another delivery
            self._late.clear()
            self._same.clear()

    def stored(self, message: Message, number: int) -> Hashable:
        """What names the delivery of the store's job `number`; a redelivery of it gets the same name."""
        delivery = ("stored", number)
        self._stored.setdefault(_mark(message), []).append(delivery)
        return delivery

    def delivery(self, message: Message) -> Hashable | None:
        """What names the broker's delivery, the same when it is delivered again."""
        handle = message.handle
        if handle is None:
            return None
        delivery: Hashable = (self._epoch, handle.packet_id)
        if not message.duplicate or not (self._stored or self._same):
            return delivery
        waiting = self._stored.get(_mark(message))
        if waiting and delivery not in self._same:
            self._same[delivery] = waiting.pop()
        return self._same.get(delivery, delivery)

    def answered_before(self, message: Message) -> bool:
        """Whether this is a redelivery of what has its answer already; then it is acknowledged."""
        delivery = self.delivery(message)
        if not message.duplicate or self._late.get(delivery) != _mark(message):
            return False
        del self._late[delivery]
        self._bus.acknowledge(message)
        return True

    def send(
        self, topic: str, payload: bytes, context: Context, handles: tuple[object, ...]
    ) -> None:
        """Send an answer, now or when there is room, then acknowledge the messages `handles`.

        Raises:
            BrokerError: the broker takes none of this size; nothing is acknowledged.
        """
        properties = (
            Properties(
                correlation_data=context.correlation,
                content_type=MSGPACK if context.msgpack else "application/json",
                user=(("job", context.job),),
                expiry_s=ANSWER_EXPIRY_S,
            )
            if context.version_5
            else Properties(expiry_s=ANSWER_EXPIRY_S)
        )
        reply = _Reply(topic, payload, properties, handles)
        if self._waiting or not self._sent(reply):
            self._waiting.append(reply)

    def send_waiting(self) -> None:
        """Send what waits, as far as there is room."""
        while self._waiting:
            reply = self._waiting[0]
            try:
                if not self._sent(reply):
                    return
            except BrokerError as error:
                # The limit became smaller with a new connection, and there is no answer that fits.
                log.error("an answer could not be sent", topic=reply.topic, error=error)
                self.acknowledge(*reply.handles)
            self._waiting.popleft()

    def _sent(self, reply: _Reply) -> bool:
        try:
            self._bus.publish(reply.topic, reply.payload, 1, properties=reply.properties)
        except BrokerUnreachableError:
            return False
        self.acknowledge(*reply.handles)
        return True

    def acknowledge(self, *handles: object) -> None:
        """These messages are done."""
        for message in handles:
            assert isinstance(message, Message)
            handle = message.handle
            if handle is None:
                continue
            if handle.session == self._bus.sessions and self._bus.connected:
                self._bus.acknowledge(message)
                continue
            if len(self._late) >= _MOST_LATE:
                self._late.clear()
            self._late[self._epoch, handle.packet_id] = _mark(message)


def _mark(message: Message) -> Hashable:
    """Tells a redelivery from another message that got the same packet id.

    Not by times: the broker takes its own waiting off the expiry, and the store does so with a deadline.
    """
    properties = message.properties
    return (
        message.topic,
        properties.response_topic,
        properties.correlation_data,
        properties.content_type,
        tuple(pair for pair in properties.user if pair[0] != "deadline_ms"),
        len(message.payload),
        hash(bytes(message.payload[:4096])),
    )

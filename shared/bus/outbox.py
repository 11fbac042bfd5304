"""What was published at QoS 1 and the broker has not acknowledged: kept, in order, and bounded.

Pure. As many are under way as the broker allows (its receive maximum, MQTT 5, section 4.9); the others
wait, first come first sent. On a new connection all of them are sent again: at-least-once holds for what
was handed over, also where the broker has forgotten the session.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from shared.bus.mqtt5 import MAX_PACKET_ID, mark_duplicate
from shared.errors import BrokerUnreachableError

_MOST_MESSAGES: Final = 60_000
Payload: TypeAlias = bytes | bytearray | memoryview


@dataclass(slots=True)
class _Kept:
    header: bytes
    payload: Payload
    sent: bool
    """On this connection."""
    seen: bool
    """In the session that the broker has now: sent again, it is a duplicate (3.3.1.1)."""


@dataclass(slots=True)
class Outbox:
    """Publications by packet identifier.

    At most `limit_messages` (60,000 in any case, since identifiers end at 65,535) and `limit_bytes` of
    payload; one message is always taken, so that a single large one passes.
    """

    limit_messages: int
    limit_bytes: int
    window: int = field(default=0, init=False)
    """Publications that may be under way; 0 without a connection."""
    _kept: dict[int, _Kept] = field(default_factory=dict)  # in the order of publication
    _waiting: deque[int] = field(default_factory=deque)
    _bytes: int = 0
    _last_id: int = 0
    _reserved: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._kept)

    def check_room(self, size_bytes: int) -> None:
        """Raise where one more of this size would be too much.

        Raises:
            BrokerUnreachableError: the broker has left too much unacknowledged.
        """
        if not self._kept:
            return
        most = min(self.limit_messages, _MOST_MESSAGES)
        if len(self._kept) >= most or self._bytes + size_bytes > self.limit_bytes:
            raise BrokerUnreachableError(
                "the broker does not acknowledge what was published",
                expected=f"at most {most} messages of {self.limit_bytes} bytes "
                "in all waiting for it",
                got=f"{len(self._kept)} of {self._bytes} bytes, and one more of {size_bytes}",
            )

    def next_id(self) -> int:
        """A packet identifier that nothing in here has. Ask only where there is room."""
        number = self._last_id
        while True:
            number = number % MAX_PACKET_ID + 1
            if number not in self._kept and number not in self._reserved:
                self._last_id = number
                return number

    def reserve_id(self) -> int:
        """A packet identifier for a request, which are of the same space (2.2.1), until it is released."""
        number = self.next_id()
        self._reserved.add(number)
        return number

    def release_id(self, packet_id: int) -> None:
        """The request has its answer."""
        self._reserved.discard(packet_id)

    def add(self, packet_id: int, header: bytes, payload: Payload, size_bytes: int) -> bool:
        """Keep a publication; whether it is to be sent now, or waits for its turn."""
        now = len(self._kept) - len(self._waiting) < self.window
        self._kept[packet_id] = _Kept(header, payload, sent=now, seen=now)
        self._bytes += size_bytes
        if not now:
            self._waiting.append(packet_id)
        return now

    def remove(self, packet_id: int) -> int | None:
        """The broker acknowledged; the payload's size, or None when that was not under way."""
        kept = self._kept.get(packet_id)
        if kept is None or not kept.sent:
            return None
        del self._kept[packet_id]
        size_bytes = len(kept.payload)
        self._bytes -= size_bytes
        return size_bytes

    def opened(self, window: int, *, session_present: bool) -> None:
        """A connection stands on which `window` publications may be under way; all are to be sent again."""
        self.window = window
        self._waiting = deque(self._kept)
        for kept in self._kept.values():
            kept.sent = False
            kept.seen = kept.seen and session_present

    def closed(self) -> None:
        """The connection is gone: what comes now waits."""
        self.window = 0
        self._reserved.clear()

    def due(self) -> tuple[bytes, Payload] | None:
        """The next to be sent, header and payload; None when none waits or the window is full."""
        if not self._waiting or len(self._kept) - len(self._waiting) >= self.window:
            return None
        kept = self._kept[self._waiting.popleft()]
        header = mark_duplicate(kept.header) if kept.seen else kept.header
        kept.sent = kept.seen = True
        return header, kept.payload

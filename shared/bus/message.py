"""What travels on the bus, free of any client library."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Qos = Literal[0, 1]
"""QoS 2 is not used: jobs carry their own identity, so exactly-once is ours to decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Properties:
    """The MQTT 5 properties of a message that AMP4EC reads or writes."""

    response_topic: str | None = None
    correlation_data: bytes | None = None
    content_type: str | None = None
    user: tuple[tuple[str, str], ...] = ()
    """User properties in order; a name may occur more than once."""
    expiry_s: int | None = None
    """How long the broker may keep the message before it must drop it."""

    def user_value(self, name: str) -> str | None:
        """The first user property of that name."""
        return next((value for key, value in self.user if key == name), None)


NO_PROPERTIES = Properties()


@dataclass(frozen=True, slots=True)
class Handle:
    """What a bus needs to acknowledge one message; opaque to everybody else.

    The session (number of the connection) makes the acknowledgement of a message from an earlier
    connection harmless; the serial does so for a second one, since packet identifiers come again.
    """

    session: int
    serial: int
    packet_id: int


@dataclass(frozen=True, slots=True)
class Message:
    """A message received.

    `payload` is the buffer that the message was received in, not a copy, and a bytearray where it is large;
    do not change it. `duplicate` is the broker's mark that it may have been delivered before.
    """

    topic: str
    payload: bytes | bytearray
    qos: int = 0
    retain: bool = False
    duplicate: bool = False
    properties: Properties = NO_PROPERTIES
    handle: Handle | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A message to send later, as a last will is."""

    topic: str
    payload: bytes
    qos: Qos = 1
    retain: bool = False
    properties: Properties = NO_PROPERTIES


@lru_cache(maxsize=1024)
def topic_matches(pattern: str, topic: str) -> bool:
    """Whether a subscription to `pattern` receives `topic` (MQTT 5, section 4.7).

    `+` stands for one level, `#` at the end for any number, and neither for a first level that
    begins with `$`.
    """
    if topic.startswith("$") and not pattern.startswith("$"):
        return False
    wanted, levels = pattern.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or level not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)

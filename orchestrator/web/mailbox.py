"""What waits for one browser: bounded, and honest about it.

Of telemetry and metrics only the latest of a topic waits, so a slow browser sees fewer of them. States and
events are kept, all and in order; where they are too many for it, the browser is behind for good, and is told
to begin again with a snapshot rather than shown a history with holes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

MOST_ITEMS = 4000
MOST_BYTES = 16 * 2**20
FRAME_BYTES = 256 * 1024
"""A frame is closed beyond this: a browser reads one in a few milliseconds."""


@dataclass(frozen=True, slots=True)
class Item:
    """A message below the root; `payload` is JSON, `null` where what was retained is gone."""

    topic: str
    payload: bytes


class Mailbox:
    """Messages for one browser, in one thread."""

    def __init__(self, *, most_items: int = MOST_ITEMS, most_bytes: int = MOST_BYTES) -> None:
        """Prepare.

        Args:
            most_items: states and events that may wait.
            most_bytes: their payloads together.
        """
        self._most_items = most_items
        self._most_bytes = most_bytes
        self._kept: deque[Item] = deque()
        self._kept_bytes = 0
        self._latest: dict[str, Item] = {}

    def __bool__(self) -> bool:
        """Whether something waits."""
        return bool(self._kept or self._latest)

    def keep(self, item: Item) -> bool:
        """A state or an event; False where there is no room: then nothing waits any more."""
        self._kept.append(item)
        self._kept_bytes += len(item.payload)
        if len(self._kept) <= self._most_items and self._kept_bytes <= self._most_bytes:
            return True
        self._kept.clear()
        self._latest.clear()
        self._kept_bytes = 0
        return False

    def replace(self, item: Item) -> None:
        """Telemetry or metrics: an earlier one of the same topic that still waits is dropped."""
        self._latest.pop(item.topic, None)
        self._latest[item.topic] = item

    def take(self) -> list[Item]:
        """The next frame's messages: states and events first, in order; at least one, if any waits."""
        frame: list[Item] = []
        size = 0
        while self._kept and size < FRAME_BYTES:
            item = self._kept.popleft()
            self._kept_bytes -= len(item.payload)
            frame.append(item)
            size += len(item.payload)
        for topic in [*self._latest]:
            if size >= FRAME_BYTES:
                break
            item = self._latest.pop(topic)
            frame.append(item)
            size += len(item.payload)
        return frame

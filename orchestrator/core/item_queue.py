"""The waiting items of one model.

First come, first served. What has been dispatched before and must run again goes ahead of what has
not, in the original order. Another order (round-robin between clients) replaces this class and
nothing else.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the queue needs to know of an item."""

    @property
    def sequence(self) -> int:
        """Order of arrival; no two items share one."""
        ...

    @property
    def size_bytes(self) -> int: ...


T = TypeVar("T", bound=Waiting)


def _latest_first(item: Waiting) -> int:
    return -item.sequence


class ItemQueue(Generic[T]):
    """Waiting items by sequence. Adding, taking and discarding a fresh item are O(1)."""

    __slots__ = ("_again", "_fresh", "size_bytes")

    def __init__(self) -> None:
        self._fresh: OrderedDict[int, T] = OrderedDict()
        # Latest first, so that the head is taken from the end. At most what was in flight: short.
        self._again: list[T] = []
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._fresh) + len(self._again)

    def push(self, item: T) -> None:
        """Add an item that was never dispatched; sequences only grow."""
        self._fresh[item.sequence] = item
        self.size_bytes += item.size_bytes

    def push_again(self, item: T) -> None:
        """Put back an item that was taken: ahead of all fresh ones, in the original order."""
        insort(self._again, item, key=_latest_first)
        self.size_bytes += item.size_bytes

    def head(self) -> T | None:
        """The item that `discard` or a dispatch should take next; None when empty."""
        if self._again:
            return self._again[-1]
        return next(iter(self._fresh.values()), None)

    def discard(self, item: T) -> None:
        """Take an item out, the head or any other. Raises `KeyError` when it is not here."""
        if self._fresh.pop(item.sequence, None) is None:
            index = bisect_left(self._again, -item.sequence, key=_latest_first)
            if index == len(self._again) or self._again[index] is not item:
                raise KeyError(item.sequence)
            del self._again[index]
        self.size_bytes -= item.size_bytes

    def items(self) -> list[T]:
        """All waiting items, head first."""
        return [*reversed(self._again), *self._fresh.values()]

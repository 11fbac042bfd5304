"""The waiting items of one model, shared out fairly between clients.

What has been dispatched before and must run again goes ahead of what has not, in the original order. All
others wait in one line per client, and the clients take turns: one item each, round and round. Items cost a
node about the same whatever their bytes, so turns are counted in items. A client has a line only while
something of it waits.

Where the queue is full the client with the most waiting gives way (longest queue drop: Suter, Lakshman,
Stiliadis and Choudhury, "Buffer management schemes for supporting TCP in gigabit routers with per-flow
queueing", 1999).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator


class Waiting(Protocol):
    """What the queue needs to know of an item."""

    @property
    def sequence(self) -> int:
        """Order of arrival; no two items share one."""
        ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def client(self) -> str: ...


T = TypeVar("T", bound=Waiting)


def _latest_first(item: Waiting) -> int:
    return -item.sequence


class ItemQueue(Generic[T]):
    """Waiting items. Adding, taking and discarding a fresh item are O(1)."""

    __slots__ = ("_again", "_lines", "_num_fresh", "size_bytes")

    def __init__(self) -> None:
        # Clients in order of their turns, each with its items in order of arrival.
        self._lines: OrderedDict[str, OrderedDict[int, T]] = OrderedDict()
        self._num_fresh = 0
        # Latest first, so that the head is taken from the end. At most what was in flight: short.
        self._again: list[T] = []
        self.size_bytes = 0

    def __len__(self) -> int:
        return self._num_fresh + len(self._again)

    def push(self, item: T) -> None:
        """Add an item that was never dispatched; sequences only grow."""
        line = self._lines.get(item.client)
        if line is None:
            line = self._lines[item.client] = OrderedDict()
        line[item.sequence] = item
        self._num_fresh += 1
        self.size_bytes += item.size_bytes

    def push_again(self, item: T) -> None:
        """Put back an item that was taken: ahead of all fresh ones, in the original order."""
        insort(self._again, item, key=_latest_first)
        self.size_bytes += item.size_bytes

    def head(self) -> T | None:
        """The item that is dispatched next; None when empty."""
        if self._again:
            return self._again[-1]
        for line in self._lines.values():
            return next(iter(line.values()))
        return None

    def take(self) -> T:
        """Take the head out; its client's next turn is after all others'. Raises `KeyError` when empty."""
        if self._again:
            item = self._again.pop()
        else:
            client, line = self._lines.popitem(last=False)
            item = line.popitem(last=False)[1]
            if line:
                self._lines[client] = line
            self._num_fresh -= 1
        self.size_bytes -= item.size_bytes
        return item

    def discard(self, item: T) -> None:
        """Take any item out, which is nobody's turn. Raises `KeyError` when it is not here."""
        line = self._lines.get(item.client)
        if line is not None and line.pop(item.sequence, None) is not None:
            self._num_fresh -= 1
            if not line:
                del self._lines[item.client]
        else:
            index = bisect_left(self._again, -item.sequence, key=_latest_first)
            if index == len(self._again) or self._again[index] is not item:
                raise KeyError(item.sequence)
            del self._again[index]
        self.size_bytes -= item.size_bytes

    def oldest(self) -> T | None:
        """The item that arrived first, O(clients); None when empty."""
        heads = [next(iter(line.values())) for line in self._lines.values()]
        heads += self._again[-1:]
        return min(heads, key=lambda item: item.sequence, default=None)

    def items(self) -> list[T]:
        """All waiting items: those that run again, then client by client in order of turns."""
        fresh = [item for line in self._lines.values() for item in line.values()]
        return [*reversed(self._again), *fresh]

    def make_room(
        self, client: str, num_items: int, size_bytes: int, *, max_items: int, max_bytes: int
    ) -> list[T] | None:
        """What has to give way to `num_items` of together `size_bytes` that `client` wants to add.

        The newest items of whoever has the most waiting (of items, or of bytes where those are short), as
        long as that one keeps no less than `client` will have. None when that does not make room enough;
        nothing is taken out here. What has been dispatched before gives way to nobody. O(clients), for bytes
        O(items).
        """
        excess_items = len(self) + num_items - max_items
        excess_bytes = self.size_bytes + size_bytes - max_bytes
        if excess_items <= 0 and excess_bytes <= 0:
            return []
        by_bytes = excess_bytes > 0
        wanted = self._amount(client, by_bytes=by_bytes) + (size_bytes if by_bytes else num_items)
        amounts: dict[str, int] = {}
        newest: dict[str, Iterator[T]] = {}
        leaving: list[T] = []
        for each in self._lines:
            amount = self._amount(each, by_bytes=by_bytes)
            if amount > wanted:
                amounts[each] = amount
        while excess_items > 0 or excess_bytes > 0:
            most = max(amounts, key=amounts.__getitem__, default=None)
            if most is None:
                return None
            if most not in newest:
                newest[most] = reversed(self._lines[most].values())
            item = next(newest[most])
            amounts[most] -= item.size_bytes if by_bytes else 1
            if amounts[most] < wanted:
                return None
            leaving.append(item)
            excess_items -= 1
            excess_bytes -= item.size_bytes
        return leaving

    def _amount(self, client: str, *, by_bytes: bool) -> int:
        """Of a client's fresh items: their bytes, or their number."""
        line = self._lines.get(client)
        if line is None:
            return 0
        return sum(item.size_bytes for item in line.values()) if by_bytes else len(line)

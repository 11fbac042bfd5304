"""Clients that take turns: each has a line of waiting items, and the head of the first line is next.

One item each, round and round. Items cost a node about the same whatever their bytes, so turns are counted in
items. A client has a line only while something of it waits, so those who are gone take no memory.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator


class Waiting(Protocol):
    """What a queue needs to know of an item."""

    @property
    def sequence(self) -> int:
        """Order of arrival; no two items share one."""
        ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def client(self) -> str: ...

    @property
    def priority(self) -> int:
        """One of `PRIORITIES`; higher goes first."""
        ...


T = TypeVar("T", bound=Waiting)


class ClientTurns(Generic[T]):
    """Waiting items by client. False when there are none; all but `oldest` and `items` is O(1)."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        # In order of turns, each with its items in order of arrival.
        self._lines: OrderedDict[str, OrderedDict[int, T]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._lines)

    def push(self, item: T) -> None:
        """Add an item; a client without any has its turn after all others."""
        line = self._lines.get(item.client)
        if line is None:
            line = self._lines[item.client] = OrderedDict()
        line[item.sequence] = item

    def head(self) -> T:
        """Whose turn it is. Raises `StopIteration` when nothing waits."""
        return next(iter(next(iter(self._lines.values())).values()))

    def take(self) -> T:
        """Take the head out; its client's next turn is after all others'. Raises `KeyError` when empty."""
        client, line = self._lines.popitem(last=False)
        item = line.popitem(last=False)[1]
        if line:
            self._lines[client] = line
        return item

    def discard(self, item: T) -> bool:
        """Take any item out, which is nobody's turn; whether it was here."""
        line = self._lines.get(item.client)
        if line is None or line.pop(item.sequence, None) is None:
            return False
        if not line:
            del self._lines[item.client]
        return True

    def oldest(self) -> T:
        """The item that arrived first, O(clients). Raises `ValueError` when nothing waits."""
        heads = (next(iter(line.values())) for line in self._lines.values())
        return min(heads, key=lambda item: item.sequence)

    def items(self) -> Iterator[T]:
        """All, client by client in order of turns."""
        for line in self._lines.values():
            yield from line.values()

    def clients(self) -> Iterator[str]:
        """Those that have something waiting, in order of turns."""
        return iter(self._lines)

    def count(self, client: str) -> int:
        """How many items of `client` wait."""
        line = self._lines.get(client)
        return 0 if line is None else len(line)

    def newest_first(self, client: str) -> Iterator[T]:
        """The items of `client`, the latest first."""
        line = self._lines.get(client)
        return iter(()) if line is None else reversed(line.values())

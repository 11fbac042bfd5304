"""Clients that take turns: each has a line of waiting items, and the head of the first line is next.

One item each, round and round. Items cost a node about the same whatever their bytes, so turns are counted in
items, and who has had several at once misses as many turns. A client has
a line only while something of it waits, so those who are gone take no memory.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
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
    """Waiting items by client. O(1), but for `oldest`, `items`, and discarding from the midst of a line."""

    __slots__ = ("_ahead", "_bytes", "_lines", "turns")

    def __init__(self) -> None:
        self.turns: deque[str] = deque()
        """The clients that have something waiting, the next one first."""
        self._lines: dict[str, deque[T]] = {}
        self._bytes: dict[str, int] = {}
        # Turns that a client had before they were its own.
        self._ahead: dict[str, int] = {}

    def push(self, item: T) -> None:
        """Add an item; a client without any has its turn after all others."""
        line = self._lines.get(item.client)
        if line is None:
            self._lines[item.client] = deque((item,))
            self._bytes[item.client] = item.size_bytes
            self.turns.append(item.client)
        else:
            line.append(item)
            self._bytes[item.client] += item.size_bytes

    def head(self) -> T:
        """Whose turn it is. Raises `IndexError` when nothing waits."""
        self._skip()
        return self._lines[self.turns[0]][0]

    def take(self) -> T:
        """Take the head out; its client's next turn is after all others'. Raises `IndexError` when empty."""
        self._skip()
        turns = self.turns
        client = turns[0]
        item = self._pop(client)
        if client in self._lines:
            turns.rotate(-1)
        else:
            turns.popleft()
        return item

    def next_of(self, client: str, most: int) -> list[T]:
        """What `client` has waiting first, up to `most` items."""
        return list(islice(self._lines.get(client, ()), most))

    def take_more(self, client: str, count: int) -> list[T]:
        """The next items of the client that just had its turn: it misses as many turns for them."""
        if not count:
            return []
        items = [self._pop(client) for _ in range(count)]
        if client in self._lines:
            self._ahead[client] = self._ahead.get(client, 0) + count
        else:
            self.turns.remove(client)
        return items

    def _pop(self, client: str) -> T:
        line = self._lines[client]
        item = line.popleft()
        if line:
            self._bytes[client] -= item.size_bytes
        else:
            self._forget(client)
        return item

    def _forget(self, client: str) -> None:
        """Nothing of it waits any more."""
        del self._lines[client], self._bytes[client]
        self._ahead.pop(client, None)

    def _skip(self) -> None:
        """Past those who have had the turn that is theirs now; who is alone has nobody to wait for."""
        turns = self.turns
        if len(turns) == 1:
            self._ahead.clear()
        while turns and (ahead := self._ahead.pop(turns[0], 0)):
            if ahead > 1:
                self._ahead[turns[0]] = ahead - 1
            turns.rotate(-1)

    def discard(self, item: T) -> bool:
        """Take any item out, which is nobody's turn; whether it was here."""
        line = self._lines.get(item.client)
        if line is None:
            return False
        if line[-1] is item:  # who gives way is the newest: not the long way through the line
            line.pop()
        else:
            try:
                line.remove(item)
            except ValueError:
                return False
        if line:
            self._bytes[item.client] -= item.size_bytes
        else:
            self.turns.remove(item.client)
            self._forget(item.client)
        return True

    def oldest(self) -> T:
        """The item that arrived first, O(clients). Raises `ValueError` when nothing waits."""
        return min((line[0] for line in self._lines.values()), key=lambda item: item.sequence)

    def items(self) -> Iterator[T]:
        """All, client by client in order of turns."""
        for client in self.turns:
            yield from self._lines[client]

    def count(self, client: str) -> int:
        """How many items of `client` wait."""
        return len(self._lines.get(client, ()))

    def size_bytes(self, client: str) -> int:
        """How many bytes of `client` wait."""
        return self._bytes.get(client, 0)

    def newest_first(self, client: str) -> Iterator[T]:
        """The items of `client`, the latest first."""
        line = self._lines.get(client)
        return iter(()) if line is None else reversed(line)

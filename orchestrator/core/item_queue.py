"""The waiting items of one model, by priority and, within one priority, shared out fairly between clients.

- What has been dispatched before and must run again goes ahead of what has not, in the original order.
- Of all others the highest priority goes first. Clients take turns within it (`client_turns`).
- One turn in `TURNS_FOR_LOWER` goes below the highest priority, to where an item has waited longest: what is
  unimportant is slow, and never starves. By count and not by time, since in an overload everything is old.

Where the queue is full the client with the most waiting gives way, whatever the priorities (longest queue
drop: Suter, Lakshman, Stiliadis and Choudhury, "Buffer management schemes for supporting TCP in gigabit
routers with per-flow queueing", 1999). A client that has no less than others may push out less important
items of its own.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import chain
from typing import TYPE_CHECKING, Generic

from orchestrator.core.client_turns import ClientTurns, T, Waiting
from shared.job_options import PRIORITIES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TURNS_FOR_LOWER = 8
"""While several priorities wait, one turn of so many is not the highest's."""


def _latest_first(item: Waiting) -> int:
    return -item.sequence


class ItemQueue(Generic[T]):
    """Waiting items. Adding and taking one is O(1)."""

    __slots__ = ("_again", "_high_turns", "_levels", "_num_fresh", "_present", "size_bytes")

    def __init__(self) -> None:
        self._levels: tuple[ClientTurns[T], ...] = tuple(ClientTurns() for _ in PRIORITIES)
        # The priorities at which something waits, lowest first.
        self._present: list[int] = []
        # Turns of the highest while others waited, since one of those had its turn.
        self._high_turns = 0
        self._num_fresh = 0
        # Latest first, so that the head is taken from the end. At most what was in flight: short.
        self._again: list[T] = []
        self.size_bytes = 0

    def __len__(self) -> int:
        return self._num_fresh + len(self._again)

    def push(self, item: T) -> None:
        """Add an item that was never dispatched; sequences only grow."""
        level = self._levels[item.priority]
        if not level.turns:
            insort(self._present, item.priority)
        level.push(item)
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
        return self._levels[self._next_priority()].head() if self._present else None

    def take(self) -> T:
        """Take the head out; its client's next turn is after all others'. Raises `IndexError` when empty."""
        present = self._present
        if self._again:
            item = self._again.pop()
        else:
            priority = self._next_priority()
            above_others = len(present) > 1 and priority == present[-1]
            self._high_turns = self._high_turns + 1 if above_others else 0
            level = self._levels[priority]
            item = level.take()
            self._num_fresh -= 1
            if not level.turns:
                present.remove(priority)
        self.size_bytes -= item.size_bytes
        return item

    def following(self, item: T, most: int) -> list[T]:
        """What waits of the same client and priority behind an item that was just taken, up to `most`."""
        return self._levels[item.priority].next_of(item.client, most)

    def take_following(self, item: T, count: int) -> list[T]:
        """Take the first `count` of `following`, which goes off their client's next turns."""
        level = self._levels[item.priority]
        items = level.take_more(item.client, count)
        self._num_fresh -= len(items)
        if self._high_turns:
            self._high_turns += len(items)
        if items and not level.turns:
            self._present.remove(item.priority)
        self.size_bytes -= sum(each.size_bytes for each in items)
        return items

    def discard(self, item: T) -> None:
        """Take any item out, which is nobody's turn. Raises `KeyError` when it is not here."""
        level = self._levels[item.priority]
        if level.discard(item):
            self._num_fresh -= 1
            if not level.turns:
                self._present.remove(item.priority)
        else:
            index = bisect_left(self._again, -item.sequence, key=_latest_first)
            if index == len(self._again) or self._again[index] is not item:
                raise KeyError(item.sequence)
            del self._again[index]
        self.size_bytes -= item.size_bytes

    def oldest(self) -> T | None:
        """The item that arrived first, O(clients); None when empty."""
        first = [self._levels[priority].oldest() for priority in self._present]
        return min(first + self._again[-1:], key=lambda item: item.sequence, default=None)

    def items(self) -> list[T]:
        """All waiting items: those that run again, then by priority, client by client in order of turns."""
        fresh = (self._levels[priority].items() for priority in reversed(self._present))
        return [*reversed(self._again), *chain.from_iterable(fresh)]

    def make_room(
        self,
        client: str,
        priority: int,
        num_items: int,
        size_bytes: int,
        *,
        max_items: int,
        max_bytes: int,
        instead_of: Sequence[T] = (),
    ) -> list[T] | None:
        """What has to give way to `num_items` of together `size_bytes` that `client` wants to add.

        The newest of the least important items of whoever has the most waiting (of items, or of bytes where
        those are short), as long as that one keeps no less than `client` will have; then what `client` itself
        has waiting at a lower priority. None when that does not make room enough; nothing is taken out here.
        What has been dispatched before gives way to nobody. `instead_of` are waiting items of `client` that
        leave anyhow, and are not part of the answer. O(clients).
        """
        if instead_of:
            num_items -= len(instead_of)
            size_bytes -= sum(item.size_bytes for item in instead_of)
        excess_items = len(self) + num_items - max_items
        excess_bytes = self.size_bytes + size_bytes - max_bytes
        if excess_items <= 0 and excess_bytes <= 0:
            return []
        by_bytes = excess_bytes > 0
        amounts = self._amounts(by_bytes=by_bytes)
        wanted = max(amounts.pop(client, 0) + (size_bytes if by_bytes else num_items), 1)
        amounts = {each: amount for each, amount in amounts.items() if amount > wanted}
        leaving: list[T] = []
        for item in chain(
            self._of_the_largest(amounts, wanted, by_bytes=by_bytes),
            self._least_important(client, below=priority),
        ):
            if item in instead_of:
                continue
            leaving.append(item)
            excess_items -= 1
            excess_bytes -= item.size_bytes
            if excess_items <= 0 and excess_bytes <= 0:
                return leaving
        return None

    def _of_the_largest(
        self, amounts: dict[str, int], wanted: int, *, by_bytes: bool
    ) -> Iterator[T]:
        """Item by item, always of who has most left, until that one would keep less than `wanted`."""
        leaving: dict[str, Iterator[T]] = {}
        while amounts:
            most = max(amounts, key=amounts.__getitem__)
            if most not in leaving:
                leaving[most] = self._least_important(most, below=len(PRIORITIES))
            item = next(leaving[most])
            amounts[most] -= item.size_bytes if by_bytes else 1
            if amounts[most] < wanted:
                return
            yield item

    def _least_important(self, client: str, *, below: int) -> Iterator[T]:
        """What `client` has waiting at priorities below that: the lowest first, of each the newest first."""
        for priority in self._present:
            if priority >= below:
                return
            yield from self._levels[priority].newest_first(client)

    def _amounts(self, *, by_bytes: bool) -> dict[str, int]:
        """What each client has waiting: bytes, or items."""
        amounts: dict[str, int] = {}
        for priority in self._present:
            level = self._levels[priority]
            waiting = level.size_bytes if by_bytes else level.count
            for client in level.turns:
                amounts[client] = amounts.get(client, 0) + waiting(client)
        return amounts

    def _next_priority(self) -> int:
        """Whose turn it is. Raises `IndexError` when nothing fresh waits."""
        present = self._present
        if len(present) == 1 or self._high_turns < TURNS_FOR_LOWER - 1:
            return present[-1]
        return min(present[:-1], key=lambda priority: self._levels[priority].oldest().sequence)

"""Timers of a pure core: at most one due time per key, and the shell asks when the next one is.

A heap with lazy deletion: `schedule` and `cancel` leave the old entry where it is, and it is skipped
when it comes up. So that ended jobs leave no memory behind, the heap is rebuilt when most of it is dead.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

K = TypeVar("K", bound="Hashable")

_SLACK = 64
"""Dead entries that are not worth a rebuild."""


class Timers(Generic[K]):
    """Due times by key. All operations are amortised O(log n)."""

    __slots__ = ("_heap", "_live", "_number")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._live: dict[K, tuple[float, int]] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._live)

    def schedule(self, key: K, at: float) -> None:
        """Set the key's due time (seconds); an earlier setting no longer counts."""
        self._number += 1  # breaks ties in order of scheduling, and keys are never compared
        self._live[key] = (at, self._number)
        heapq.heappush(self._heap, (at, self._number, key))
        if len(self._heap) > 2 * len(self._live) + _SLACK:
            self._rebuild()

    def due(self, key: K) -> float | None:
        """When the key is due, or None when it is not scheduled."""
        live = self._live.get(key)
        return None if live is None else live[0]

    def schedule_by(self, key: K, at: float) -> None:
        """Make sure that the key is due at `at` or earlier."""
        due = self._live.get(key)
        if due is None or at < due[0]:
            self.schedule(key, at)

    def cancel(self, key: K) -> None:
        """Forget the key's due time, if it has one."""
        if self._live.pop(key, None) is not None and (
            len(self._heap) > 2 * len(self._live) + _SLACK or not self._live
        ):
            self._rebuild()

    def next_at(self) -> float | None:
        """The earliest due time, or None when nothing is scheduled."""
        heap, live = self._heap, self._live
        while heap:
            at, number, key = heap[0]
            if live.get(key) == (at, number):
                return at
            heapq.heappop(heap)
        return None

    def pop_due(self, now: float) -> list[K]:
        """Remove and return the keys due at `now`, in order of due time."""
        due: list[K] = []
        while True:
            at = self.next_at()
            if at is None or at > now:
                return due
            key = heapq.heappop(self._heap)[2]
            del self._live[key]
            due.append(key)

    def _rebuild(self) -> None:
        self._heap = [(at, number, key) for key, (at, number) in self._live.items()]
        heapq.heapify(self._heap)

"""The answers of the last minutes, so that a repeated job gets its first answer again.

Bounded three ways: age, number and bytes. What is pushed out by a bound is the oldest, and a repeat of
it simply runs again.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

A = TypeVar("A")


class RecentAnswers(Generic[A]):
    """Answers by job key. Entries live equally long, so the oldest is also the first to expire."""

    __slots__ = ("_entries", "_keep_s", "_max_bytes", "_max_entries", "size_bytes")

    def __init__(self, *, keep_s: float, max_entries: int, max_bytes: int) -> None:
        self._keep_s = keep_s
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, tuple[A, int, float]] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def remember(self, key: Hashable, answer: A, size_bytes: int, now: float) -> None:
        """Keep an answer of `size_bytes` (its outputs; the frame around them is not counted)."""
        self.forget(key)
        self._entries[key] = (answer, size_bytes, now + self._keep_s)
        self.size_bytes += size_bytes
        self.expire(now)
        while len(self._entries) > self._max_entries or self.size_bytes > self._max_bytes:
            self.forget(next(iter(self._entries)))

    def get(self, key: Hashable, now: float) -> A | None:
        """The answer given less than `keep_s` ago, or None."""
        entry = self._entries.get(key)
        return entry[0] if entry is not None and now < entry[2] else None

    def forget(self, key: Hashable) -> None:
        """Drop the key's answer, if there is one."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size_bytes -= entry[1]

    def expire(self, now: float) -> None:
        """Drop what is too old."""
        while self._entries:
            key, (_, _, expires_at) = next(iter(self._entries.items()))
            if now < expires_at:
                return
            self.forget(key)

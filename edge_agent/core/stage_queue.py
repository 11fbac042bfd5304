"""The items that wait on a node: whose turn it is, between models and within one.

Models share the node's time evenly, in seconds of computing: the one that has had least of those that have
something waiting goes next. That is deficit round robin (Shreedhar and Varghese, 1996) for a server that
learns what an item costs only when it has run: a model that others keep waiting is at most the longest item
behind its share. A model that had nothing to do for a while does not get that time back: it begins level with
the one that is served (start-time fair queueing, Goyal, Vin and Cheng, 1997).

Within a model the highest priority goes first, but for one turn in `TURNS_FOR_OLDEST`, which is the oldest
item's, so that nothing starves; the dispatcher does likewise with what waits there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

TURNS_FOR_OLDEST = 8
"""While more important items pass older ones, one turn of so many is the oldest's."""


@dataclass(slots=True)
class _Line(Generic[T]):
    """What waits of one model, in order of arrival: (priority, item)."""

    waiting: list[tuple[int, T]] = field(default_factory=list)
    passed: int = 0
    """Turns since the oldest item had one."""

    def take(self) -> T:
        # Short: the dispatcher's credits bound it. The first of the highest, since `max` takes the first.
        at = max(range(len(self.waiting)), key=lambda index: self.waiting[index][0])
        if at and self.passed >= TURNS_FOR_OLDEST - 1:
            at = 0
        self.passed = self.passed + 1 if at else 0
        return self.waiting.pop(at)[1]


class StageQueue(Generic[T]):
    """Items by model. After `take`, say with `charge` what the item cost.

    Adding one is O(1) once its model waits, taking one O(models + what waits of the model).
    """

    __slots__ = ("_len", "_level_s", "_lines", "_used_s")

    def __init__(self) -> None:
        self._lines: dict[str, _Line[T]] = {}
        # Seconds that each model has had, from a common beginning; who waits or is ahead of the others only.
        self._used_s: dict[str, float] = {}
        # What the model that was served last had had by then: where a newcomer begins.
        self._level_s = 0.0
        self._len = 0

    def __len__(self) -> int:
        return self._len

    def push(self, model: str, priority: int, item: T) -> None:
        """Add an item; the higher `priority`, the more important."""
        line = self._lines.get(model)
        if line is None:
            line = self._lines[model] = _Line()
            self._used_s[model] = max(self._used_s.get(model, 0.0), self._level_s)
        line.waiting.append((priority, item))
        self._len += 1

    def take(self) -> T:
        """The next item. Raises `ValueError` when nothing waits."""
        model = min(self._lines, key=lambda name: (self._used_s[name], name))
        self._level_s = self._used_s[model]
        line = self._lines[model]
        item = line.take()
        if not line.waiting:
            del self._lines[model]
        self._len -= 1
        return item

    def charge(self, model: str, seconds: float) -> None:
        """An item of `model` took that long."""
        self._used_s[model] = max(self._used_s.get(model, 0.0), self._level_s) + seconds
        for name in [name for name in self._used_s if name not in self._lines]:
            if self._used_s[name] <= self._level_s:
                del self._used_s[name]  # a newcomer would begin there as well

    def clear(self) -> list[T]:
        """Take everything out; what each model has had stays."""
        items = [item for line in self._lines.values() for _, item in line.waiting]
        self._lines.clear()
        self._len = 0
        return items

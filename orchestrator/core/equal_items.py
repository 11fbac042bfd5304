"""Of equal inputs that are there at once, one is run: which open items those are.

Equal items wait in the model's queue as all others do, so that neither priorities nor turns change. One whose
turn comes while another is in flight is held: it takes no credit, and ends as that one ends. Where that one
ends for a reason of its own (its deadline, a newer frame of its client), those held for it wait again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.core.dispatch_state import Item
    from orchestrator.core.result_cache import CacheKey


class EqualItems:
    """The open items of one model that have a key, by key."""

    __slots__ = ("_groups", "held_bytes", "num_held")

    def __init__(self) -> None:
        self._groups: dict[CacheKey, _Group] = {}
        self.num_held = 0
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, key: CacheKey, item: Item) -> None:
        """It waits in the queue."""
        self._groups.setdefault(key, _Group()).waiting[item] = None

    def remove(self, key: CacheKey, item: Item) -> None:
        """It has ended, or shares no more."""
        group = self._groups[key]
        for items in (group.waiting, group.flying):
            items.pop(item, None)
        if item in group.held:
            self._drop_held(group, item)
        if not (group.waiting or group.flying or group.held):
            del self._groups[key]

    def is_flying(self, key: CacheKey) -> bool:
        """Whether an equal item is in flight."""
        return bool(self._groups[key].flying)

    def fly(self, key: CacheKey, item: Item) -> None:
        """It was in the queue, and is in flight."""
        group = self._groups[key]
        del group.waiting[item]
        group.flying[item] = None

    def hold(self, key: CacheKey, item: Item) -> None:
        """It was in the queue, and is held while an equal one is in flight."""
        group = self._groups[key]
        del group.waiting[item]
        group.held[item] = None
        self.num_held += 1
        self.held_bytes += item.size_bytes

    def land(self, key: CacheKey, item: Item) -> None:
        """It was in flight, and is in the queue again."""
        group = self._groups[key]
        del group.flying[item]
        group.waiting[item] = None

    def release(self, key: CacheKey) -> list[Item]:
        """Those that were held for one in flight, where none is any more; they count as in the queue."""
        group = self._groups.get(key)
        if group is None or group.flying:
            return []
        released = list(group.held)
        for item in released:
            self._drop_held(group, item)
            group.waiting[item] = None
        return released

    def others(self, key: CacheKey) -> list[Item]:
        """The equal items that are not in flight."""
        group = self._groups.get(key)
        return [] if group is None else [*group.held, *group.waiting]

    def _drop_held(self, group: _Group, item: Item) -> None:
        del group.held[item]
        self.num_held -= 1
        self.held_bytes -= item.size_bytes


class _Group:
    """Items with one key: in the queue, in flight, and held; each in order of coming there."""

    __slots__ = ("flying", "held", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[Item, None] = {}
        self.flying: dict[Item, None] = {}
        self.held: dict[Item, None] = {}

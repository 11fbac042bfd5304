"""How large the jobs are that a model really gets: a camera's frames are not the photograph of its profile.

On a thin link the input may be what limits every plan, and then no cut looks better than another. So plans go
by the sizes that come, once enough have come and they differ by enough to matter.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from shared.profile import ModelProfile

MANY = 50
"""Items that are believed to be like those to come."""
_NEW_WEIGHT = 0.5
_MATTERS_RATIO = 0.2
"""A mean that is off by less from what plans go by changes nothing."""


@dataclass(slots=True)
class InputsSeen:
    """One model's. `planned_bytes` is what plans go by; None: the size in its profile."""

    planned_bytes: int | None = None
    _mean_bytes: float | None = None
    _items: int = 0
    _bytes: int = 0
    _made: dict[int, tuple[ModelProfile, ModelProfile]] = field(default_factory=dict)

    def counted(self, items: int, size_bytes: int, profile_bytes: int) -> None:
        """So many items, of so many bytes in all, were sent to first stages since the model is known.

        Totals that are less than before are of another dispatcher, or of a model that is known anew.
        """
        if items < self._items or size_bytes < self._bytes:
            self._items = self._bytes = 0
        new = items - self._items
        if new < MANY:
            return
        mean = (size_bytes - self._bytes) / new
        self._items, self._bytes = items, size_bytes
        before = self._mean_bytes
        self._mean_bytes = mean if before is None else before + _NEW_WEIGHT * (mean - before)
        planned = profile_bytes if self.planned_bytes is None else self.planned_bytes
        if abs(self._mean_bytes - planned) > _MATTERS_RATIO * planned:
            self.planned_bytes = max(round(self._mean_bytes), 1)
            self._made.clear()

    def forget(self) -> bool:
        """Go by the profile until further jobs come; whether plans went by another size before."""
        seen, self.planned_bytes, self._mean_bytes = self.planned_bytes, None, None
        self._made.clear()
        return seen is not None

    def profile(self, profile: ModelProfile) -> ModelProfile:
        """A profile of the model, with jobs of the size that comes."""
        if self.planned_bytes is None:
            return profile
        known = self._made.get(id(profile))
        if known is None or known[0] is not profile:
            made = dataclasses.replace(profile, input_bytes=self.planned_bytes)
            known = self._made[id(profile)] = (profile, made)
        return known[1]

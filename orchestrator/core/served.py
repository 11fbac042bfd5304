"""One model that is served, or is to be: its generations, and who waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.generation import Generation
from orchestrator.core.plan import Plan


@dataclass(frozen=True, slots=True)
class Waiting:
    """Somebody who asked for the model and waits until `deadline`."""

    transaction: str
    verb: str
    deadline: float


@dataclass(slots=True)
class Served:
    """A model's record.

    At most one generation is active and one pending (loading). `held` waits until an old one has
    made room (break before make). `short` says that the plan has fewer stages than were asked for,
    `dirty` that the cluster changed while a generation was loading.
    """

    entry: ModelEntry
    asked: float
    state: Literal["serving", "loading", "unserved", "failed"] = "unserved"
    reason: str = ""
    active: Generation | None = None
    pending: Generation | None = None
    held: Generation | None = None
    draining: list[Generation] = field(default_factory=list)
    served_before: bool = False
    short: bool = False
    dirty: bool = False
    switched: float = float("-inf")
    considered: float = float("-inf")
    blocked: dict[str, float] = field(default_factory=dict)
    """Nodes that failed to load it, and until when they are left out."""
    waiting: list[Waiting] = field(default_factory=list)
    chosen: Plan | None = None
    """The planner's latest answer, for its alternatives; the plan in force is the active one's."""
    free_choice: Plan | None = None
    measured: dict[tuple[int, int], float] = field(default_factory=dict)
    """Of the active generation: seconds per item by (pipeline index, stage)."""

    @property
    def name(self) -> str:
        return self.entry.name

    def generations(self) -> Iterator[Generation]:
        """Every generation whose stages nodes shall hold now; one that is held back is not."""
        yield from self.draining
        if self.active is not None:
            yield self.active
        if self.pending is not None:
            yield self.pending

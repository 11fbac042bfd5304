"""What the dispatcher shows of itself: counters that only grow, and the present load."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.core.micro_batch import MicroBatchLoad
    from orchestrator.core.result_cache import CacheLoad
    from orchestrator.core.selection import Decision
    from shared.errors import ErrorCode


@dataclass(slots=True)
class Counters:
    """Since the start. `accepted == answered + failed (all codes) + live` at any time."""

    accepted: int = 0
    answered: int = 0
    """Requests answered with every output."""
    failed: dict[ErrorCode, int] = field(default_factory=dict)
    """Accepted requests answered with an error, by its code."""
    rejected: dict[ErrorCode, int] = field(default_factory=dict)
    """Requests refused on arrival, by code."""
    dispatched: int = 0
    """Items sent, all attempts."""
    retried: int = 0
    """Items queued again after a failure or a timeout."""
    recovered: int = 0
    """Items queued again after a lost pipeline or a reconnection of the bus."""
    poisoned: int = 0
    """Items given up because nodes died of them."""
    repeats: int = 0
    """Repeats of a job in work."""
    redelivered: int = 0
    """Redeliveries of a message in work."""
    answered_again: int = 0
    """Repeats of an answered job."""
    duplicate_results: int = 0
    """Results for an item that had ended or, failed, for an attempt given up."""
    unknown_results: int = 0
    """Results for no live request or for an attempt never made."""
    stray_events: int = 0
    """Pipelines activated for a model that is not served."""

    def copy(self) -> Counters:
        return Counters(
            self.accepted,
            self.answered,
            dict(self.failed),
            dict(self.rejected),
            self.dispatched,
            self.retried,
            self.recovered,
            self.poisoned,
            self.repeats,
            self.redelivered,
            self.answered_again,
            self.duplicate_results,
            self.unknown_results,
            self.stray_events,
        )


@dataclass(frozen=True, slots=True)
class PipelineLoad:
    """One pipeline's load. Measured figures are None before the first output."""

    pipeline: str
    generation: int
    draining: bool
    in_flight: int
    window: int
    faults_in_row: int
    flight_s: float | None
    rate_per_s: float | None
    slowness: float
    """Measured flights over predicted ones; 1.0 before the first."""
    micro_batch: MicroBatchLoad
    """How many items of a batch travel in one message, and why."""


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """One model's load."""

    model: str
    served: bool
    live_requests: int
    queued_items: int
    queued_bytes: int
    sent_items: int
    """To first stages, all attempts, since the model is known; and their bytes."""
    sent_bytes: int
    pipelines: tuple[PipelineLoad, ...]
    decision: Decision | None
    """Where an item went and why: the latest that was explained, one a second at most."""
    cache: CacheLoad | None = None
    """None where its answers are not kept."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The dispatcher at one moment; nothing in it changes later."""

    counters: Counters
    models: tuple[ModelLoad, ...]
    live_requests: int
    remembered_answers: int
    remembered_bytes: int

"""The dispatcher's records: items, requests, pipelines, models.

Mutable on purpose and private to `Dispatcher`: a job's way through must not copy the state of all
others. Identity is equality.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from orchestrator.core.dispatch_events import Answer, EndedItem
from orchestrator.core.dispatch_stats import ModelLoad, PipelineLoad
from orchestrator.core.item_queue import ItemQueue

if TYPE_CHECKING:
    from collections.abc import Hashable

    from orchestrator.core.dispatch_events import Outcome, PipelineActivated, RequestArrived

_GAIN = 0.1
"""Weight of the newest sample in a moving estimate: about the last ten count."""


class ItemState(Enum):
    """See the table in `orchestrator.core.dispatch`."""

    QUEUED = auto()
    IN_FLIGHT = auto()
    ENDED = auto()


@dataclass(slots=True, eq=False)
class Flight:
    """One attempt at an item."""

    pipeline: Pipeline
    dispatched_at: float
    queue_s: float
    """All that the item had waited in the queue before it."""


@dataclass(slots=True, eq=False)
class Item:
    """One input on its way."""

    request: Request
    index: int
    sequence: int
    payload: object
    size_bytes: int
    queued_at: float
    state: ItemState = ItemState.QUEUED
    flights: list[Flight] = field(default_factory=list)
    """All attempts so far; the last one is current while the item is in flight."""
    faults: int = 0
    """Attempts that failed or timed out."""
    losses: int = 0
    """Attempts that were lost with their pipeline."""
    queue_s: float = 0.0
    retry_at: float = 0.0
    suspected: bool = False
    """The broker may have lost it: trying again at `retry_at` is nobody's fault."""
    ended: EndedItem | None = None

    def flight(self, attempt: int, pipeline: str, generation: int) -> Flight | None:
        """That attempt, if it was made and there."""
        if not 1 <= attempt <= len(self.flights):
            return None
        flight = self.flights[attempt - 1]
        went_to = flight.pipeline
        return flight if (went_to.pipeline, went_to.generation) == (pipeline, generation) else None

    def end(self, outcome: Outcome, flight: Flight | None, now: float) -> None:
        if flight is not None:
            # an earlier attempt may win while the item waits for, or is in, a later one
            self.queue_s = flight.queue_s
        elif self.state is ItemState.QUEUED:
            self.queue_s += now - self.queued_at
        self.state = ItemState.ENDED
        self.ended = EndedItem(
            outcome=outcome,
            pipeline=flight.pipeline.pipeline if flight else None,
            generation=flight.pipeline.generation if flight else None,
            attempts=len(self.flights),
            queue_s=self.queue_s,
            flight_s=now - flight.dispatched_at if flight else 0.0,
            latency_s=now - self.request.arrived_at,
        )
        self.payload = None  # the rest of a batch must not keep it
        self.flights.clear()


class Request:
    """One accepted request, from arrival to answer."""

    __slots__ = (
        "arrived_at",
        "context",
        "deadline",
        "handles",
        "items",
        "job",
        "key",
        "model",
        "open_items",
        "reply_to",
        "request_id",
    )

    def __init__(self, event: RequestArrived, model: Model) -> None:
        self.request_id = event.request_id
        self.model = model
        self.reply_to = event.reply_to
        self.job = event.job
        # what makes two requests the same job
        self.key = None if event.job is None else (event.reply_to, event.job)
        self.context = event.context
        self.arrived_at = event.now
        self.deadline = event.deadline
        # what to acknowledge with the answer, by delivery
        self.handles: dict[Hashable, object] = {}
        self.items: list[Item] = []
        self.open_items = len(event.items)

    def answer(self, now: float) -> Answer:
        """The answer, once all items have ended; lets go of the items."""
        answer = Answer(
            request_id=self.request_id,
            model=self.model.name,
            reply_to=self.reply_to,
            job=self.job,
            context=self.context,
            items=tuple(item.ended for item in self.items if item.ended is not None),
            latency_s=now - self.arrived_at,
            handles=tuple(self.handles.values()),
        )
        self.items.clear()  # they point back here: no cycle may keep memory until a collection
        return answer


@dataclass(slots=True, eq=False)
class Pipeline:
    """One generation of a pipeline. Satisfies `selection.Candidate`."""

    model: Model
    pipeline: str
    generation: int
    window: int
    throughput_per_s: float
    latency_s: float
    draining: bool = False
    in_flight: dict[Item, None] = field(default_factory=dict)
    faults_in_row: int = 0
    busy_since: float = 0.0
    output_at: float = 0.0
    flight_s: float | None = None
    """Measured, moving: dispatch to output."""
    interval_s: float | None = None
    """Measured, moving: output to output while there was work."""

    @property
    def outstanding(self) -> int:
        return len(self.in_flight)

    def update(self, event: PipelineActivated, window: int) -> None:
        self.window = window
        self.throughput_per_s = event.throughput_per_s
        self.latency_s = event.latency_s
        self.draining = False

    def expected_flight_s(self) -> float:
        """With a full window, from dispatch to result: its own way and its turn behind the others."""
        predicted_s = self.latency_s + self.window / self.throughput_per_s
        return predicted_s if self.flight_s is None else max(predicted_s, self.flight_s)

    def usual_flight_s(self) -> float:
        return self.expected_flight_s() if self.flight_s is None else self.flight_s

    def take(self, item: Item, now: float) -> None:
        if not self.in_flight:
            self.busy_since = now
        self.in_flight[item] = None

    def measure(self, flight_s: float, now: float) -> None:
        """An output came; the item is still counted as in flight."""
        self.faults_in_row = 0
        interval_s = now - max(self.output_at, self.busy_since)
        self.output_at = now
        self.flight_s = _moved(self.flight_s, flight_s)
        self.interval_s = _moved(self.interval_s, interval_s)

    def load(self) -> PipelineLoad:
        return PipelineLoad(
            pipeline=self.pipeline,
            generation=self.generation,
            draining=self.draining,
            in_flight=len(self.in_flight),
            window=self.window,
            faults_in_row=self.faults_in_row,
            flight_s=self.flight_s,
            rate_per_s=self.rate_per_s,
        )

    @property
    def rate_per_s(self) -> float | None:
        """Measured items per second; at a low load less than it could do."""
        return 1.0 / self.interval_s if self.interval_s else None


@dataclass(slots=True, eq=False)
class Model:
    """A model that is served, or was and still has something to finish."""

    name: str
    unserved_since: float
    served: bool = True
    queue: ItemQueue[Item] = field(default_factory=ItemQueue)
    pipelines: dict[tuple[str, int], Pipeline] = field(default_factory=dict)
    """In order of activation."""
    num_draining: int = 0
    live_requests: int = 0

    @property
    def has_active(self) -> bool:
        return len(self.pipelines) > self.num_draining

    def ready(self) -> list[Pipeline]:
        """Active pipelines with a free credit."""
        return [
            pipeline
            for pipeline in self.pipelines.values()
            if len(pipeline.in_flight) < pipeline.window and not pipeline.draining
        ]

    def rate_per_s(self) -> float:
        """Items per second that its active pipelines do, as measured, else as predicted."""
        return sum(
            pipeline.rate_per_s or pipeline.throughput_per_s
            for pipeline in self.pipelines.values()
            if not pipeline.draining
        )

    def load(self) -> ModelLoad:
        return ModelLoad(
            model=self.name,
            served=self.served,
            live_requests=self.live_requests,
            queued_items=len(self.queue),
            queued_bytes=self.queue.size_bytes,
            pipelines=tuple(pipeline.load() for pipeline in self.pipelines.values()),
        )


def _moved(estimate: float | None, sample: float) -> float:
    return sample if estimate is None else estimate + _GAIN * (sample - estimate)

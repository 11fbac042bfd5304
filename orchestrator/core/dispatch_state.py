"""The dispatcher's records of jobs: items and requests (those of pipelines and models: `dispatch_lineup`).

Mutable on purpose and private to `Dispatcher`: a job's way through must not copy the state of all
others. Identity is equality.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TYPE_CHECKING

from orchestrator.core.dispatch_events import Answer, EndedItem

if TYPE_CHECKING:
    from collections.abc import Hashable

    from orchestrator.core.dispatch_events import Outcome, RequestArrived
    from orchestrator.core.dispatch_lineup import Model, Pipeline
    from orchestrator.core.result_cache import Cached, CacheKey


class ItemState(Enum):
    """See the table in `orchestrator.core.item_flow`."""

    QUEUED = auto()
    HELD = auto()
    IN_FLIGHT = auto()
    ENDED = auto()


@dataclass(slots=True, eq=False)
class Group:
    """The attempts that travel in one message: it takes one credit, until `under_way` is none of them."""

    size: int
    under_way: int
    measured: bool = False
    """Whether an output of it came; the others come with it."""


@dataclass(slots=True, eq=False)
class Flight:
    """One attempt at an item."""

    pipeline: Pipeline
    group: Group
    dispatched_at: float
    queue_s: float
    """All that the item had waited in the queue before it."""
    predicted_s: float
    """By the plan alone, given what was in flight before it."""
    planned_at: float
    """When it should be done, were the last output before it on time; see `Pipeline.late_s`."""
    node: str | None = None
    """Who computes it now, of an item that is watched; None between two nodes."""


@dataclass(slots=True, eq=False)
class Item:
    """One input on its way."""

    request: Request
    index: int
    sequence: int
    payload: object
    size_bytes: int
    client: str
    priority: int
    queued_at: float
    key: CacheKey | None = None
    """Of inputs with the same answer; None where it is not shared."""
    state: ItemState = ItemState.QUEUED
    flights: list[Flight] = field(default_factory=list)
    """All attempts so far; the last one is current while the item is in flight."""
    faults: int = 0
    """Attempts that failed or timed out."""
    losses: int = 0
    """Attempts that were lost with their pipeline."""
    crashes: tuple[str, ...] = ()
    """The nodes that may have died of it. From the first on it is watched."""
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
        elif self.state is not ItemState.IN_FLIGHT:
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

    def end_as(self, equal: Cached, now: float) -> None:
        """It ends with the output of an equal input."""
        self.end(equal.output, None, now)
        assert self.ended is not None
        self.ended = replace(
            self.ended, pipeline=equal.pipeline, generation=equal.generation, cached=True
        )


class Request:
    """One accepted request, from arrival to answer."""

    __slots__ = (
        "arrived_at",
        "client",
        "context",
        "deadline",
        "handles",
        "items",
        "job",
        "key",
        "latest",
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
        self.client = event.client
        self.latest = event.latest
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

"""The dispatcher's records of pipelines and models: who may take jobs, and what is known of each.

Mutable on purpose and private to `Dispatcher`, as the records of jobs are (`dispatch_state`).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.core.board import Board, Standing
from orchestrator.core.dispatch_state import Flight, Group, Item, ItemState
from orchestrator.core.dispatch_stats import ModelLoad, PipelineLoad
from orchestrator.core.equal_items import EqualItems
from orchestrator.core.item_queue import ItemQueue
from orchestrator.core.micro_batch import ALONE, MicroBatch
from orchestrator.core.nsa import HISTORY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.core.dispatch_events import InputItem, PipelineActivated, RequestArrived
    from orchestrator.core.dispatch_state import Request
    from orchestrator.core.result_cache import CacheKey, ResultCache
    from orchestrator.core.selection import Decision

_GAIN = 0.1
"""Weight of the newest sample in a moving estimate: about the last ten count."""
_SLOWNESS_GAIN = 0.2
"""Of `slowness`: jobs go by it, so it follows a change within a window's worth of samples."""
_SLOWNESS_BOUNDS = (0.05, 100.0)
"""A plan that is off by more than this says nothing."""


@dataclass(slots=True, eq=False)
class Pipeline:
    """One generation of a pipeline. Satisfies `board.Candidate`; its `row` there is -1 while it has none."""

    model: Model
    pipeline: str
    generation: int
    window: int
    throughput_per_s: float
    latency_s: float
    chosen_turn: int
    identity: str = ""
    """Of the cache keys whose answers it makes."""
    draining: bool = False
    micro_batch: MicroBatch = field(default_factory=lambda: MicroBatch(ALONE))
    in_flight: dict[Item, None] = field(default_factory=dict)
    """In order of dispatch."""
    outstanding: int = 0
    """Messages in flight: each takes one credit, whatever is in it."""
    given_up: dict[Item, None] = field(default_factory=dict)
    """Items that run elsewhere since no result came, though a stage may still have them."""
    faults_in_row: int = 0
    busy_since: float = 0.0
    output_at: float = 0.0
    flight_s: float | None = None
    """Measured, moving: dispatch to output."""
    interval_s: float | None = None
    """Measured, moving: output to output while there was work."""
    slowness: float = 1.0
    """Measured, moving: flights over what the plan predicted of them."""
    late_s: float = 0.0
    """How much later than planned the last output came; what is behind it comes that much later, too."""
    executions_s: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    standing: Standing = field(default_factory=Standing)
    row: int = -1

    @property
    def due_at(self) -> float:
        """When the item that was dispatched first should be done."""
        first = next(iter(self.in_flight), None)
        return math.inf if first is None else first.flights[-1].planned_at + self.late_s

    @property
    def last_due_at(self) -> float:
        """When the item that was dispatched last should be done."""
        last = next(reversed(self.in_flight), None)
        return -math.inf if last is None else last.flights[-1].planned_at + self.late_s

    @property
    def mean_execution_s(self) -> float | None:
        executions_s = self.executions_s
        return sum(executions_s) / len(executions_s) if executions_s else None

    def update(self, event: PipelineActivated, window: int) -> None:
        self.window = window
        self.throughput_per_s = event.throughput_per_s
        self.latency_s = event.latency_s
        self.identity = event.identity
        self.draining = False
        if self.micro_batch.limits != event.micro_batch:
            self.micro_batch = MicroBatch(event.micro_batch)

    def expected_flight_s(self, size: int = 1) -> float:
        """With a full window, from dispatch to result: its own way and its turn behind the others."""
        ahead = max(self.window, len(self.in_flight))
        predicted_s = self.micro_batch.span_s(size, self.latency_s) + ahead / self.throughput_per_s
        return predicted_s if self.flight_s is None else max(predicted_s, self.flight_s)

    def usual_flight_s(self) -> float:
        return self.expected_flight_s() if self.flight_s is None else self.flight_s

    def take(self, items: Sequence[Item], turn: int, now: float) -> None:
        """Dispatch items here, in one message."""
        before_s = 0.0
        if self.in_flight:
            # As in `selection.ShortestCompletion`; the part that is the plan's is kept to learn from.
            overdue_s = max(now - self.due_at, 0.0)
            before_s = max(self.last_due_at + overdue_s - now, 0.0)
        else:
            self.busy_since = now
        size = len(items)
        predicted_s = max(
            self.micro_batch.span_s(size, self.latency_s),
            before_s / self.slowness + size / self.throughput_per_s,
        )
        planned_at = now + self.slowness * predicted_s - self.late_s
        group = Group(size, size)
        self.outstanding += 1
        for item in items:
            item.flights.append(Flight(self, group, now, item.queue_s, predicted_s, planned_at))
            self.in_flight[item] = None
        self.chosen_turn = turn
        self.post()

    def release(self, item: Item) -> None:
        """The item is not in flight here any more."""
        del self.in_flight[item]
        group = item.flights[-1].group
        group.under_way -= 1
        if not group.under_way:
            self.outstanding -= 1
        self.post()

    def faulted(self) -> None:
        """An attempt failed or timed out; the item is still counted as in flight."""
        self.faults_in_row += 1

    def gave_output(self) -> None:
        """It does work, whichever attempt it was."""
        if self.faults_in_row:
            self.faults_in_row = 0
            self.post()

    def measure(self, flight: Flight, now: float) -> None:
        """The output of a current attempt came; the item is still counted as in flight.

        Of items that travel together the first one tells.
        """
        if flight.group.measured:
            return
        flight.group.measured = True
        flight_s = now - flight.dispatched_at
        interval_s = (now - max(self.output_at, self.busy_since)) / flight.group.size
        self.output_at = now
        self.flight_s = _moved(self.flight_s, flight_s)
        self.interval_s = _moved(self.interval_s, interval_s)
        self.late_s = now - flight.planned_at
        low, high = _SLOWNESS_BOUNDS
        sample = min(max(flight_s / flight.predicted_s, low), high)
        self.slowness += _SLOWNESS_GAIN * (sample - self.slowness)
        self.executions_s.append(flight_s)

    def stand(self, standing: Standing) -> None:
        """Telemetry of its nodes came."""
        self.standing = standing
        board = self.model.board
        if board is not None and self.row >= 0:
            board.post_standing(self.row, standing)

    def post(self) -> None:
        """Show on the board what changed."""
        board = self.model.board
        if board is not None and self.row >= 0:
            board.post(self.row, self)

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
            slowness=self.slowness,
            micro_batch=self.micro_batch.load(),
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
    num_draining: int = 0
    live_requests: int = 0
    frames: dict[str, Request] = field(default_factory=dict)
    """By client, the newest request of which only the newest is to wait; until it is answered."""
    cache: ResultCache | None = None
    """None where answers are not kept."""
    equals: EqualItems = field(default_factory=EqualItems)
    turns: int = 0
    """Messages dispatched."""
    sent_items: int = 0
    sent_bytes: int = 0
    decision: Decision | None = None
    """The latest that was explained."""
    board: Board | None = None
    """Of `lineup`; None until it is needed."""
    _lineup: list[Pipeline] | None = None

    @property
    def has_active(self) -> bool:
        return len(self.pipelines) > self.num_draining

    def superseded_by(self, event: RequestArrived) -> Sequence[Item]:
        """What waits of the client's older frame, where the request is one."""
        before = self.frames.get(event.client) if event.latest else None
        if before is None:
            return ()
        return [item for item in before.items if item.state is ItemState.QUEUED]

    def key_of(self, given: InputItem) -> CacheKey | None:
        """The key of an input, where the model's answers are kept under such keys."""
        key, cache = given.key, self.cache
        return (
            key if cache is not None and key and key.identity == cache.settings.identity else None
        )

    def lineup(self) -> list[Pipeline]:
        """The active pipelines in order of (pipeline, generation): the rows of the board."""
        if self._lineup is None:
            keys = sorted(key for key, each in self.pipelines.items() if not each.draining)
            self._lineup = [self.pipelines[key] for key in keys]
        return self._lineup

    def candidates(self) -> Board:
        """The board, made anew when pipelines came, went or changed."""
        if self.board is None:
            lineup = self.lineup()
            self.board = Board(lineup)
            for row, pipeline in enumerate(lineup):
                pipeline.row = row
        return self.board

    def lineup_changed(self) -> None:
        """To be called after any change of `pipelines`, or of the plan's figures of one."""
        for pipeline in self._lineup or ():
            pipeline.row = -1
        self._lineup = self.board = None

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
            sent_items=self.sent_items,
            sent_bytes=self.sent_bytes,
            pipelines=tuple(pipeline.load() for pipeline in self.pipelines.values()),
            decision=self.decision,
            cache=None if self.cache is None else self.cache.load(),
        )


def _moved(estimate: float | None, sample: float) -> float:
    return sample if estimate is None else estimate + _GAIN * (sample - estimate)

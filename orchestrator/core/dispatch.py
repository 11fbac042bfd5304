"""What happens to every inference job: `Dispatcher.step(event) -> actions`.

The life of an item (a request is one or several; its answer leaves when the last one has ended):

=========  ==========================================  =========  =====================================
state      what happens                                next       action
=========  ==========================================  =========  =====================================
(none)     request arrives, is refused                 (none)     Reject
(none)     repeat of a job in work                     (none)     its handle joins the Answer's
(none)     repeat of an answered job                   (none)     AnswerAgain
(none)     redelivery of a message in work             (none)     its handle replaces the old one
(none)     request arrives, is accepted                queued
queued     an active pipeline has a credit             in flight  Dispatch, attempt + 1
queued     output of an earlier attempt                ended
queued     final failure of an earlier attempt         ended
queued     deadline; unserved too long; model stopped  ended
in flight  output or final failure, of any attempt     ended
in flight  retryable failure of this attempt, timeout  queued     (ended after `max_attempts` of them)
in flight  pipeline lost                               queued     (ended after `max_losses` of them)
in flight  no result soon after a bus reconnection     queued
in flight  deadline                                    ended
ended      any result                                  ended      (counted and dropped)
ended      was the request's last open item            (none)     Answer
=========  ==========================================  =========  =====================================

Rules that hold throughout
- Items are dispatched in order of arrival, those that run again ahead of those that never ran.
- The first outcome of an item wins, whichever attempt it is of: answers are exact, so all are equal.
- A request's message is acknowledged with its answer and not before, so that a broker redelivers what a
  killed orchestrator had not answered.
- An item given up by a pipeline (timeout, deadline) frees its credit at once, though a slow stage may
  still have it: a pipeline that lost an item must not lose the credit with it.
- Only accepted requests are remembered: who was rejected may come back with the same job.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, assert_never

from orchestrator.core.admission import refusal
from orchestrator.core.dispatch_events import (
    Action,
    BusReconnected,
    Dispatch,
    Event,
    Failure,
    ModelServed,
    ModelStopped,
    Outcome,
    PipelineActivated,
    PipelineDrained,
    PipelineDraining,
    PipelineLost,
    Reject,
    RequestArrived,
    ResultArrived,
    Tick,
)
from orchestrator.core.dispatch_settings import DispatchSettings, default_window
from orchestrator.core.dispatch_state import Flight, Item, ItemState, Model, Pipeline, Request
from orchestrator.core.dispatch_stats import Counters, Snapshot
from orchestrator.core.job_failures import (
    deadline_passed,
    model_stopped,
    overdue,
    pipelines_lost,
    unserved,
)
from orchestrator.core.request_book import RequestBook
from orchestrator.core.selection import Selector, shortest_expected_completion
from orchestrator.core.timers import Timers

if TYPE_CHECKING:
    from shared.errors import ErrorCode

Actions: TypeAlias = list[Action]


class Dispatcher:
    """The dispatch state machine. One owner; `step` is its only way in.

    `step` raises `ValueError` on what the shell or the service got wrong (a request id used twice, a
    pipeline's figures that make no sense), never on what came over the wire.
    """

    def __init__(
        self,
        settings: DispatchSettings | None = None,
        select: Selector = shortest_expected_completion,
    ) -> None:
        self._settings = settings or DispatchSettings()
        self._select = select
        self._models: dict[str, Model] = {}
        self._counters = Counters()
        self._requests = RequestBook(self._settings, self._counters)
        # A request is due at its deadline, a pipeline when its next item is overdue, a model when
        # the head of its queue has waited too long for a pipeline.
        self._timers: Timers[Request | Pipeline | Model] = Timers()
        self._sequence = 0

    def step(self, event: Event) -> Actions:
        """Take one event; return what is to be done, in this order."""
        actions: Actions = []
        match event:
            case RequestArrived():
                self._request_arrived(event, actions)
            case ResultArrived():
                self._result_arrived(event, actions)
            case Tick():
                self._tick(event.now, actions)
            case ModelServed():
                self._model_served(event)
            case ModelStopped():
                self._model_stopped(event, actions)
            case PipelineActivated():
                self._pipeline_activated(event, actions)
            case PipelineDraining():
                self._pipeline_draining(event, actions)
            case PipelineLost():
                self._pipeline_lost(event, actions)
            case BusReconnected():
                self._bus_reconnected(event.now)
            case _:
                assert_never(event)
        return actions

    def next_wakeup(self) -> float | None:
        """When the next `Tick` is due, in the seconds of `now`; None: not before another event."""
        return self._timers.next_at()

    def snapshot(self) -> Snapshot:
        """The counters and the load at this moment."""
        return Snapshot(
            counters=self._counters.copy(),
            models=tuple(model.load() for model in self._models.values()),
            live_requests=len(self._requests),
            remembered_answers=len(self._requests.recent),
            remembered_bytes=self._requests.recent.size_bytes,
        )

    # --- requests -----------------------------------------------------------------------------

    def _request_arrived(self, event: RequestArrived, actions: Actions) -> None:
        if self._requests.came_before(event, actions):
            return
        failure = refusal(event, self._models, self._settings)
        if failure is not None:
            _count(self._counters.rejected, failure.code)
            actions.append(
                Reject(
                    request_id=event.request_id,
                    model=event.model,
                    reply_to=event.reply_to,
                    job=event.job,
                    context=event.context,
                    failure=failure,
                    handle=event.handle,
                )
            )
            return
        model = self._models[event.model]
        request = Request(event, model)
        self._requests.open(request, event)
        for index, given in enumerate(event.items):
            self._sequence += 1
            item = Item(request, index, self._sequence, given.payload, given.size_bytes, event.now)
            request.items.append(item)
            model.queue.push(item)
        if request.deadline is not None:
            self._timers.schedule(request, request.deadline)
        model.live_requests += 1
        self._counters.accepted += 1
        self._settle(model, event.now, actions)

    def _answer(self, request: Request, now: float, actions: Actions) -> None:
        """The last item has ended: answer and forget."""
        answer = request.answer(now)
        actions.append(answer)
        self._requests.close(request, answer, now)
        if request.deadline is not None:
            self._timers.cancel(request)
        request.model.live_requests -= 1
        failure = answer.failure
        if failure is None:
            self._counters.answered += 1
        else:
            _count(self._counters.failed, failure.code)

    # --- items --------------------------------------------------------------------------------

    def _settle(self, model: Model, now: float, actions: Actions) -> None:
        """After anything that moved items: fill free credits, let go what is empty."""
        if model.has_active:
            self._fill(model, now, actions)
        else:
            self._give_up_waiting(model, now, actions)
        if model.num_draining:
            for pipeline in list(model.pipelines.values()):
                if pipeline.draining and not pipeline.in_flight:
                    self._forget(pipeline)
                    actions.append(
                        PipelineDrained(model.name, pipeline.pipeline, pipeline.generation)
                    )
        if not (model.served or model.pipelines or model.live_requests):
            del self._models[model.name]
            self._timers.cancel(model)

    def _fill(self, model: Model, now: float, actions: Actions) -> None:
        while (item := model.queue.head()) is not None:
            ready = model.ready()
            if not ready:
                return
            request = item.request
            if request.deadline is not None and request.deadline <= now:
                self._expire(request, now, actions)
                continue
            pipeline = ready[self._select(ready)]
            model.queue.discard(item)
            item.state = ItemState.IN_FLIGHT
            item.queue_s += now - item.queued_at
            item.suspected = False
            item.flights.append(Flight(pipeline, now, item.queue_s))
            item.retry_at = now + self._overdue_s(pipeline, item)
            pipeline.take(item, now)
            self._timers.schedule_by(pipeline, item.retry_at)
            self._counters.dispatched += 1
            actions.append(
                Dispatch(
                    request_id=request.request_id,
                    item_index=item.index,
                    attempt=len(item.flights),
                    model=model.name,
                    pipeline=pipeline.pipeline,
                    generation=pipeline.generation,
                    payload=item.payload,
                    size_bytes=item.size_bytes,
                )
            )

    def _overdue_s(self, pipeline: Pipeline, item: Item) -> float:
        """How long to wait for a result: doubled per fault, so that a slow pipeline is not flooded."""
        settings = self._settings
        expected_s = settings.retry_factor * pipeline.expected_flight_s()
        return float(max(settings.min_retry_s, expected_s) * 2**item.faults)

    def _result_arrived(self, event: ResultArrived, actions: Actions) -> None:
        request = self._requests.get(event.request_id)
        if request is None or not 0 <= event.item_index < len(request.items):
            self._counters.unknown_results += 1
            return
        item = request.items[event.item_index]
        if item.state is ItemState.ENDED:
            self._counters.duplicate_results += 1
            return
        flight = item.flight(event.attempt, event.pipeline, event.generation)
        if flight is None:
            self._counters.unknown_results += 1
            return
        is_current = item.state is ItemState.IN_FLIGHT and event.attempt == len(item.flights)
        outcome = event.outcome
        if isinstance(outcome, Failure):
            if outcome.retryable:
                if not is_current:  # this attempt was given up already; another one will tell
                    self._counters.duplicate_results += 1
                    return
                self._fault(item, outcome, event.now, actions)
            else:
                self._end(item, outcome, flight, event.now, actions)
        else:
            if is_current:
                flight.pipeline.measure(event.now - flight.dispatched_at, event.now)
            flight.pipeline.faults_in_row = 0
            self._end(item, outcome, flight, event.now, actions)
        self._settle(request.model, event.now, actions)

    def _fault(self, item: Item, failure: Failure, now: float, actions: Actions) -> None:
        """The current attempt failed or timed out: once more, or that was the last."""
        flight = item.flights[-1]
        flight.pipeline.faults_in_row += 1
        item.faults += 1
        if item.faults < self._settings.max_attempts:
            self._counters.retried += 1
            self._again(item, now, actions)
            return
        final = replace(
            failure,
            retryable=False,
            message=f"{failure.message}; gave up after {item.faults} attempts",
        )
        self._end(item, final, flight, now, actions)

    def _again(self, item: Item, now: float, actions: Actions) -> None:
        """Back to the front of the queue, unless the model has been stopped."""
        model = item.request.model
        if not model.served:
            self._end(item, model_stopped(model.name), None, now, actions)
            return
        del item.flights[-1].pipeline.in_flight[item]
        item.state = ItemState.QUEUED
        item.queued_at = now
        model.queue.push_again(item)

    def _end(
        self, item: Item, outcome: Outcome, flight: Flight | None, now: float, actions: Actions
    ) -> None:
        request = item.request
        if item.state is ItemState.QUEUED:
            request.model.queue.discard(item)
        else:
            del item.flights[-1].pipeline.in_flight[item]
        item.end(outcome, flight, now)
        request.open_items -= 1
        if request.open_items == 0:
            self._answer(request, now, actions)

    # --- time ---------------------------------------------------------------------------------

    def _tick(self, now: float, actions: Actions) -> None:
        touched: dict[Model, None] = {}
        for due in self._timers.pop_due(now):
            match due:
                case Request():
                    self._expire(due, now, actions)
                    touched[due.model] = None
                case Pipeline():
                    self._retry_overdue(due, now, actions)
                    touched[due.model] = None
                case Model():
                    touched[due] = None
                case _:
                    assert_never(due)
        self._requests.recent.expire(now)
        for model in touched:
            self._settle(model, now, actions)

    def _expire(self, request: Request, now: float, actions: Actions) -> None:
        """The deadline has passed: all items that are still open end with it."""
        deadline = now if request.deadline is None else request.deadline
        for item in list(request.items):  # the last one's end clears the list
            if item.state is not ItemState.ENDED:
                failure = deadline_passed(
                    allowed_s=deadline - request.arrived_at,
                    waited_s=now - request.arrived_at,
                    in_flight=item.state is ItemState.IN_FLIGHT,
                )
                self._end(item, failure, None, now, actions)

    def _retry_overdue(self, pipeline: Pipeline, now: float, actions: Actions) -> None:
        for item in list(pipeline.in_flight):
            if item.retry_at > now:
                continue
            if item.suspected:
                self._counters.recovered += 1
                self._again(item, now, actions)
            else:
                allowed_s = item.retry_at - item.flights[-1].dispatched_at
                failure = overdue(pipeline.pipeline, allowed_s=allowed_s)
                self._fault(item, failure, now, actions)
        self._watch(pipeline)

    def _watch(self, pipeline: Pipeline) -> None:
        """Wake up when the first of the pipeline's items is overdue."""
        if pipeline.in_flight:
            self._timers.schedule(pipeline, min(item.retry_at for item in pipeline.in_flight))

    def _give_up_waiting(self, model: Model, now: float, actions: Actions) -> None:
        """No pipeline is active: end what has waited too long; the head has always waited longest."""
        limit_s = self._settings.unserved_limit_s
        while (item := model.queue.head()) is not None:
            until = max(item.request.arrived_at, model.unserved_since) + limit_s
            if until > now:
                self._timers.schedule_by(model, until)
                return
            self._end(item, unserved(model.name, limit_s=limit_s), None, now, actions)

    def _bus_reconnected(self, now: float) -> None:
        settings = self._settings
        for model in self._models.values():
            for pipeline in model.pipelines.values():
                wait_s = max(settings.min_reconnect_retry_s, 2.0 * pipeline.usual_flight_s())
                for item in pipeline.in_flight:
                    age_s = now - item.flights[-1].dispatched_at
                    if age_s >= settings.reconnect_grace_s and now + wait_s < item.retry_at:
                        item.retry_at = now + wait_s
                        item.suspected = True
                self._watch(pipeline)

    # --- models and pipelines -----------------------------------------------------------------

    def _model_served(self, event: ModelServed) -> None:
        model = self._models.get(event.model)
        if model is None:
            self._models[event.model] = Model(event.model, unserved_since=event.now)
        elif not model.served:
            model.served = True
            model.unserved_since = event.now

    def _model_stopped(self, event: ModelStopped, actions: Actions) -> None:
        model = self._models.get(event.model)
        if model is None or not model.served:
            return
        model.served = False
        for item in model.queue.items():
            self._end(item, model_stopped(model.name), None, event.now, actions)
        for pipeline in model.pipelines.values():
            pipeline.draining = True
        model.num_draining = len(model.pipelines)
        self._settle(model, event.now, actions)

    def _pipeline_activated(self, event: PipelineActivated, actions: Actions) -> None:
        window = default_window(event.num_stages) if event.window is None else event.window
        if not (
            window >= 1
            and 0.0 < event.throughput_per_s < math.inf
            and 0.0 <= event.latency_s < math.inf
        ):
            raise ValueError(
                "pipeline: expected window >= 1, finite throughput > 0 and latency >= 0, got "
                f"{window}, {event.throughput_per_s!r}, {event.latency_s!r}"
            )
        model = self._models.get(event.model)
        if model is None or not model.served:
            self._counters.stray_events += 1
            return
        key = (event.pipeline, event.generation)
        pipeline = model.pipelines.get(key)
        if pipeline is None:
            pipeline = Pipeline(
                model=model,
                pipeline=event.pipeline,
                generation=event.generation,
                window=window,
                throughput_per_s=event.throughput_per_s,
                latency_s=event.latency_s,
            )
            model.pipelines[key] = pipeline
        else:
            model.num_draining -= pipeline.draining
            pipeline.update(event, window)
        self._timers.cancel(model)
        self._settle(model, event.now, actions)

    def _pipeline_draining(self, event: PipelineDraining, actions: Actions) -> None:
        pipeline = self._pipeline(event)
        if pipeline is None:
            actions.append(PipelineDrained(event.model, event.pipeline, event.generation))
            return
        model = pipeline.model
        if not pipeline.draining:
            pipeline.draining = True
            model.num_draining += 1
            if not model.has_active:
                model.unserved_since = event.now
        self._settle(model, event.now, actions)

    def _pipeline_lost(self, event: PipelineLost, actions: Actions) -> None:
        pipeline = self._pipeline(event)
        if pipeline is None:
            return
        model = pipeline.model
        for item in list(pipeline.in_flight):
            item.losses += 1
            if item.losses < self._settings.max_losses:
                self._counters.recovered += 1
                self._again(item, event.now, actions)
            else:
                failure = pipelines_lost(item.losses)
                self._end(item, failure, None, event.now, actions)
        was_active = not pipeline.draining
        self._forget(pipeline)
        if was_active and not model.has_active:
            model.unserved_since = event.now
        self._settle(model, event.now, actions)

    def _pipeline(self, event: PipelineDraining | PipelineLost) -> Pipeline | None:
        model = self._models.get(event.model)
        return None if model is None else model.pipelines.get((event.pipeline, event.generation))

    def _forget(self, pipeline: Pipeline) -> None:
        model = pipeline.model
        del model.pipelines[pipeline.pipeline, pipeline.generation]
        model.num_draining -= pipeline.draining
        self._timers.cancel(pipeline)


def _count(counts: dict[ErrorCode, int], code: ErrorCode) -> None:
    counts[code] = counts.get(code, 0) + 1

"""What happens to each item of an accepted request: queued, in flight, ended.

The life of an item (a request is one or several; its answer leaves when the last one has ended):

=========  ==========================================  =========  =====================================
state      what happens                                next       action
=========  ==========================================  =========  =====================================
(none)     request arrives, is refused                 (none)     Reject
(none)     repeat of a job in work                     (none)     its handle joins the Answer's
(none)     repeat of an answered job                   (none)     AnswerAgain
(none)     redelivery of a message in work             (none)     its handle replaces the old one
(none)     request arrives, is accepted                queued     (ended, where the cache knows it)
queued     an active pipeline has a credit             in flight  Dispatch, attempt + 1
queued     output of an earlier attempt                ended
queued     final failure of an earlier attempt         ended
queued     deadline; unserved too long; model stopped  ended
queued     room is needed for a client with less       ended
queued     a newer frame of the client came            ended
queued     its turn, an equal input is in flight       held
queued     an equal input ended with an outcome        ended
held       as the last; deadline                       ended
held       no equal input is in flight any more        queued
in flight  output or final failure, of any attempt     ended
in flight  as the next three, a newer frame came       ended
in flight  retryable failure of this attempt, timeout  queued     (ended after `max_attempts` of them)
in flight  pipeline lost                               queued     (ended after `max_losses` of them)
in flight  the node died that computed it, again       ended      Poisoned
in flight  no result soon after a bus reconnection     queued
in flight  deadline                                    ended
ended      any result                                  ended      (counted and dropped)
ended      was the request's last open item            (none)     Answer
=========  ==========================================  =========  =====================================

Rules that hold throughout
- The highest priority goes first, and clients take turns within it, each with its items in order of arrival
  (`item_queue`); what runs again goes ahead of what never ran.
- The first outcome of an item wins, whichever attempt it is of: answers are exact, so all are equal.
- A request's message is acknowledged with its answer and not before, so that a broker redelivers what a
  killed orchestrator had not answered.
- Items of one request may travel together (`micro_batch`): one message, one credit, each its own outcome.
  What runs again travels alone, so that the one that failed a message, or killed a node, is found.
- What was in flight where a node died may be why: from then on it is watched, its stages say when they
  begin and hand on. A stage computes one item at a time, so a node that dies of it is known; those beside it
  are not blamed, do not wait, and are forgotten with their answers. The first death shows no culprit, so the
  second that a watched item is computed at condemns it.
- An item given up by a pipeline (timeout, deadline) frees its credit at once, though a slow stage may
  still have it: a pipeline that lost an item must not lose the credit with it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, assert_never

from orchestrator.core.admission import retry_after_s
from orchestrator.core.deciding import Decider
from orchestrator.core.dispatch_events import (
    Action,
    Companion,
    Decided,
    Dispatch,
    Failure,
    ItemProgressed,
    Outcome,
    Output,
    PipelineDrained,
    Poisoned,
    ResultArrived,
)
from orchestrator.core.dispatch_lineup import Model, Pipeline
from orchestrator.core.dispatch_settings import DispatchSettings
from orchestrator.core.dispatch_state import Flight, Item, ItemState, Request
from orchestrator.core.dispatch_stats import Counters
from orchestrator.core.job_failures import (
    deadline_passed,
    frame_superseded,
    model_stopped,
    overdue,
    pipelines_lost,
    poisonous,
    pushed_out,
    unserved,
)
from orchestrator.core.micro_batch import MOST_BYTES
from orchestrator.core.request_book import RequestBook
from orchestrator.core.result_cache import Cached, CacheKey
from orchestrator.core.timers import Timers

if TYPE_CHECKING:
    from shared.errors import ErrorCode

Actions: TypeAlias = list[Action]


class ItemFlow:
    """Moves items. Private to `Dispatcher`, which shares its models, counters and requests with it."""

    def __init__(
        self,
        settings: DispatchSettings,
        models: dict[str, Model],
        counters: Counters,
        requests: RequestBook,
    ) -> None:
        self._settings = settings
        self._decider = Decider(settings.scheduling)
        self._models = models
        self._counters = counters
        self._requests = requests
        # A request is due at its deadline, a pipeline when its next item is overdue, a model when
        # the oldest of its queue has waited too long for a pipeline.
        self.timers: Timers[Request | Pipeline | Model] = Timers()

    def adopt(self, settings: DispatchSettings) -> None:
        """Go by these from now on."""
        if settings.scheduling != self._settings.scheduling:
            self._decider = Decider(settings.scheduling)
        self._settings = settings

    # --- where items go -----------------------------------------------------------------------

    def settle(self, model: Model, now: float, actions: Actions) -> None:
        """After anything that moved items: fill free credits, let go what is empty."""
        if model.has_active:
            self._fill(model, now, actions)
        else:
            self._give_up_waiting(model, now, actions)
        if model.num_draining:
            for pipeline in list(model.pipelines.values()):
                if pipeline.draining and not pipeline.in_flight:
                    self.forget(pipeline)
                    actions.append(
                        PipelineDrained(model.name, pipeline.pipeline, pipeline.generation)
                    )
        if not (model.served or model.pipelines or model.live_requests):
            del self._models[model.name]
            self.timers.cancel(model)

    def forget(self, pipeline: Pipeline) -> None:
        """It is drained or lost."""
        model = pipeline.model
        del model.pipelines[pipeline.pipeline, pipeline.generation]
        model.num_draining -= pipeline.draining
        model.lineup_changed()
        self.timers.cancel(pipeline)

    def _fill(self, model: Model, now: float, actions: Actions) -> None:
        while (item := model.queue.head()) is not None:
            if item.key is not None and self._hold(item, item.key):
                continue
            chosen = self._decider.decide(model, now)
            if chosen is None:
                return
            request = item.request
            if request.deadline is not None and request.deadline <= now:
                self._expire(request, now, actions)
                continue
            pipeline, decision = chosen
            items = self._take(model, pipeline)
            for each in items:
                if each.key is not None:
                    self._keyed_flight(each, each.key, pipeline)
            overdue_s = self._overdue_s(pipeline, item, len(items))
            for each in items:
                each.state = ItemState.IN_FLIGHT
                each.queue_s += now - each.queued_at
                each.suspected = False
                each.retry_at = now + overdue_s
            model.turns += 1
            pipeline.take(items, model.turns, now)
            self.timers.schedule_by(pipeline, item.retry_at)
            self._counters.dispatched += len(items)
            size_bytes = sum(each.size_bytes for each in items)
            model.sent_items += len(items)
            model.sent_bytes += size_bytes
            actions.append(
                Dispatch(
                    request_id=request.request_id,
                    item_index=item.index,
                    attempt=len(item.flights),
                    model=model.name,
                    pipeline=pipeline.pipeline,
                    generation=pipeline.generation,
                    payload=item.payload,
                    size_bytes=size_bytes,
                    priority=item.priority,
                    watched=bool(item.crashes),
                    companions=tuple(
                        Companion(each.index, len(each.flights), each.payload) for each in items[1:]
                    ),
                )
            )
            if decision is not None:
                model.decision = decision
                if self._settings.scheduling.log_decisions:
                    actions.append(Decided(request.request_id, item.index, model.name, decision))

    def _take(self, model: Model, pipeline: Pipeline) -> list[Item]:
        """The items of the next message: the queue's head, and what of its request may go along with it.

        What was sent before goes alone: it may be the one that a message failed, or a node died, of.
        """
        queue = model.queue
        waiting = len(queue)
        item = queue.take()
        most = pipeline.micro_batch.limits.most
        if item.flights or most == 1:
            return [item]
        together = [item]
        keys = {item.key}
        size_bytes = item.size_bytes
        for each in queue.following(item, most - 1):
            size_bytes += each.size_bytes
            if each.request is not item.request or size_bytes > MOST_BYTES:
                break
            if each.key is not None and (each.key in keys or model.equals.is_flying(each.key)):
                break  # it is held when its turn comes
            keys.add(each.key)
            together.append(each)
        share = math.ceil(waiting / max(len(model.lineup()), 1))
        size = pipeline.micro_batch.choose(len(together), max(share, len(together)))
        return [item, *queue.take_following(item, size - 1)]

    def _overdue_s(self, pipeline: Pipeline, item: Item, size: int) -> float:
        """How long to wait for a result: doubled per fault, so that a slow pipeline is not flooded."""
        settings = self._settings
        expected_s = settings.retry_factor * pipeline.expected_flight_s(size)
        return float(max(settings.min_retry_s, expected_s) * 2**item.faults)

    # --- how attempts end ---------------------------------------------------------------------

    def result(self, event: ResultArrived, actions: Actions) -> None:
        """A pipeline's outcome."""
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
        flight.node = None
        flight.pipeline.given_up.pop(item, None)
        is_current = item.state is ItemState.IN_FLIGHT and event.attempt == len(item.flights)
        outcome = event.outcome
        if isinstance(outcome, Failure):
            if outcome.retryable:
                if not is_current:  # this attempt was given up already; another one will tell
                    self._counters.duplicate_results += 1
                    return
                self._fault(item, outcome, event.now, actions)
            else:
                self.end(item, outcome, flight, event.now, actions)
        else:
            if is_current:
                flight.pipeline.measure(flight, event.now)
            flight.pipeline.micro_batch.measured(event.size, event.stage_cpu_s)
            flight.pipeline.gave_output()
            self.end(item, outcome, flight, event.now, actions)
        self.settle(request.model, event.now, actions)

    def progressed(self, event: ItemProgressed) -> None:
        """A watched item is with another node, or with none for a moment."""
        request = self._requests.get(event.request_id)
        if request is None or not 0 <= event.item_index < len(request.items):
            return  # it has ended meanwhile
        item = request.items[event.item_index]
        flight = item.flight(event.attempt, event.pipeline, event.generation)
        if flight is not None:
            flight.node = event.node

    def lost(self, pipeline: Pipeline, crashed: str | None, now: float, actions: Actions) -> None:
        """A pipeline is gone: what it had in flight runs again, but for what nodes died of."""
        if crashed is not None:
            for item in {**pipeline.in_flight, **pipeline.given_up}:
                self._suspect(item, pipeline, crashed, now, actions)
        for item in list(pipeline.in_flight):
            item.losses += 1
            if item.losses < self._settings.max_losses:
                self._counters.recovered += 1
                self._again(item, now, actions)
            else:
                self.end(item, pipelines_lost(item.losses), None, now, actions)

    def _suspect(
        self, item: Item, pipeline: Pipeline, crashed: str, now: float, actions: Actions
    ) -> None:
        """A node may have died of an item: it is watched from now on, or was and is set aside."""
        watched, item.crashes = bool(item.crashes), (*item.crashes, crashed)
        there = any(f.pipeline is pipeline and f.node == crashed for f in item.flights)
        if not (watched and there):
            return
        request = item.request
        self._counters.poisoned += 1
        actions.append(
            Poisoned(
                request_id=request.request_id,
                item_index=item.index,
                model=request.model.name,
                job=request.job,
                nodes=item.crashes,
                handle=next(iter(request.handles.values()), None),
            )
        )
        self.end(item, poisonous(item.crashes), None, now, actions)

    def _fault(self, item: Item, failure: Failure, now: float, actions: Actions) -> None:
        """The current attempt failed or timed out: once more, or that was the last."""
        flight = item.flights[-1]
        flight.pipeline.faulted()
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
        self.end(item, final, flight, now, actions)

    def _again(self, item: Item, now: float, actions: Actions) -> None:
        """Back to the front of the queue, unless the model was stopped or a newer frame came."""
        request = item.request
        model = request.model
        if (failure := _in_vain(request)) is not None:
            self.end_alone(item, failure, now, actions)
            return
        item.flights[-1].pipeline.release(item)
        item.state = ItemState.QUEUED
        item.queued_at = now
        model.queue.push_again(item)
        if item.key is not None:
            model.equals.land(item.key, item)
            self._release(model, item.key, now, actions)

    def end(
        self, item: Item, outcome: Outcome, flight: Flight | None, now: float, actions: Actions
    ) -> None:
        """The item has ended as its input does, and with it those of equal input that wait."""
        key, model = item.key, item.request.model
        equal = None
        if key is not None and flight is not None and isinstance(outcome, Output):
            equal = Cached(outcome, flight.pipeline.pipeline, flight.pipeline.generation)
            if model.cache is not None and key.identity == model.cache.settings.identity:
                model.cache.put(key, equal, now)
        self._leave(item)
        item.end(outcome, flight, now)
        self._ended(item, now, actions)
        if key is None:
            return
        for other in model.equals.others(key):
            if model.cache is not None:
                model.cache.joined += 1
            self._leave(other)
            if equal is not None:
                other.end_as(equal, now)
            else:
                other.end(outcome, None, now)
            self._ended(other, now, actions)

    def end_alone(self, item: Item, failure: Failure, now: float, actions: Actions) -> None:
        """The item has ended for a reason that says nothing of others of equal input."""
        self._leave(item)
        item.end(failure, None, now)
        self._ended(item, now, actions)
        if item.key is not None:
            self._release(item.request.model, item.key, now, actions)

    def end_known(self, item: Item, equal: Cached, now: float, actions: Actions) -> None:
        """The item of a request that just came has its answer."""
        cache = item.request.model.cache
        assert cache is not None
        cache.hits += 1
        item.end_as(equal, now)
        self._ended(item, now, actions)

    def _leave(self, item: Item) -> None:
        """It is nowhere any more."""
        model = item.request.model
        match item.state:
            case ItemState.QUEUED:
                model.queue.discard(item)
            case ItemState.IN_FLIGHT:
                item.flights[-1].pipeline.release(item)
        for attempt in item.flights:
            attempt.pipeline.given_up.pop(item, None)
        if item.key is not None:
            model.equals.remove(item.key, item)

    def _ended(self, item: Item, now: float, actions: Actions) -> None:
        """With the last of its items a request is answered."""
        request = item.request
        request.open_items -= 1
        if request.open_items == 0:
            self._answer(request, now, actions)

    # --- equal inputs -------------------------------------------------------------------------

    def line_up(self, item: Item) -> None:
        """A new item waits."""
        model = item.request.model
        model.queue.push(item)
        if item.key is not None:
            model.equals.add(item.key, item)

    def _hold(self, item: Item, key: CacheKey) -> bool:
        """Take the head of the queue out while an equal one is in flight; False where it is to run.

        So many are held as may wait, then equal ones run beside each other: who holds them is not to be had
        for nothing.
        """
        model = item.request.model
        equals, settings = model.equals, self._settings
        if (
            not equals.is_flying(key)
            or equals.num_held >= settings.max_queued_items
            or equals.held_bytes + item.size_bytes > settings.max_queued_bytes
        ):
            return False
        model.queue.take()
        item.state = ItemState.HELD
        equals.hold(key, item)
        return True

    def _keyed_flight(self, item: Item, key: CacheKey, pipeline: Pipeline) -> None:
        """A keyed item leaves the queue for a pipeline."""
        model = item.request.model
        if pipeline.identity != key.identity:
            # What an older or newer package makes of it is the answer of this item alone.
            model.equals.remove(key, item)
            item.key = None
            return
        model.equals.fly(key, item)
        if model.cache is not None and not item.flights:
            model.cache.misses += 1

    def _release(self, model: Model, key: CacheKey, now: float, actions: Actions) -> None:
        """An item left its flight without an outcome for all: those that were held for it wait again."""
        released = model.equals.release(key)
        for item in released:
            item.state = ItemState.QUEUED
            model.queue.push_again(item)
        for item in released:
            if (failure := _in_vain(item.request)) is not None:
                self.end_alone(item, failure, now, actions)

    def displace(self, model: Model, items: list[Item], now: float, actions: Actions) -> None:
        """These give way to a client that has less waiting."""
        retry_s = retry_after_s(model, self._settings)
        for item in items:
            self.end_alone(item, pushed_out(model.name, retry_after_s=retry_s), now, actions)

    def _answer(self, request: Request, now: float, actions: Actions) -> None:
        """The last item has ended: answer and forget."""
        answer = request.answer(now)
        actions.append(answer)
        self._requests.close(request, answer, now)
        if request.deadline is not None:
            self.timers.cancel(request)
        model = request.model
        model.live_requests -= 1
        if request.latest and model.frames.get(request.client) is request:
            del model.frames[request.client]
        failure = answer.failure
        if failure is None:
            self._counters.answered += 1
        else:
            count(self._counters.failed, failure.code)

    # --- time ---------------------------------------------------------------------------------

    def tick(self, now: float, actions: Actions) -> None:
        """Deadlines, timeouts, and what waits in vain."""
        touched: dict[Model, None] = {}
        for due in self.timers.pop_due(now):
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
            self.settle(model, now, actions)

    def bus_reconnected(self, now: float) -> None:
        """What was in flight may be lost: try it again soon, and blame nobody."""
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
                self.end_alone(item, failure, now, actions)

    def _retry_overdue(self, pipeline: Pipeline, now: float, actions: Actions) -> None:
        for item in list(pipeline.in_flight):
            if item.retry_at > now:
                continue
            pipeline.given_up[item] = None
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
            self.timers.schedule(pipeline, min(item.retry_at for item in pipeline.in_flight))

    def _give_up_waiting(self, model: Model, now: float, actions: Actions) -> None:
        """No pipeline is active: end what has waited too long."""
        due = self.timers.due(model)
        if due is not None and due > now:
            return
        limit_s = self._settings.unserved_limit_s
        while (item := model.queue.oldest()) is not None:
            until = max(item.request.arrived_at, model.unserved_since) + limit_s
            if until > now:
                self.timers.schedule(model, until)
                return
            self.end_alone(item, unserved(model.name, limit_s=limit_s), now, actions)


def _in_vain(request: Request) -> Failure | None:
    """Why what comes back to the queue of its model need not wait there."""
    model = request.model
    if not model.served:
        return model_stopped(model.name)
    if request.latest and model.frames.get(request.client) is not request:
        return frame_superseded(model.name)
    return None


def count(counts: dict[ErrorCode, int], code: ErrorCode) -> None:
    """One more of this code."""
    counts[code] = counts.get(code, 0) + 1

"""Random histories of requests, results, time and pipelines, with the promises checked at each step.

The machine sees only events and actions and keeps its own books; `dispatch_checks` looks inside.
More histories: `AMP4EC_TEST_EXAMPLES=10000 pytest tests/core/test_dispatch_history.py`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.core.dispatch import Dispatcher
from orchestrator.core.dispatch_events import (
    Acknowledge,
    Action,
    Answer,
    AnswerAgain,
    BusReconnected,
    Decided,
    Dispatch,
    EndedItem,
    Event,
    Failure,
    InputItem,
    ItemProgressed,
    ModelServed,
    ModelStopped,
    Outcome,
    Output,
    PipelineActivated,
    PipelineDrained,
    PipelineDraining,
    PipelineFigures,
    PipelineLost,
    Poisoned,
    Reject,
    RequestArrived,
    ResultArrived,
    Tick,
)
from orchestrator.core.dispatch_settings import DispatchSettings
from orchestrator.core.micro_batch import ALONE, MicroBatchLimits
from orchestrator.core.nsa import NodeFigures
from orchestrator.core.result_cache import CacheKey, CacheSettings
from orchestrator.core.scheduler_settings import Form, Scheduler, SchedulerSettings
from shared.errors import ErrorCode
from tests.core.dispatch_checks import check, check_nothing_left

SETTINGS = DispatchSettings(
    max_queued_items=6,
    max_queued_bytes=100,
    max_item_bytes=40,
    max_remembered_answers=5,
    max_remembered_bytes=60,
    max_held_repeats=2,
    unserved_limit_s=20.0,
    repeat_window_s=50.0,
)

# more of one than of the other, so that histories get somewhere
MODELS = st.sampled_from(["a", "a", "a", "b"])
PIPELINES = st.sampled_from([("p", 1), ("p", 2), ("q", 1)])

MICRO_BATCHES = st.builds(
    MicroBatchLimits,
    most=st.sampled_from([1, 2, 4, 32]),
    reason=st.just("drawn"),
    wanted=st.sampled_from([None, None, 1, 2, 3, 64]),
    stage_s=st.sampled_from([(), (0.1, 0.2)]),
)
NODES = st.builds(
    NodeFigures,
    node=st.just("n"),
    cpu_available=st.floats(0, 4),
    cpu_needed=st.floats(0, 4),
    memory_available_bytes=st.floats(0, 1e9),
    memory_needed_bytes=st.sampled_from([0.0, 1e6]),
    load_ratio=st.floats(0, 1),
    round_trip_s=st.floats(0, 1),
)


@dataclass
class Job:
    """A request as its sender and the shell know it."""

    event: RequestArrived
    number: int
    handles: list[int] = field(default_factory=list)
    attempts: dict[int, int] = field(default_factory=dict)
    outputs: set[int] = field(default_factory=set)
    """Items that a result has reached: they must not fail after that."""


def spread(action: Dispatch) -> list[Dispatch]:
    """As if each item had travelled alone."""
    alone = replace(action, companions=())
    return [alone] + [
        replace(alone, item_index=o.item_index, attempt=o.attempt, payload=o.payload)
        for o in action.companions
    ]


def codes(answer: Answer) -> set[ErrorCode]:
    return {item.outcome.code for item in answer.items if isinstance(item.outcome, Failure)}


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.dispatcher = Dispatcher(SETTINGS)
        self.log_decisions = False
        self.now = 100.0
        self.number = 0
        self.live: dict[str, Job] = {}
        self.by_key: dict[object, str] = {}
        self.by_delivery: dict[object, str] = {}
        self.owed: set[int] = set()
        """Handles given and not yet acknowledged or superseded."""
        self.served: set[str] = set()
        self.active: dict[tuple[str, str, int], int] = {}
        self.draining: set[tuple[str, str, int]] = set()
        self.sent: list[Dispatch] = []
        """One for each item, whatever travelled together."""
        self.most: dict[tuple[str, str], int] = {}
        """Items a message may have, by model and pipeline: the most of all generations."""
        self.last_first: dict[tuple[str, str, int], tuple[int, int]] = {}
        """By model, client and priority: the request and item that was last sent for the first time."""
        self.answers: dict[str, Answer] = {}
        self.places: dict[tuple[str, int, int], str | None] = {}
        """By request, item and attempt: who said that it computes it."""
        self.crashes: dict[tuple[str, int], int] = {}
        """By request and item: nodes that crashed while it was in flight there."""
        self.poisoned: set[tuple[str, int]] = set()

    # --- helpers ------------------------------------------------------------------------------

    def step(self, event: Event) -> list[Action]:
        actions = self.dispatcher.step(event)
        for action in actions:
            self.observe(action)
        return actions

    def observe(self, action: Action) -> None:
        match action:
            case Dispatch():
                self.dispatched(action)
            case Answer():
                self.answered(action)
            case AnswerAgain():
                first = self.answers[action.first.request_id]
                assert action.first.items == first.items
                assert action.first.handles == ()
                assert ErrorCode.OVERLOADED not in codes(action.first), "told to come back"
                self.owed.remove(self.as_int(action.handle))
            case Reject():
                assert action.request_id not in self.live
                self.owed.remove(self.as_int(action.handle))
            case Acknowledge():
                self.owed.remove(self.as_int(action.handle))
            case Decided():
                self.decided(action)
            case Poisoned():
                which = (action.request_id, action.item_index)
                assert which not in self.poisoned, "set aside once"
                self.poisoned.add(which)
                assert len(action.nodes) == self.crashes[which] >= 2
                assert action.handle in self.live[action.request_id].handles
            case PipelineDrained():
                self.draining.discard((action.model, action.pipeline, action.generation))
            case _:
                assert_never(action)

    @staticmethod
    def as_int(handle: object) -> int:
        assert isinstance(handle, int)
        return handle

    def dispatched(self, action: Dispatch) -> None:
        self.last_sent = action
        if action.companions:
            assert not action.watched, "what a node may have died of goes alone"
            assert action.attempt == 1, "what runs again goes alone"
            assert len(action.companions) < self.most[action.model, action.pipeline]
        for each in spread(action):
            self.item_dispatched(each)

    def item_dispatched(self, action: Dispatch) -> None:
        job = self.live[action.request_id]
        assert (action.model, action.pipeline, action.generation) in self.active
        assert action.attempt == job.attempts.get(action.item_index, 0) + 1
        job.attempts[action.item_index] = action.attempt
        assert action.item_index not in job.outputs
        assert action.payload == (action.request_id, action.item_index)
        if action.attempt == 1:
            self.dispatched_first(action, job)
        assert action.watched == bool(self.crashes.get((action.request_id, action.item_index)))
        self.sent.append(action)

    def dispatched_first(self, action: Dispatch, job: Job) -> None:
        event = job.event
        place, line = (job.number, action.item_index), (event.model, event.client, event.priority)
        assert place > self.last_first.get(line, (0, 0)), "first come, first served"
        self.last_first[line] = place

    def decided(self, action: Decided) -> None:
        assert self.log_decisions
        sent = self.last_sent
        assert (action.request_id, action.item_index) == (sent.request_id, sent.item_index)
        candidates = action.decision.candidates
        active = sorted(key[1:] for key in self.active if key[0] == action.model)
        assert [(each.pipeline, each.generation) for each in candidates] == active
        (chosen,) = [each for each in candidates if each.chosen]
        assert (chosen.pipeline, chosen.generation) == (sent.pipeline, sent.generation)
        assert all(math.isfinite(term) for each in candidates for term in each.terms.values())

    def answered(self, action: Answer) -> None:
        job = self.live.pop(action.request_id)
        assert action.request_id not in self.answers
        self.answers[action.request_id] = action
        assert sorted(map(self.as_int, action.handles)) == sorted(job.handles)
        self.owed.difference_update(job.handles)
        assert len(action.items) == len(job.event.items)
        for index, item in enumerate(action.items):
            self.ended(job, index, item)
            assert item.queue_s >= 0
            assert item.flight_s >= 0
            assert item.queue_s + item.flight_s <= item.latency_s + 1e-9
        self.by_key = {key: rid for key, rid in self.by_key.items() if rid != action.request_id}
        self.by_delivery = {
            delivery: rid for delivery, rid in self.by_delivery.items() if rid != action.request_id
        }

    def ended(self, job: Job, index: int, item: EndedItem) -> None:
        which = (job.event.request_id, index)
        if isinstance(item.outcome, Output):
            assert item.outcome.value == which
        assert (index in job.outputs) == isinstance(item.outcome, Output)
        poison = isinstance(item.outcome, Failure) and item.outcome.code is ErrorCode.POISON
        assert poison == (which in self.poisoned)

    # --- rules --------------------------------------------------------------------------------

    @initialize(
        windows=st.lists(st.integers(1, 4), max_size=3),
        scheduler=st.sampled_from(Scheduler),
        form=st.sampled_from(Form),
        log_decisions=st.booleans(),
        micro_batch=MICRO_BATCHES,
    )
    def begins_served(
        self, windows: list[int], micro_batch: MicroBatchLimits, **scheduling: Any
    ) -> None:
        self.log_decisions = scheduling["log_decisions"]
        self.dispatcher = Dispatcher(replace(SETTINGS, scheduling=SchedulerSettings(**scheduling)))
        self.model_is_served("a")
        for window, which in zip(windows, [("p", 1), ("p", 2), ("q", 1)], strict=False):
            self.activate("a", which, window, 10.0, micro_batch)

    @rule(num_items=st.integers(1, 5), client=st.sampled_from("xxxyz"), priority=st.integers(0, 9))
    def plain_request_arrives(self, num_items: int, client: str, priority: int) -> None:
        reply_to, sizes = f"result/{client}", [1] * num_items
        self.arrive("a", sizes, None, reply_to, None, priority=priority, latest=False, named=False)

    @rule(
        model=st.sampled_from(["a", "a", "a", "a", "b", "nowhere"]),
        sizes=st.lists(st.sampled_from([1, 1, 1, 10, 10, 40, 41]), min_size=0, max_size=3),
        job=st.sampled_from([None, None, "1", "2", b"3"]),
        reply_to=st.sampled_from(["result/x", "result/y", "result/z"]),
        allowed_s=st.sampled_from([None, None, 0.0, 0.5, 5.0, 100.0]),
        priority=st.sampled_from([5, 5, 5, 0, 9]),
        latest=st.booleans(),
        named=st.booleans(),
    )
    def request_arrives(self, **drawn: Any) -> None:
        self.arrive(**drawn)

    def arrive(
        self,
        model: str,
        sizes: list[int],
        job: str | bytes | None,
        reply_to: str,
        allowed_s: float | None,
        *,
        priority: int,
        latest: bool,
        named: bool,
    ) -> None:
        self.number += 1
        request_id = f"r{self.number}"
        event = RequestArrived(
            now=self.now,
            request_id=request_id,
            model=model,
            reply_to=reply_to,
            job=job,
            items=tuple(
                InputItem((request_id, i), size, self.key_of(model, (request_id, i)))
                for i, size in enumerate(sizes)
            ),
            deadline=None if allowed_s is None else self.now + allowed_s,
            handle=self.number,
            client=reply_to,
            priority=priority,
            latest=latest,
            delivery=("session", self.number) if named else None,
        )
        self.owed.add(self.number)
        key = None if job is None else (reply_to, job)
        if key in self.by_key and key is not None:
            self.repeat_arrives(event, self.by_key[key])
            return
        before = self.dispatcher.snapshot().counters
        # entered before the step, because the answer may come in it
        self.live[request_id] = entered = Job(event, self.number, [self.number])
        actions = self.dispatcher.step(event)
        after = self.dispatcher.snapshot().counters
        if after.accepted == before.accepted:
            del self.live[request_id]
            (action,) = actions
            assert isinstance(action, Reject | AnswerAgain)
        else:
            assert model in self.served
            if key is not None:
                self.by_key[key] = request_id
            if event.delivery is not None:
                self.by_delivery[event.delivery] = request_id
            assert entered.event is event
        for action in actions:
            self.observe(action)

    def key_of(self, model: str, which: tuple[str, int]) -> CacheKey | None:
        """Of an input; see `test_dispatch_cache`."""
        del model, which
        return None

    def repeat_arrives(self, event: RequestArrived, request_id: str) -> None:
        job = self.live[request_id]
        if len(job.handles) <= SETTINGS.max_held_repeats:
            job.handles.append(self.number)
            if event.delivery is not None:
                self.by_delivery[event.delivery] = request_id
            assert self.step(event) == []
        else:
            assert self.step(event) == [Acknowledge(self.number)]

    @precondition(lambda self: self.by_delivery)
    @rule(data=st.data())
    def broker_redelivers(self, data: st.DataObject) -> None:
        delivery = data.draw(st.sampled_from(sorted(self.by_delivery, key=str)))
        request_id = self.by_delivery[delivery]
        job = self.live[request_id]
        assert isinstance(delivery, tuple)
        event = job.event
        self.number += 1
        # the handle that this delivery had is dead with its connection
        old = self.dispatcher._requests._by_id[request_id].handles[delivery]
        job.handles[job.handles.index(self.as_int(old))] = self.number
        self.owed.remove(self.as_int(old))
        self.owed.add(self.number)
        again = RequestArrived(
            now=self.now,
            request_id=f"r{self.number}",
            model=event.model,
            reply_to=event.reply_to,
            job=event.job,
            items=event.items,
            deadline=event.deadline,
            handle=self.number,
            client=event.client,
            priority=event.priority,
            latest=event.latest,
            delivery=delivery,
        )
        assert self.step(again) == []

    @precondition(lambda self: self.sent)
    @rule(
        data=st.data(),
        kind=st.sampled_from(["output", "output", "retryable", "final"]),
        size=st.integers(1, 5),
        stage_cpu_s=st.lists(st.floats(0.0, 10.0), max_size=3).map(tuple),
    )
    def result_arrives(
        self, data: st.DataObject, kind: str, size: int, stage_cpu_s: tuple[float, ...]
    ) -> None:
        # mostly of live jobs, but any may come, again or late
        live = [sent for sent in self.sent if sent.request_id in self.live]
        action = data.draw(st.sampled_from(live or self.sent) | st.sampled_from(self.sent))
        outcome: Outcome
        if kind == "output":
            outcome = Output((action.request_id, action.item_index), size_bytes=7)
        else:
            code = ErrorCode.INTERNAL if kind == "retryable" else ErrorCode.BAD_INPUT
            outcome = Failure(code=code, message=kind, retryable=kind == "retryable")
        self.places.pop((action.request_id, action.item_index, action.attempt), None)
        job = self.live.get(action.request_id)
        if job is not None and kind == "output":
            snapshot = self.dispatcher._requests._by_id[action.request_id]
            if snapshot.items[action.item_index].ended is None:
                self.output_comes(action, job)
        self.step(
            ResultArrived(
                now=self.now,
                request_id=action.request_id,
                item_index=action.item_index,
                attempt=action.attempt,
                pipeline=action.pipeline,
                generation=action.generation,
                outcome=outcome,
                size=size,
                stage_cpu_s=stage_cpu_s,
            )
        )

    def output_comes(self, action: Dispatch, job: Job) -> None:
        job.outputs.add(action.item_index)

    @rule(attempt=st.integers(-1, 5), index=st.integers(-1, 3), data=st.data())
    def nonsense_arrives(self, attempt: int, index: int, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from([*self.live, "never"]))
        event = ResultArrived(
            now=self.now,
            request_id=request_id,
            item_index=index,
            attempt=attempt,
            pipeline="elsewhere",
            generation=1,
            outcome=Output("nonsense"),
        )
        assert self.step(event) == []

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.5, 2.0, 11.0, 60.0]), tick=st.booleans())
    def time_passes(self, seconds: float, tick: bool) -> None:
        self.now += seconds
        if tick:
            self.tick()

    @rule()
    def wakes_up(self) -> None:
        at = self.dispatcher.next_wakeup()
        if at is not None:
            self.now = max(self.now, at)
            self.tick()

    def tick(self) -> None:
        self.step(Tick(self.now))
        at = self.dispatcher.next_wakeup()
        assert at is None or at > self.now

    @rule(model=MODELS)
    def model_is_served(self, model: str) -> None:
        self.served.add(model)
        self.step(ModelServed(self.now, model, self.cache_of(model)))

    def cache_of(self, model: str) -> CacheSettings | None:
        """What is kept of a model's answers."""
        del model
        return None

    @rule(model=MODELS)
    def model_is_stopped(self, model: str) -> None:
        if self.number % 4:  # less often
            return
        self.served.discard(model)
        for key in [key for key in self.active if key[0] == model]:
            del self.active[key]
            self.draining.add(key)
        self.step(ModelStopped(self.now, model))

    @rule(
        model=MODELS,
        which=PIPELINES,
        window=st.integers(1, 4),
        throughput_per_s=st.sampled_from([0.5, 10.0, 100.0]),
        micro_batch=MICRO_BATCHES,
    )
    def pipeline_is_activated(self, **drawn: Any) -> None:
        self.activate(**drawn)

    def activate(
        self,
        model: str,
        which: tuple[str, int],
        window: int,
        throughput_per_s: float,
        micro_batch: MicroBatchLimits = ALONE,
    ) -> None:
        key = (model, *which)
        self.most[key[:2]] = max(self.most.get(key[:2], 1), micro_batch.most)
        if model in self.served:
            window = max(
                window, self.active.get(key, 0)
            )  # a window does not shrink under its items
            if key in self.draining:
                window = 4
                self.draining.remove(key)
            self.active[key] = window
        self.step(
            PipelineActivated(
                now=self.now,
                model=model,
                pipeline=which[0],
                generation=which[1],
                num_stages=2,
                throughput_per_s=throughput_per_s,
                latency_s=0.1,
                window=window,
                identity=self.identity_of(key),
                micro_batch=micro_batch,
            )
        )

    def identity_of(self, key: tuple[str, str, int]) -> str:
        """Of what a pipeline runs."""
        del key
        return ""

    @rule(model=MODELS, which=PIPELINES)
    def pipeline_drains(self, model: str, which: tuple[str, int]) -> None:
        key = (model, *which)
        known = key in self.active or key in self.draining
        if self.active.pop(key, None) is not None:
            self.draining.add(key)
        actions = self.step(PipelineDraining(self.now, *key))
        if not known:
            assert actions == [PipelineDrained(*key)]

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), node=st.sampled_from([None, "n1", "n1", "n2"]))
    def item_progresses(self, data: st.DataObject, node: str | None) -> None:
        watched = [sent for sent in self.sent if sent.watched and sent.request_id in self.live]
        self.says(data.draw(st.sampled_from(watched or self.sent)), node)

    def says(self, action: Dispatch, node: str | None) -> None:
        self.places[action.request_id, action.item_index, action.attempt] = node
        event = ItemProgressed(
            now=self.now,
            request_id=action.request_id,
            item_index=action.item_index,
            attempt=action.attempt,
            pipeline=action.pipeline,
            generation=action.generation,
            node=node,
        )
        assert self.step(event) == []

    @rule(model=MODELS, which=PIPELINES, crashed=st.sampled_from([None, "n1", "n1", "n2"]))
    def pipeline_is_lost(self, model: str, which: tuple[str, int], crashed: str | None) -> None:
        key = (model, *which)
        self.active.pop(key, None)
        self.draining.discard(key)
        guilty: set[tuple[str, int]] = set()
        known = self.dispatcher._models.get(model)
        pipeline = None if known is None else known.pipelines.get(which)
        if crashed is not None and pipeline is not None:
            for item in {*pipeline.in_flight, *pipeline.given_up}:
                name = (item.request.request_id, item.index)
                before = self.crashes.get(name, 0)
                self.crashes[name] = before + 1
                places = [
                    self.places.get((*name, attempt))
                    for attempt, flight in enumerate(item.flights, 1)
                    if flight.pipeline is pipeline
                ]
                if before and crashed in places:
                    guilty.add(name)
        before_it = set(self.poisoned)
        self.step(PipelineLost(self.now, *key, crashed))
        self.judged(self.poisoned - before_it, guilty)

    def judged(self, condemned: set[tuple[str, int]], guilty: set[tuple[str, int]]) -> None:
        assert condemned == guilty, "who killed, and nobody beside it"

    @precondition(lambda self: any(self.held(key) for key in self.active))
    @rule(
        data=st.data(),
        says=st.sampled_from(["n1", "n1", "n2", None]),
        micro_batch=MICRO_BATCHES,
    )
    def node_dies_at_work(
        self, data: st.DataObject, says: str | None, micro_batch: MicroBatchLimits
    ) -> None:
        """It may have said what it computes; another takes its place."""
        holding = [key for key in sorted(self.active) if self.held(key)]
        watching = [key for key in holding if any(sent.watched for sent in self.held(key))]
        key = data.draw(st.sampled_from(watching or holding))
        watched = [sent for sent in self.held(key) if sent.watched]
        if watched:
            self.says(data.draw(st.sampled_from(watched)), says)
        window = self.active[key]
        self.pipeline_is_lost(key[0], key[1:], "n1")
        self.activate(key[0], key[1:], window, 10.0, micro_batch)

    def held(self, key: tuple[str, str, int]) -> list[Dispatch]:
        """The latest attempts at items that are not answered, where they went there."""
        latest = {(s.request_id, s.item_index): s for s in self.sent if s.request_id in self.live}
        return [s for s in latest.values() if (s.model, s.pipeline, s.generation) == key]

    @rule(model=MODELS, which=PIPELINES, nodes=st.lists(NODES, min_size=1, max_size=3))
    def telemetry_comes(self, model: str, which: tuple[str, int], nodes: list[NodeFigures]) -> None:
        assert self.step(PipelineFigures(self.now, model, *which, tuple(nodes))) == []

    @rule()
    def bus_reconnects(self) -> None:
        assert self.step(BusReconnected(self.now)) == []

    # --- promises -----------------------------------------------------------------------------

    @invariant()
    def inside_is_sound(self) -> None:
        check(self.dispatcher)

    @invariant()
    def books_agree(self) -> None:
        snapshot = self.dispatcher.snapshot()
        assert snapshot.live_requests == len(self.live)
        assert self.owed == {handle for job in self.live.values() for handle in job.handles}
        shown: dict[tuple[str, str, int], Any] = {
            (model.model, pipeline.pipeline, pipeline.generation): pipeline
            for model in snapshot.models
            for pipeline in model.pipelines
        }
        assert {key for key, load in shown.items() if not load.draining} == set(self.active)
        assert {key for key, load in shown.items() if load.draining} == self.draining
        for key, window in self.active.items():
            assert shown[key].window == window
            assert shown[key].in_flight <= window * self.most[key[:2]]

    def teardown(self) -> None:
        """Whatever happened: time alone ends every job with one answer."""
        for _ in range(1_000):
            at = self.dispatcher.next_wakeup()
            if at is None:
                break
            self.now = max(self.now, at)
            self.tick()
            check(self.dispatcher)
        assert self.dispatcher.next_wakeup() is None
        assert not self.live
        assert not self.owed
        check_nothing_left(self.dispatcher)
        self.now += SETTINGS.repeat_window_s
        self.tick()
        snapshot = self.dispatcher.snapshot()
        assert (snapshot.remembered_answers, snapshot.remembered_bytes) == (0, 0)
        assert not self.draining


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=int(os.environ.get("AMP4EC_TEST_EXAMPLES", "80")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

"""The result cache and single flight: random histories of equal inputs, and the cases that they rest on."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from orchestrator.core.dispatch import Dispatcher
from orchestrator.core.dispatch_events import (
    Action,
    Answer,
    Dispatch,
    EndedItem,
    Event,
    Failure,
    InputItem,
    ModelServed,
    Outcome,
    Output,
    PipelineActivated,
    PipelineDraining,
    PipelineLost,
    Reject,
    RequestArrived,
    ResultArrived,
    Tick,
)
from orchestrator.core.micro_batch import ALONE, MicroBatchLimits
from orchestrator.core.result_cache import (
    ENTRY_BYTES,
    LEAST_BYTES,
    Cached,
    CacheKey,
    CacheSettings,
    ResultCache,
    check_cache,
)
from shared.errors import ConfigurationError, ErrorCode
from tests.core.dispatch_checks import check, check_nothing_left
from tests.core.test_dispatch_history import MODELS, SETTINGS, Histories, Job

KEEP_S = 30.0
CACHE = CacheSettings(identity="A", max_bytes=10 * (ENTRY_BYTES + 7), max_entries=3, keep_s=KEEP_S)


class CachedHistories(Histories):
    """As `Histories`, where inputs are often equal, and models are replaced by others."""

    def __init__(self) -> None:
        super().__init__()
        self.identities: dict[str, str | None] = {}
        """By model: what is served, None without a cache."""
        self.runs: dict[tuple[str, str, int], str] = {}
        """By pipeline: what it runs."""
        self.ran_on: dict[tuple[str, int, int], str] = {}
        """By request, item and attempt: what the pipeline ran that it was sent to."""
        self.digests = [0, 1, 1, 2]
        """Of the inputs to come, in turn; 0 has no key."""
        self.keys: dict[object, CacheKey | None] = {}
        self.made: dict[object, tuple[str, float]] = {}
        """By output: what made it, and when."""

    # --- what is said to it

    def key_of(self, model: str, which: tuple[str, int]) -> CacheKey | None:
        self.digests.append(self.digests.pop(0))
        identity, digest = self.identities.get(model), self.digests[-1]
        key = None if identity is None or not digest else CacheKey(identity, bytes([digest]))
        self.keys[which] = key
        return key

    def cache_of(self, model: str) -> CacheSettings | None:
        identity = self.identities.setdefault(model, "A")
        return None if identity is None else replace(CACHE, identity=identity)

    def identity_of(self, key: tuple[str, str, int]) -> str:
        return self.runs.setdefault(key, self.identities.get(key[0]) or "off")

    def activate(
        self,
        model: str,
        which: tuple[str, int],
        window: int,
        throughput_per_s: float,
        micro_batch: MicroBatchLimits = ALONE,
    ) -> None:
        key = (model, *which)
        if key not in self.active and key not in self.draining:
            self.runs.pop(key, None)  # while it is there it runs what it ran
        super().activate(model, which, window, throughput_per_s, micro_batch)

    @rule(digests=st.lists(st.sampled_from([0, 1, 1, 1, 2, 2, 3, 4, 5]), min_size=1, max_size=4))
    def inputs_will_be(self, digests: list[int]) -> None:
        self.digests = digests

    @rule(model=MODELS, identity=st.sampled_from(["A", "A", "B", None]))
    def model_is_replaced(self, model: str, identity: str | None) -> None:
        self.identities[model] = identity
        self.model_is_served(model)

    # --- what it does

    def item_dispatched(self, action: Dispatch) -> None:
        super().item_dispatched(action)
        attempt = (action.request_id, action.item_index, action.attempt)
        self.ran_on[attempt] = self.runs[action.model, action.pipeline, action.generation]

    def dispatched_first(self, action: Dispatch, job: Job) -> None:
        """Those that were held come out of turn."""

    def judged(self, condemned: set[tuple[str, int]], guilty: set[tuple[str, int]]) -> None:
        assert condemned <= guilty, "an equal input ends with the first that is condemned"

    def output_comes(self, action: Dispatch, job: Job) -> None:
        super().output_comes(action, job)
        ran_on = self.ran_on[action.request_id, action.item_index, action.attempt]
        self.made[action.request_id, action.item_index] = (ran_on, self.now)

    def ended(self, job: Job, index: int, item: EndedItem) -> None:
        event, outcome = job.event, item.outcome
        which = (event.request_id, index)
        key = event.items[index].key
        if isinstance(outcome, Output):
            assert item.cached == (outcome.value != which)
            if not item.cached:
                assert index in job.outputs
                return
            assert key is not None, "nothing was asked to be shared"
            made_by, made_at = self.made[outcome.value]
            assert made_by == key.identity, "an answer of another model"
            assert event.now + item.latency_s - made_at < KEEP_S, "an answer that is too old"
            assert self.keys[outcome.value] == key
            return
        assert not item.cached
        assert index not in job.outputs
        match outcome.code:
            case ErrorCode.DEADLINE:
                assert event.deadline is not None
                assert event.deadline <= self.now, "another's deadline"
            case ErrorCode.SUPERSEDED:
                assert event.latest
            case ErrorCode.POISON:
                assert which in self.poisoned or key is not None

    def teardown(self) -> None:
        super().teardown()
        for model in self.dispatcher._models.values():
            assert not len(model.equals)


TestCachedHistories = CachedHistories.TestCase
TestCachedHistories.settings = settings(
    max_examples=int(os.environ.get("AMP4EC_TEST_EXAMPLES", "80")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class Bench:
    """A dispatcher with one model and, unless drained, one pipeline; `window` items in flight."""

    def __init__(self, window: int = 1, cache: CacheSettings | None = CACHE) -> None:
        self.dispatcher = Dispatcher(replace(SETTINGS, max_queued_items=4))
        self.now = 0.0
        self.number = 0
        self.do(ModelServed(0.0, "m", cache))
        self.activate(1, "A", window)

    def do(self, event: Event) -> list[Action]:
        actions = self.dispatcher.step(event)
        check(self.dispatcher)
        return actions

    def activate(self, generation: int, identity: str, window: int = 1) -> list[Action]:
        return self.do(
            PipelineActivated(
                now=self.now,
                model="m",
                pipeline="p",
                generation=generation,
                num_stages=1,
                throughput_per_s=10.0,
                latency_s=0.1,
                window=window,
                identity=identity,
            )
        )

    def ask(
        self,
        *digests: bytes,
        client: str = "x",
        priority: int = 5,
        allowed_s: float | None = None,
        latest: bool = False,
        identity: str = "A",
    ) -> list[Action]:
        """A request of inputs with these digests; it is named r1, r2, ..."""
        self.number += 1
        return self.do(
            RequestArrived(
                now=self.now,
                request_id=f"r{self.number}",
                model="m",
                reply_to=f"result/{client}",
                items=tuple(InputItem(d, 1, CacheKey(identity, d)) for d in digests),
                handle=self.number,
                deadline=None if allowed_s is None else self.now + allowed_s,
                client=client,
                priority=priority,
                latest=latest,
            )
        )

    def end(self, sent: Dispatch, outcome: Outcome | None = None) -> list[Action]:
        return self.do(
            ResultArrived(
                now=self.now,
                request_id=sent.request_id,
                item_index=sent.item_index,
                attempt=sent.attempt,
                pipeline=sent.pipeline,
                generation=sent.generation,
                outcome=Output(sent.payload, 4) if outcome is None else outcome,
            )
        )


def sent(actions: list[Action]) -> Dispatch:
    (action,) = actions
    assert isinstance(action, Dispatch)
    return action


def answers(actions: list[Action]) -> dict[str, list[tuple[object, bool]]]:
    """By request: what each item ended with (an output's value, a failure's code), and whether cached."""
    return {
        action.request_id: [
            (
                item.outcome.code if isinstance(item.outcome, Failure) else item.outcome.value,
                item.cached,
            )
            for item in action.items
        ]
        for action in actions
        if isinstance(action, Answer)
    }


def test_equal_requests_run_once_and_each_is_answered() -> None:
    bench = Bench(window=4)
    first = sent(bench.ask(b"1"))
    for client in ("x", "y", "z"):
        assert bench.ask(b"1", client=client) == []
    bench.now = 0.5
    ended = bench.end(first)
    assert answers(ended) == {
        "r1": [(b"1", False)],
        "r2": [(b"1", True)],
        "r3": [(b"1", True)],
        "r4": [(b"1", True)],
    }
    assert answers(bench.ask(b"1")) == {"r5": [(b"1", True)]}
    (load,) = bench.dispatcher.snapshot().models
    assert load.cache is not None
    assert (load.cache.hits, load.cache.joined, load.cache.misses) == (1, 3, 1)
    check_nothing_left(bench.dispatcher)


def test_a_cached_answer_names_the_pipeline_that_made_it() -> None:
    bench = Bench()
    bench.end(sent(bench.ask(b"1")))
    bench.do(PipelineLost(bench.now, "m", "p", 1))
    (answer,) = bench.ask(b"1")  # it needs no pipeline
    assert isinstance(answer, Answer)
    (item,) = answer.items
    assert (item.pipeline, item.generation, item.attempts, item.cached) == ("p", 1, 0, True)


def test_the_failure_of_the_run_is_everybodys() -> None:
    bench = Bench(window=4)
    first = sent(bench.ask(b"1"))
    bench.ask(b"1")
    bad = Failure(code=ErrorCode.BAD_INPUT, message="no image")
    bad_input = [(ErrorCode.BAD_INPUT, False)]
    assert answers(bench.end(first, bad)) == {"r1": bad_input, "r2": bad_input}
    assert sent(bench.ask(b"1")).request_id == "r3", "a failure is not kept"


def test_one_that_expires_takes_nobody_with_it() -> None:
    bench = Bench(window=4)
    bench.ask(b"1", allowed_s=1.0)
    bench.ask(b"1", client="y")
    bench.ask(b"1", client="z")
    bench.now = 1.0
    expired, again = bench.do(Tick(1.0))
    assert answers([expired]) == {"r1": [(ErrorCode.DEADLINE, False)]}
    assert isinstance(again, Dispatch)
    assert answers(bench.end(again)) == {"r2": [(b"1", False)], "r3": [(b"1", True)]}


def test_a_held_one_expires_alone() -> None:
    bench = Bench(window=4)
    first = sent(bench.ask(b"1"))
    bench.ask(b"1", allowed_s=1.0)
    bench.now = 1.0
    assert answers(bench.do(Tick(1.0))) == {"r2": [(ErrorCode.DEADLINE, False)]}
    assert answers(bench.end(first)) == {"r1": [(b"1", False)]}


def test_a_lost_run_is_made_again_once() -> None:
    bench = Bench(window=4)
    bench.ask(b"1")
    bench.ask(b"1")
    bench.do(PipelineLost(0.0, "m", "p", 1))
    again = sent(bench.activate(2, "A", window=4))
    assert answers(bench.end(again)) == {"r1": [(b"1", False)], "r2": [(b"1", True)]}


def test_priority_is_not_lost_behind_an_equal_input_that_waits() -> None:
    bench = Bench(window=1)
    first = sent(bench.ask(b"0"))
    bench.ask(b"1", client="slow", priority=0)
    bench.ask(b"2", client="slow", priority=5)
    bench.ask(b"1", client="quick", priority=9)
    answered, dispatch = bench.end(first)
    assert answers([answered]) == {"r1": [(b"0", False)]}
    assert sent([dispatch]).request_id == "r4"
    assert answers(bench.end(sent([dispatch]))) == {"r4": [(b"1", False)], "r2": [(b"1", True)]}


def test_equal_inputs_of_one_batch_run_once() -> None:
    bench = Bench(window=4)
    actions = bench.ask(b"1", b"2", b"1")
    assert [a.item_index for a in actions if isinstance(a, Dispatch)] == [0, 1]
    one, two = (a for a in actions if isinstance(a, Dispatch))
    assert bench.end(one) == []
    assert answers(bench.end(two)) == {"r1": [(b"1", False), (b"2", False), (b"1", True)]}
    assert answers(bench.ask(b"2", b"1")) == {"r2": [(b"2", True), (b"1", True)]}


def test_hits_need_no_room_in_a_full_queue() -> None:
    bench = Bench()
    bench.end(sent(bench.ask(b"0")))
    for digest in (b"1", b"2", b"3", b"4", b"5"):
        bench.ask(digest)
    assert isinstance(bench.ask(b"6")[0], Reject)
    assert answers(bench.ask(b"0")) == {"r8": [(b"0", True)]}


def test_no_more_are_held_than_may_wait() -> None:
    bench = Bench(window=2)
    bench.ask(b"1")
    for _ in range(4):
        assert bench.ask(b"1") == []
    assert sent(bench.ask(b"1")).request_id == "r6", "it runs, and is bounded as any other"


def test_a_replaced_model_is_not_answered_by_the_old_one() -> None:
    bench = Bench(window=4)
    bench.end(sent(bench.ask(b"1")))
    bench.do(ModelServed(bench.now, "m", replace(CACHE, identity="B")))
    # The old pipeline still serves: its answers are right until the new one is there, but not kept.
    old = sent(bench.ask(b"1", identity="B"))
    beside = sent(bench.ask(b"1", identity="B"))
    assert answers(bench.end(old)) == {"r2": [(b"1", False)]}
    bench.activate(2, "B")
    bench.do(PipelineDraining(bench.now, "m", "p", 1))
    new = sent(bench.ask(b"1", identity="B"))
    assert (new.generation, new.request_id) == (2, "r4")
    bench.end(beside)
    bench.end(new)
    assert answers(bench.ask(b"1", identity="B")) == {"r5": [(b"1", True)]}
    assert isinstance(bench.ask(b"1", identity="A")[0], Dispatch), "keyed for the old one"


def test_without_a_cache_equal_requests_all_run() -> None:
    bench = Bench(window=4, cache=None)
    assert [sent(bench.ask(b"1")).request_id for _ in range(3)] == ["r1", "r2", "r3"]


# --- the cache alone


def cached(size_bytes: int = 7) -> Cached:
    return Cached(Output(object(), size_bytes), "p", 1)


def key(number: int) -> CacheKey:
    return CacheKey("A", bytes([number]))


def test_the_least_recently_used_goes() -> None:
    cache = ResultCache(CACHE)
    for number in (1, 2, 3):
        cache.put(key(number), cached(), 0.0)
    assert cache.get(key(1), 1.0) is not None
    cache.put(key(4), cached(), 2.0)
    assert [cache.get(key(n), 3.0) is not None for n in (1, 2, 3, 4)] == [True, False, True, True]


@pytest.mark.parametrize(("at", "there"), [(KEEP_S - 0.001, True), (KEEP_S, False)])
def test_an_answer_expires_however_often_it_is_used(at: float, there: bool) -> None:
    cache = ResultCache(CACHE)
    cache.put(key(1), cached(), 0.0)
    assert cache.get(key(1), KEEP_S / 2) is not None
    assert (cache.get(key(1), at) is not None) == there
    assert len(cache) == there
    assert (cache.size_bytes > 0) == there


def test_a_cache_that_keeps_nothing_or_may_lie_is_refused() -> None:
    check_cache(0, 0.5)
    check_cache(LEAST_BYTES, 0.0)
    with pytest.raises(ConfigurationError, match="keeps nothing"):
        check_cache(LEAST_BYTES - 1, 0.0)
    with pytest.raises(ConfigurationError, match="rounding"):
        check_cache(LEAST_BYTES, 0.5)


def test_bytes_are_bounded_and_counted() -> None:
    cache = ResultCache(replace(CACHE, max_bytes=3 * ENTRY_BYTES))
    cache.put(key(1), cached(ENTRY_BYTES), 0.0)
    cache.put(key(2), cached(0), 0.0)
    assert cache.size_bytes == 3 * ENTRY_BYTES
    cache.put(key(3), cached(0), 0.0)
    assert cache.get(key(1), 0.0) is None
    assert cache.size_bytes == 2 * ENTRY_BYTES
    cache.put(key(4), cached(3 * ENTRY_BYTES), 0.0)
    assert len(cache) == 2, "what alone is too much drives nothing out"

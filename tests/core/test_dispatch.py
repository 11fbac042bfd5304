"""The dispatcher by table: one promise per test, events in, actions out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from orchestrator.core.dispatch import Dispatcher
from orchestrator.core.dispatch_events import (
    Acknowledge,
    Action,
    Answer,
    AnswerAgain,
    BusReconnected,
    Decided,
    Dispatch,
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
    PipelineLost,
    Poisoned,
    Reject,
    RequestArrived,
    ResultArrived,
    Tick,
)
from orchestrator.core.dispatch_settings import DispatchSettings
from orchestrator.core.scheduler_settings import SchedulerSettings
from shared.errors import ErrorCode
from tests.core.dispatch_checks import check, check_nothing_left

A = TypeVar("A")
RETRYABLE = Failure(code=ErrorCode.INTERNAL, message="stage 1 fell over", retryable=True)


class Bench:
    """A dispatcher with model `m` served, and short ways to say what happens. `now` is set by hand."""

    def __init__(self, *, pipelines: str = "", **settings: Any) -> None:
        self.core = Dispatcher(DispatchSettings(**settings))
        self.now = 0.0
        self.number = 0
        assert self.do(ModelServed(0.0, "m")) == []
        for pipeline in pipelines:
            self.activate(pipeline)

    def do(self, event: Any) -> list[Action]:
        actions = self.core.step(event)
        check(self.core)
        return actions

    def activate(
        self, pipeline: str, generation: int = 1, window: int | None = 2, rate: float = 100.0
    ) -> list[Action]:
        return self.do(
            PipelineActivated(
                now=self.now,
                model="m",
                pipeline=pipeline,
                generation=generation,
                num_stages=3,
                throughput_per_s=rate,
                latency_s=0.02,
                window=window,
            )
        )

    def ask(self, *sizes: int, within_s: float | None = None, **fields: Any) -> list[Action]:
        self.number += 1
        return self.do(
            RequestArrived(
                now=self.now,
                request_id=fields.pop("request_id", f"r{self.number}"),
                model=fields.pop("model", "m"),
                reply_to="result/me",
                items=tuple(InputItem(f"in{index}", size) for index, size in enumerate(sizes)),
                handle=fields.pop("handle", self.number),
                deadline=None if within_s is None else self.now + within_s,
                **fields,
            )
        )

    def result(self, of: Action, outcome: Outcome | None = None) -> list[Action]:
        assert isinstance(of, Dispatch)
        return self.do(
            ResultArrived(
                now=self.now,
                request_id=of.request_id,
                item_index=of.item_index,
                attempt=of.attempt,
                pipeline=of.pipeline,
                generation=of.generation,
                outcome=outcome or Output(f"out{of.item_index}", 100),
            )
        )

    def drain(self, pipeline: str, generation: int = 1) -> list[Action]:
        return self.do(PipelineDraining(self.now, "m", pipeline, generation))

    def lose(self, pipeline: str, generation: int = 1, crashed: str | None = None) -> list[Action]:
        return self.do(PipelineLost(self.now, "m", pipeline, generation, crashed))

    def computes(self, of: Action, node: str | None) -> None:
        """A stage says where a watched item is."""
        assert isinstance(of, Dispatch)
        event = ItemProgressed(
            now=self.now,
            request_id=of.request_id,
            item_index=of.item_index,
            attempt=of.attempt,
            pipeline=of.pipeline,
            generation=of.generation,
            node=node,
        )
        assert self.do(event) == []

    def stop(self) -> list[Action]:
        return self.do(ModelStopped(self.now, "m"))

    def wait(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.do(Tick(self.now))

    @property
    def counters(self) -> Any:
        return self.core.snapshot().counters


def one(actions: list[Action], kind: type[A]) -> A:
    (action,) = actions
    assert isinstance(action, kind)
    return action


def code(action: Action) -> ErrorCode:
    failure = action.failure if isinstance(action, Answer | Reject) else None
    assert failure is not None
    return failure.code


# --- the straight way -----------------------------------------------------------------------------


def test_a_job_from_request_to_answer() -> None:
    bench = Bench(pipelines="p")
    sent = one(bench.ask(500, job="j", context="c"), Dispatch)
    assert (sent.pipeline, sent.generation, sent.attempt) == ("p", 1, 1)
    assert (sent.payload, sent.size_bytes) == ("in0", 500)
    bench.now = 0.5
    answer = one(bench.result(sent), Answer)
    assert (answer.request_id, answer.reply_to, answer.job) == ("r1", "result/me", "j")
    assert (answer.context, answer.handles, answer.failure) == ("c", (1,), None)
    (item,) = answer.items
    assert item.outcome == Output("out0", 100)
    assert (item.queue_s, item.flight_s, item.latency_s, answer.latency_s) == (0.0, 0.5, 0.5, 0.5)
    check_nothing_left(bench.core)


def test_a_batch_is_one_answer_in_order() -> None:
    bench = Bench(pipelines="p")
    first, second = bench.ask(1, 1, 1)
    bench.now = 0.1
    third = one(bench.result(second), Dispatch)
    assert isinstance(third, Dispatch)
    assert third.item_index == 2
    bench.now = 0.3
    assert bench.result(third) == []
    answer = one(bench.result(first), Answer)
    assert [item.outcome for item in answer.items] == [Output(f"out{i}", 100) for i in range(3)]
    assert [item.queue_s for item in answer.items] == [0.0, 0.0, 0.1]
    assert [item.pipeline for item in answer.items] == ["p"] * 3


def test_a_window_bounds_what_is_in_flight() -> None:
    bench = Bench()
    bench.activate("p", window=None)
    sent = [action for _ in range(12) for action in bench.ask(1)]
    assert len(sent) == 8  # three stages
    load = bench.core.snapshot().models[0]
    assert (load.queued_items, load.queued_bytes, load.pipelines[0].in_flight) == (4, 4, 8)
    _, next_sent = bench.result(sent[0])
    assert isinstance(next_sent, Dispatch)
    assert next_sent.request_id == "r9"


def test_faster_pipelines_get_more() -> None:
    bench = Bench()
    bench.activate("slow", rate=10.0, window=8)
    bench.activate("fast", rate=30.0, window=8)
    sent = [one(bench.ask(1), Dispatch).pipeline for _ in range(8)]
    assert (sent.count("fast"), sent.count("slow")) == (6, 2)


def test_a_decision_is_explained_once_a_second_and_more_rarely_of_many() -> None:
    for pipelines, every_s in (("ab", 1.02), ("abcdefghij" * 10, 2.0)):
        bench = Bench()
        for number, name in enumerate(pipelines):
            bench.activate(f"{name}{number:03}")
        told = []
        for _ in range(40):
            (sent,) = bench.ask(1)
            bench.result(sent)
            decision = bench.core.snapshot().models[0].decision
            assert decision is not None
            told.append(decision.at)
            bench.now += 0.1
        gaps = [later - earlier for earlier, later in pairwise(sorted(set(told)))]
        assert gaps
        assert all(every_s <= gap < every_s + 0.11 for gap in gaps)


def test_each_decision_is_told_where_that_is_asked_for() -> None:
    bench = Bench(pipelines="pq", scheduling=SchedulerSettings(log_decisions=True))
    for _ in range(3):
        sent, decided = bench.ask(1)
        assert isinstance(sent, Dispatch)
        assert isinstance(decided, Decided)
        (chosen,) = [each for each in decided.decision.candidates if each.chosen]
        assert (chosen.pipeline, decided.request_id) == (sent.pipeline, sent.request_id)


def test_a_pipeline_that_stalls_is_left_before_its_window_is_full() -> None:
    bench = Bench()
    bench.activate("a", rate=100.0, window=8)
    bench.activate("b", rate=10.0, window=8)
    assert one(bench.ask(1), Dispatch).pipeline == "a"
    bench.now += 1.0  # 20 ms were planned
    assert one(bench.ask(1), Dispatch).pipeline == "b"


# --- refusals -------------------------------------------------------------------------------------


def test_unknown_model() -> None:
    bench = Bench()
    reject = one(bench.ask(1, model="n", handle="h"), Reject)
    assert (code(reject), reject.handle) == (ErrorCode.UNKNOWN_MODEL, "h")
    assert (reject.failure.expected, reject.failure.got) == ("'m'", "'n'")


@pytest.mark.parametrize(
    ("sizes", "expected", "got"),
    [
        ((5, 41), "at most 40 bytes", "41 bytes"),
        ((1,) * 7, "at most 6 inputs", "7 inputs"),
        ((40, 40, 40), "at most 100 bytes", "120 bytes"),
    ],
)
def test_too_large(sizes: tuple[int, ...], expected: str, got: str) -> None:
    bench = Bench(max_queued_items=6, max_queued_bytes=100, max_item_bytes=40)
    failure = one(bench.ask(*sizes), Reject).failure
    assert (failure.code, failure.expected, failure.got) == (ErrorCode.TOO_LARGE, expected, got)


def test_nothing_to_do_and_no_time_to_do_it() -> None:
    bench = Bench(pipelines="p")
    assert code(one(bench.ask(), Reject)) is ErrorCode.BAD_INPUT
    assert code(one(bench.ask(1, within_s=0.0), Reject)) is ErrorCode.DEADLINE
    assert bench.counters.rejected == {ErrorCode.BAD_INPUT: 1, ErrorCode.DEADLINE: 1}


def test_overload_says_when_to_come_back() -> None:
    bench = Bench(max_queued_items=10)
    for _ in range(10):
        assert bench.ask(1) == []
    reject = one(bench.ask(1, job="j"), Reject)
    assert code(reject) is ErrorCode.OVERLOADED
    assert reject.failure.retry_after_s == 60.0  # no pipeline: nothing is known
    sent = bench.activate("p", window=1, rate=4.0)
    bench.ask(1)
    assert one(bench.ask(1), Reject).failure.retry_after_s == 10 / 4.0  # predicted
    for _ in range(8):
        bench.now += 1.0
        answer, *sent = bench.result(sent[-1])
        assert isinstance(answer, Answer)
        bench.ask(1)
    retry_after_s = one(bench.ask(1), Reject).failure.retry_after_s
    assert retry_after_s == pytest.approx(10.0)  # measured: one a second
    # who was refused was not remembered
    bench.now += 1.0
    bench.result(sent[0])
    assert bench.ask(1, job="j") == []


def test_bytes_overload_too() -> None:
    bench = Bench(max_queued_bytes=100)
    bench.ask(60)
    assert code(one(bench.ask(60), Reject)) is ErrorCode.OVERLOADED
    assert bench.ask(40) == []


# --- repeats and redeliveries ---------------------------------------------------------------------


def test_a_repeat_in_work_shares_the_answer() -> None:
    bench = Bench(pipelines="p")
    sent = one(bench.ask(1, job="j"), Dispatch)
    assert bench.ask(1, job="j") == []
    assert one(bench.result(sent), Answer).handles == (1, 2)


def test_too_many_repeats_are_acknowledged_at_once() -> None:
    bench = Bench(pipelines="p", max_held_repeats=1)
    sent = one(bench.ask(1, job="j"), Dispatch)
    bench.ask(1, job="j")
    assert bench.ask(1, job="j") == [Acknowledge(3)]
    assert one(bench.result(sent), Answer).handles == (1, 2)


def test_a_repeat_after_the_answer_gets_it_again_for_ten_minutes() -> None:
    bench = Bench(pipelines="p")
    answer = one(bench.result(bench.ask(1, job="j", context="first")[0]), Answer)
    bench.now = 599.0
    again = one(bench.ask(1, job="j", context="second"), AnswerAgain)
    assert (again.first.items, again.first.request_id) == (answer.items, "r1")
    assert (again.context, again.handle, again.first.handles) == ("second", 2, ())
    bench.now = 600.0
    one(bench.ask(1, job="j"), Dispatch)


def test_without_a_job_nothing_is_a_repeat() -> None:
    bench = Bench(pipelines="p")
    bench.ask(1)
    one(bench.ask(1), Dispatch)


def test_a_redelivery_replaces_the_handle() -> None:
    bench = Bench(pipelines="p")
    sent = one(bench.ask(1, delivery=(1, 7), handle="old"), Dispatch)
    assert bench.ask(1, delivery=(1, 7), handle="new") == []
    assert one(bench.result(sent), Answer).handles == ("new",)
    one(bench.ask(1, delivery=(1, 7)), Dispatch)  # acknowledged: the id is free again
    assert bench.counters.redelivered == 1


def test_a_request_id_is_used_once() -> None:
    bench = Bench()
    bench.ask(1, request_id="r")
    with pytest.raises(ValueError, match="request_id"):
        bench.ask(1, request_id="r")


# --- failures and retries -------------------------------------------------------------------------


def test_the_clients_fault_ends_the_job() -> None:
    bench = Bench(pipelines="p")
    failure = Failure(code=ErrorCode.BAD_INPUT, message="truncated", expected="a JPEG", got="text")
    answer = one(bench.result(bench.ask(1)[0], failure), Answer)
    assert answer.failure == failure
    assert bench.counters.failed == {ErrorCode.BAD_INPUT: 1}


def test_a_stages_fault_is_tried_again_up_to_max_attempts() -> None:
    bench = Bench(pipelines="p", max_attempts=3)
    sent = one(bench.ask(1), Dispatch)
    for attempt in (2, 3):
        sent = one(bench.result(sent, RETRYABLE), Dispatch)
        assert sent.attempt == attempt
    answer = one(bench.result(sent, RETRYABLE), Answer)
    assert code(answer) is ErrorCode.INTERNAL
    assert answer.items[0].attempts == 3
    assert "3 attempts" in (answer.failure.message if answer.failure else "")


def test_a_retry_prefers_a_pipeline_that_works() -> None:
    bench = Bench()
    bench.activate("bad", rate=100.0)
    bench.activate("good", rate=1.0)
    sent = one(bench.ask(1), Dispatch)
    assert sent.pipeline == "bad"
    again = one(bench.result(sent, RETRYABLE), Dispatch)
    assert again.pipeline == "good"


def test_a_timeout_runs_it_again_and_the_first_result_wins() -> None:
    bench = Bench(pipelines="pq")
    sent = one(bench.ask(1), Dispatch)
    assert bench.core.next_wakeup() == 3.0
    assert bench.wait(2.9) == []
    again = one(bench.wait(0.1), Dispatch)
    assert (sent.pipeline, again.pipeline, again.attempt) == ("p", "q", 2)
    bench.now = 3.5
    answer = one(bench.result(sent), Answer)
    assert (answer.items[0].pipeline, answer.items[0].flight_s) == ("p", 3.5)
    assert bench.result(again) == []
    assert bench.counters.unknown_results == 1


def test_the_times_are_those_of_the_attempt_that_won() -> None:
    bench = Bench()
    bench.activate("p", window=1)
    sent = one(bench.ask(1), Dispatch)
    bench.drain("p")
    bench.wait(3.0)  # overdue, and nowhere to go
    bench.now = 5.0
    item = one(bench.result(sent), Answer).items[0]
    assert (item.queue_s, item.flight_s, item.latency_s) == (0.0, 5.0, 5.0)


def test_a_late_failure_of_an_attempt_given_up_counts_for_nothing() -> None:
    bench = Bench(pipelines="p")
    sent = one(bench.ask(1), Dispatch)
    again = one(bench.wait(3.0), Dispatch)
    assert bench.result(sent, RETRYABLE) == []
    one(bench.result(again), Answer)


def test_timeouts_double_and_end_in_unavailable() -> None:
    bench = Bench(pipelines="p")
    bench.ask(1)
    one(bench.wait(3.0), Dispatch)
    one(bench.wait(6.0), Dispatch)
    assert bench.wait(11.9) == []
    assert code(one(bench.wait(0.1), Answer)) is ErrorCode.UNAVAILABLE


def test_a_slow_pipeline_is_given_more_time() -> None:
    bench = Bench()
    bench.activate("p", window=2, rate=0.5)
    bench.ask(1)
    assert bench.core.next_wakeup() == pytest.approx(10 * (0.02 + 2 / 0.5))


def test_duplicates_in_a_batch_are_dropped() -> None:
    bench = Bench(pipelines="p")
    first, _ = bench.ask(1, 1)
    assert bench.result(first) == []
    assert bench.result(first) == []
    assert bench.counters.duplicate_results == 1


# --- deadlines ------------------------------------------------------------------------------------


def test_a_deadline_passes_once_wherever_the_items_are() -> None:
    bench = Bench()
    bench.activate("p", window=1)
    sent = one(bench.ask(1, 1, within_s=0.5), Dispatch)
    assert bench.core.next_wakeup() == 0.5
    answer = one(bench.wait(0.5), Answer)
    assert code(answer) is ErrorCode.DEADLINE
    got = [item.outcome.got for item in answer.items if isinstance(item.outcome, Failure)]
    assert got == ["in flight after 0.500 s", "waiting after 0.500 s"]
    assert bench.result(sent) == []
    check_nothing_left(bench.core)


def test_what_is_done_before_the_deadline_keeps_its_result() -> None:
    bench = Bench(pipelines="p")
    first, _ = bench.ask(1, 1, within_s=0.5)
    bench.result(first)
    outcomes = [item.outcome for item in one(bench.wait(1.0), Answer).items]
    assert outcomes[0] == Output("out0", 100)
    assert isinstance(outcomes[1], Failure)


def test_a_result_before_the_tick_wins() -> None:
    bench = Bench(pipelines="p")
    sent = one(bench.ask(1, within_s=0.5), Dispatch)
    bench.now = 0.6
    assert one(bench.result(sent), Answer).failure is None


def test_nothing_is_sent_after_its_deadline() -> None:
    bench = Bench()
    bench.activate("p", window=1)
    sent = one(bench.ask(1), Dispatch)
    bench.ask(1, within_s=0.5)
    bench.ask(1)
    bench.now = 1.0
    first, expired, follower = bench.result(sent)
    assert isinstance(first, Answer)
    assert code(expired) is ErrorCode.DEADLINE
    assert isinstance(follower, Dispatch)
    assert follower.request_id == "r3"


# --- pipelines and models -------------------------------------------------------------------------


def test_jobs_wait_for_a_pipeline_and_then_give_up() -> None:
    bench = Bench(unserved_limit_s=60.0)
    bench.ask(1)
    bench.now = 20.0
    bench.ask(1)
    assert bench.core.next_wakeup() == 60.0
    assert code(one(bench.wait(40.0), Answer)) is ErrorCode.UNAVAILABLE
    assert one(bench.activate("p"), Dispatch).request_id == "r2"


@pytest.mark.parametrize("end", [Bench.lose, Bench.drain])
def test_waiting_counts_from_when_the_last_pipeline_went(
    end: Callable[[Bench, str], list[Action]],
) -> None:
    bench = Bench(pipelines="p", unserved_limit_s=10.0)
    bench.activate("p", window=1)
    bench.now = 2.0
    bench.ask(1, 1)
    bench.now = 5.0
    end(bench, "p")
    # 15 s at the latest; an item in flight in a draining pipeline has its own time
    assert [code(action) for action in bench.wait(9.9) if isinstance(action, Answer)] == []
    bench.wait(0.1)
    assert bench.core.snapshot().models[0].queued_items == 0


def test_a_draining_pipeline_is_passed_over_even_when_it_is_the_fastest() -> None:
    bench = Bench()
    bench.activate("old", rate=1000.0, window=8)
    bench.ask(1)
    bench.activate("new", rate=1.0)
    bench.drain("old")
    assert one(bench.ask(1), Dispatch).pipeline == "new"


def test_a_lost_pipelines_items_go_first_and_in_order() -> None:
    bench = Bench(pipelines="p")
    bench.ask(1)
    bench.ask(1)
    bench.ask(1)
    assert bench.lose("p") == []
    bench.now = 1.0
    sent = bench.activate("p", generation=2, window=3)
    assert [(s.request_id, s.attempt, s.generation) for s in sent if isinstance(s, Dispatch)] == [
        ("r1", 2, 2),
        ("r2", 2, 2),
        ("r3", 1, 2),
    ]
    assert one(bench.result(sent[0]), Answer).items[0].queue_s == 1.0


def test_an_item_that_every_pipeline_dies_of_comes_to_an_end() -> None:
    bench = Bench(max_losses=3)
    bench.ask(1)
    for generation in (1, 2):
        one(bench.activate("p", generation), Dispatch)
        assert bench.lose("p", generation) == []
    one(bench.activate("p", 3), Dispatch)
    assert code(one(bench.lose("p", 3), Answer)) is ErrorCode.UNAVAILABLE


def test_draining_lets_what_flies_finish_and_takes_nothing_new() -> None:
    bench = Bench(pipelines="p")
    sent = one(bench.ask(1), Dispatch)
    assert bench.drain("p") == []
    assert bench.ask(1) == []
    assert one(bench.activate("p", 2), Dispatch).generation == 2
    answer, drained = bench.result(sent)
    assert isinstance(answer, Answer)
    assert drained == PipelineDrained("m", "p", 1)
    assert bench.drain("p", 1) == [drained]  # asked again, said again


def test_a_draining_pipeline_may_come_back() -> None:
    bench = Bench(pipelines="p")
    bench.ask(1)
    bench.drain("p")
    assert bench.ask(1) == []
    one(bench.activate("p"), Dispatch)


def test_stopping_a_model() -> None:
    bench = Bench()
    bench.activate("p", window=1)
    sent = one(bench.ask(1), Dispatch)
    bench.ask(1)
    assert code(one(bench.stop(), Answer)) is ErrorCode.UNAVAILABLE
    assert code(one(bench.ask(1), Reject)) is ErrorCode.UNKNOWN_MODEL
    assert bench.activate("q") == []  # too late
    assert bench.counters.stray_events == 1
    answer, drained = bench.result(sent)
    assert isinstance(answer, Answer)
    assert drained == PipelineDrained("m", "p", 1)
    assert bench.core.snapshot().models == ()
    assert bench.stop() == []


def test_what_fails_after_the_stop_is_not_tried_again() -> None:
    bench = Bench(pipelines="p")
    sent = one(bench.ask(1), Dispatch)
    bench.stop()
    answer, drained = bench.result(sent, RETRYABLE)
    assert code(answer) is ErrorCode.UNAVAILABLE
    assert isinstance(drained, PipelineDrained)


def test_serving_again_while_stopping() -> None:
    bench = Bench(pipelines="p")
    bench.ask(1)
    bench.stop()
    bench.do(ModelServed(bench.now, "m"))
    assert bench.ask(1) == []
    one(bench.activate("p", 2), Dispatch)


def test_figures_of_a_pipeline_that_make_no_sense() -> None:
    bench = Bench()
    with pytest.raises(ValueError, match="window"):
        bench.activate("p", window=0)
    with pytest.raises(ValueError, match="throughput"):
        bench.activate("p", rate=float("inf"))


# --- the bus --------------------------------------------------------------------------------------


# --- items that nodes die of ----------------------------------------------------------------------


def test_what_two_nodes_died_of_is_set_aside_and_those_beside_it_go_on() -> None:
    """`p` and `q` hold two each: the poison and its neighbours die with `p`, the poison alone kills `q`."""
    bench = Bench(pipelines="pq")
    first, second = bench.ask(1, job="bad"), bench.ask(1)
    lot = [one(each, Dispatch) for each in (first, second, bench.ask(1), bench.ask(1))]
    assert not any(sent.watched for sent in lot), "nobody is watched before anything happened"
    on_p = [sent for sent in lot if sent.pipeline == "p"]
    poison, beside = on_p
    for sent in lot:
        if sent.pipeline == "q":
            bench.result(sent)
    again = bench.lose("p", crashed="n1")
    assert [(d.request_id, d.watched) for d in again if isinstance(d, Dispatch)] == [
        (poison.request_id, True),
        (beside.request_id, True),
    ], "both at once, and both may have done it"
    bad, good = again
    bench.computes(bad, "n2")
    bench.activate("r")
    aside, answer, resent = bench.lose("q", crashed="n2")
    assert isinstance(aside, Poisoned)
    assert (aside.request_id, aside.nodes) == (poison.request_id, ("n1", "n2"))
    assert isinstance(answer, Answer)
    assert (answer.job, code(answer), answer.is_final) == ("bad", ErrorCode.POISON, True)
    assert isinstance(resent, Dispatch)
    assert resent.request_id == beside.request_id
    assert one(bench.result(resent), Answer).failure is None
    assert isinstance(good, Dispatch)
    again_asked = one(bench.ask(1, job="bad"), AnswerAgain)
    assert code(again_asked.first) == ErrorCode.POISON, (
        "who asks again is told, and nothing is tried"
    )
    assert bench.counters.poisoned == 1


@pytest.mark.parametrize(
    "where", [None, "n1", "n3"], ids=["between two nodes", "where it was before", "beside it"]
)
def test_a_watched_item_that_the_dead_node_did_not_compute_is_not_blamed(
    where: str | None,
) -> None:
    bench = Bench(pipelines="p")
    bench.ask(1)
    bench.activate("q")
    sent = one(bench.lose("p", crashed="n1"), Dispatch)
    bench.computes(sent, "n2")
    bench.computes(sent, where)
    bench.activate("r")
    again = one(bench.lose("q", crashed="n2"), Dispatch)
    assert again.watched
    assert one(bench.result(again), Answer).failure is None


def test_what_was_given_up_is_still_watched_where_it_may_be_computed() -> None:
    """A deadly item that takes long is overdue first, and runs elsewhere when the node dies of it."""
    bench = Bench(pipelines="p")
    bench.ask(1)
    bench.activate("q")
    elsewhere = one(bench.wait(10.0), Dispatch)
    assert (elsewhere.pipeline, elsewhere.watched) == ("q", False)
    assert bench.lose("p", crashed="n1") == []
    bench.activate("r")
    third = one(bench.wait(20.0), Dispatch)
    assert (third.pipeline, third.watched) == ("r", True)
    bench.computes(third, "n3")
    bench.activate("s")
    assert bench.lose("q", crashed="n2") == [], "it may have been, and nobody knows"
    aside, answer = bench.lose("r", crashed="n3")
    assert isinstance(aside, Poisoned)
    assert aside.nodes == ("n1", "n2", "n3")
    assert code(answer) == ErrorCode.POISON


def test_who_leaves_with_a_word_makes_no_suspects() -> None:
    bench = Bench(pipelines="p")
    bench.ask(1)
    bench.activate("q")
    assert not one(bench.lose("p"), Dispatch).watched


def test_losses_are_bounded_also_where_nobody_ever_says_what_it_computes() -> None:
    bench = Bench(max_losses=3, pipelines="p")
    bench.ask(1)
    for pipeline, after in ("pq", "qr"):
        bench.activate(after)
        bench.lose(pipeline, crashed="n")
    assert code(one(bench.lose("r", crashed="n"), Answer)) == ErrorCode.UNAVAILABLE


def test_after_a_reconnection_what_may_be_lost_is_sent_again_soon_and_once() -> None:
    bench = Bench(pipelines="p", max_attempts=1)
    bench.ask(1)
    bench.now = 0.5
    fresh = one(bench.ask(1), Dispatch)
    assert bench.do(BusReconnected(0.51)) == []
    assert bench.core.next_wakeup() == 1.51
    bench.now = 1.0
    again = one(bench.wait(0.51), Dispatch)
    assert (again.request_id, again.attempt) == ("r1", 2)  # and no fault was counted
    assert again.request_id != fresh.request_id
    assert bench.core.next_wakeup() == 3.5  # of the fresh one: its ordinary time


def test_a_fault_after_a_reconnection_is_a_fault_again() -> None:
    bench = Bench(pipelines="p", max_attempts=1)
    bench.ask(1)
    bench.do(BusReconnected(0.5))
    one(bench.wait(1.5), Dispatch)
    assert code(one(bench.wait(3.0), Answer)) is ErrorCode.UNAVAILABLE


def test_a_reconnection_never_puts_a_retry_off() -> None:
    bench = Bench(pipelines="p")
    bench.ask(1)
    bench.do(BusReconnected(2.5))
    assert bench.core.next_wakeup() == 3.0


def test_a_result_after_the_reconnection_needs_no_second_attempt() -> None:
    bench = Bench(pipelines="p")
    sent = one(bench.ask(1), Dispatch)
    bench.do(BusReconnected(0.5))
    bench.now = 0.9
    one(bench.result(sent), Answer)
    assert bench.wait(5.0) == []


def test_results_of_nothing_we_know_are_counted() -> None:
    bench = Bench(pipelines="p")
    sent = one(bench.ask(1), Dispatch)
    for field, value in [("request_id", "?"), ("item_index", 1), ("attempt", 2), ("pipeline", "x")]:
        fields = {
            "request_id": sent.request_id,
            "item_index": 0,
            "attempt": 1,
            "pipeline": "p",
            field: value,
        }
        event = ResultArrived(now=0.1, generation=1, outcome=Output("?"), **fields)  # type: ignore[arg-type]
        assert bench.do(event) == []
    assert bench.counters.unknown_results == 4


def test_the_snapshot_shows_measured_figures() -> None:
    bench = Bench(pipelines="p")
    for _ in range(3):
        sent = one(bench.ask(1), Dispatch)
        bench.now += 0.25
        bench.result(sent)
    (load,) = bench.core.snapshot().models[0].pipelines
    assert load.flight_s == pytest.approx(0.25)
    assert load.rate_per_s == pytest.approx(4.0)
    counters = bench.counters
    assert (counters.accepted, counters.answered, counters.dispatched) == (3, 3, 3)

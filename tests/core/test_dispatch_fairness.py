"""Overload, by table: who waits for whom, who gives way to whom, and that each gets one answer."""

from __future__ import annotations

import pytest

from orchestrator.core.dispatch_events import Action, Answer, AnswerAgain, Dispatch, Reject
from shared.errors import ErrorCode
from tests.core.dispatch_checks import check_nothing_left
from tests.core.test_dispatch import RETRYABLE, Bench, code, one


def sent_to(actions: list[Action]) -> list[str]:
    return [action.request_id for action in actions if isinstance(action, Dispatch)]


def drain(bench: Bench, actions: list[Action]) -> list[str]:
    """Serve all there is, one at a time; the requests in the order in which they were sent."""
    order = sent_to(actions)
    todo = [action for action in actions if isinstance(action, Dispatch)]
    while todo:
        bench.now += 0.1
        more = bench.result(todo.pop(0))
        order += sent_to(more)
        todo += [action for action in more if isinstance(action, Dispatch)]
    return order


def test_clients_take_turns() -> None:
    bench = Bench()
    for number in range(4):
        bench.ask(1, client="flood", request_id=f"f{number}")
    bench.ask(1, client="b", request_id="b0")
    bench.ask(1, client="c", request_id="c0")
    bench.ask(1, client="b", request_id="b1")
    order = drain(bench, bench.activate("p", window=1))
    assert order == ["f0", "b0", "c0", "f1", "b1", "f2", "f3"]


@pytest.mark.parametrize("num_flooding", [1, 3])
def test_a_polite_client_waits_for_one_turn_of_each_other(num_flooding: int) -> None:
    """However much the others have waiting: beside n of them at most n items go first."""
    bench = Bench(max_queued_items=60)
    (flying,) = [a for a in bench.activate("p", window=1) + bench.ask(1) if isinstance(a, Dispatch)]
    for _ in range(100):
        for flooding in range(num_flooding):
            bench.ask(1, client=f"flood{flooding}")
    for polite in range(30):
        (mine,) = {f"polite{polite}"}
        assert not [
            a for a in bench.ask(1, client="polite", request_id=mine) if isinstance(a, Reject)
        ]
        before = 0
        while flying.request_id != mine:
            bench.now += 0.1
            answer, sent = bench.result(flying)
            assert isinstance(answer, Answer)
            assert isinstance(sent, Dispatch)
            flying = sent
            before += flying.request_id != mine
            bench.ask(1, client="flood0")
        assert before <= num_flooding


def test_who_has_less_pushes_out_the_newest_of_who_has_most() -> None:
    bench = Bench(max_queued_items=4)
    for number in range(4):
        bench.ask(1, client="flood", job=f"f{number}", request_id=f"f{number}")
    pushed = one(bench.ask(1, client="b", request_id="b0"), Answer)
    assert (pushed.request_id, code(pushed)) == ("f3", ErrorCode.OVERLOADED)
    assert pushed.handles == (4,)
    assert pushed.failure is not None
    assert pushed.failure.retry_after_s == 60.0  # no pipeline: nothing is known
    assert one(bench.ask(1, client="b", request_id="b1"), Answer).request_id == "f2"
    assert code(one(bench.ask(1, client="b"), Reject)) is ErrorCode.OVERLOADED
    assert code(one(bench.ask(1, client="flood"), Reject)) is ErrorCode.OVERLOADED
    assert one(bench.ask(1, client="c", request_id="c0"), Answer).request_id == "f1"
    assert bench.counters.failed == {ErrorCode.OVERLOADED: 3}
    assert drain(bench, bench.activate("p", window=1)) == ["f0", "b0", "c0", "b1"]
    check_nothing_left(bench.core)


def test_who_was_pushed_out_may_come_back_with_the_same_job() -> None:
    bench = Bench(max_queued_items=2)
    bench.ask(1, client="flood", job="f0")
    bench.ask(1, client="flood", job="f1")
    assert code(one(bench.ask(1, client="b"), Answer)) is ErrorCode.OVERLOADED
    (first, *_) = bench.activate("p", window=2)
    assert bench.ask(1, client="flood", job="f1") == []
    answer, *_ = bench.result(first)
    assert isinstance(answer, Answer)
    assert one(bench.ask(1, client="flood", job="f0"), AnswerAgain).first.failure is None


def test_a_batch_pushes_out_as_much_as_it_needs_or_nothing() -> None:
    bench = Bench(max_queued_items=6)
    for number in range(6):
        bench.ask(1, client="flood", request_id=f"f{number}")
    assert one(bench.ask(1, 1, 1, 1, client="b"), Reject)
    pushed = bench.ask(1, 1, 1, client="b")
    assert [a.request_id for a in pushed if isinstance(a, Answer)] == ["f5", "f4", "f3"]
    assert bench.core.snapshot().models[0].queued_items == 6


def test_an_item_of_a_batch_that_is_pushed_out_is_one_error_in_its_answer() -> None:
    bench = Bench(max_queued_items=3)
    bench.ask(1, 1, 1, client="flood")
    assert bench.ask(1, client="b", request_id="b") == []
    sent = [a for a in bench.activate("p", window=3) if isinstance(a, Dispatch)]
    assert [(a.request_id, a.item_index) for a in sent] == [("r1", 0), ("b", 0), ("r1", 1)]
    answers = [bench.result(action) for action in sent]
    (answer,) = answers[2]
    assert isinstance(answer, Answer)
    assert [item.pipeline for item in answer.items] == ["p", "p", None]
    assert code(answer) is ErrorCode.OVERLOADED


def test_bytes_are_shared_by_bytes() -> None:
    bench = Bench(max_queued_bytes=100)
    bench.ask(70, client="large", request_id="large")
    for number in range(3):
        bench.ask(10, client="small", request_id=f"s{number}")
    assert one(bench.ask(40, client="b"), Reject)  # nothing of `large` would be left
    assert bench.ask(0, client="b") == []
    bench = Bench(max_queued_bytes=100)
    for number in range(3):
        bench.ask(30, client="large", request_id=f"l{number}")
    for number in range(5):
        bench.ask(2, client="small", request_id=f"s{number}")
    assert one(bench.ask(20, client="b"), Answer).request_id == "l2"


def test_what_runs_again_gives_way_to_nobody() -> None:
    bench = Bench(max_queued_items=2)
    bench.activate("p", window=2)
    bench.ask(1, client="flood")
    bench.ask(1, client="flood")
    bench.ask(1, client="flood")
    bench.lose("p")
    assert bench.core.snapshot().models[0].queued_items == 3
    assert one(bench.ask(1, client="b"), Reject)


# --- priorities -----------------------------------------------------------------------------------


def test_higher_goes_first_and_clients_take_turns_within_a_priority() -> None:
    bench = Bench()
    for name, client, priority in [
        ("low", "a", 0),
        ("a0", "a", 5),
        ("a1", "a", 5),
        ("b0", "b", 5),
        ("high-b", "b", 9),
        ("high-a", "a", 9),
    ]:
        bench.ask(1, client=client, priority=priority, request_id=name)
    order = drain(bench, bench.activate("p", window=1))
    assert order == ["high-b", "high-a", "a0", "b0", "a1", "low"]


def test_one_turn_in_eight_goes_below_the_highest() -> None:
    """To the one that has waited longest, so a flood of high priority starves nobody."""
    bench = Bench()
    bench.ask(1, client="b", priority=2, request_id="low0")
    bench.ask(1, client="c", priority=4, request_id="low1")
    for number in range(40):
        bench.ask(1, client="flood", priority=9, request_id=f"f{number}")
    order = drain(bench, bench.activate("p", window=1))
    assert (order.index("low0"), order.index("low1")) == (7, 15)


def test_a_client_pushes_out_its_own_less_important_jobs() -> None:
    bench = Bench(max_queued_items=3)
    for number, priority in enumerate([5, 1, 1]):
        bench.ask(1, client="a", priority=priority, request_id=f"a{number}")
    assert one(bench.ask(1, client="a", priority=1), Reject)
    assert one(bench.ask(1, client="a", priority=6), Answer).request_id == "a2"
    assert one(bench.ask(1, client="a", priority=6), Answer).request_id == "a1"
    assert one(bench.ask(1, client="a", priority=5), Reject)


def test_a_high_priority_takes_no_room_from_who_has_less() -> None:
    bench = Bench(max_queued_items=4)
    for number in range(2):
        bench.ask(1, client="polite", priority=0)
        bench.ask(1, client="flood", priority=9, request_id=f"f{number}")
    assert one(bench.ask(1, client="flood", priority=9), Reject)
    assert one(bench.ask(1, client="c", priority=0), Answer).failure


# --- the newest frame wins ------------------------------------------------------------------------


def test_only_the_newest_frame_waits() -> None:
    bench = Bench()
    (flying,) = bench.activate("p", window=1) + bench.ask(1, client="cam", latest=True)
    bench.ask(1, client="cam", request_id="still")  # lossless: none of its business
    assert bench.ask(1, client="cam", latest=True, job="old") == []
    assert bench.ask(1, client="other", latest=True, request_id="other") == []
    old = one(bench.ask(1, client="cam", latest=True, request_id="new"), Answer)
    assert (old.job, code(old)) == ("old", ErrorCode.SUPERSEDED)
    again = one(bench.ask(1, client="cam", latest=True, job="old"), AnswerAgain)
    assert again.first.items == old.items
    assert drain(bench, [flying])[1:] == ["still", "other", "new"]
    assert bench.counters.failed == {ErrorCode.SUPERSEDED: 1}
    check_nothing_left(bench.core)


def test_a_camera_keeps_its_turn_however_fast_its_frames_come() -> None:
    bench = Bench(max_queued_items=50)
    (flying,) = bench.activate("p", window=1) + bench.ask(1, client="flood")
    for _ in range(20):
        bench.ask(1, client="flood")
        bench.ask(1, client="crowd")
    served = 0
    for number in range(12):
        for _ in range(3):
            bench.ask(1, client="cam", latest=True, request_id=f"frame{number}-{bench.number}")
        bench.now += 0.1
        _, flying = bench.result(flying)
        assert isinstance(flying, Dispatch)
        served += flying.request_id.startswith("frame")
    assert served == 4  # one turn in three


def test_a_frame_that_has_to_run_again_is_dropped_when_a_newer_one_came() -> None:
    bench = Bench()
    (first,) = bench.activate("p", window=1) + bench.ask(1, client="cam", latest=True)
    bench.ask(1, client="cam", latest=True, request_id="new")
    answer, sent = bench.result(first, RETRYABLE)
    assert isinstance(answer, Answer)
    assert code(answer) is ErrorCode.SUPERSEDED
    assert sent_to([sent]) == ["new"]
    again = one(bench.result(sent, RETRYABLE), Dispatch)  # it is the newest
    assert one(bench.result(again), Answer).failure is None
    check_nothing_left(bench.core)


def test_a_frame_takes_the_room_of_the_one_that_it_replaces() -> None:
    bench = Bench(max_queued_items=2)
    bench.ask(1, client="a")
    bench.ask(1, client="cam", latest=True, priority=0)
    newer = one(bench.ask(1, client="cam", latest=True), Answer)
    assert (newer.request_id, code(newer)) == ("r2", ErrorCode.SUPERSEDED)
    # refused, it replaces nothing
    assert one(bench.ask(1, 1, client="cam", latest=True), Reject)
    assert code(one(bench.ask(1, client="cam", latest=True), Answer)) is ErrorCode.SUPERSEDED


def test_of_a_batch_what_waits_is_superseded() -> None:
    bench = Bench()
    (first,) = bench.activate("p", window=1) + bench.ask(1, 1, 1, client="cam", latest=True)
    assert bench.ask(1, client="cam", latest=True, request_id="new") == []
    answer, sent = bench.result(first)
    assert isinstance(answer, Answer)
    assert [item.pipeline for item in answer.items] == ["p", None, None]
    assert sent_to([sent]) == ["new"]

"""Items that travel together, by table: one message, one credit, each its own outcome."""

from __future__ import annotations

from orchestrator.core.dispatch_events import (
    Action,
    Answer,
    Companion,
    Dispatch,
    Failure,
    Output,
    PipelineActivated,
    Poisoned,
)
from orchestrator.core.micro_batch import MOST_BYTES, MicroBatchLimits
from shared.errors import ErrorCode
from tests.core.test_dispatch import RETRYABLE, Bench, one


def bench(size: int = 4, window: int = 2) -> Bench:
    made = Bench()
    activate(made, size, window)
    return made


def activate(made: Bench, size: int = 4, window: int = 2, generation: int = 1) -> list[Action]:
    return made.do(
        PipelineActivated(
            now=made.now,
            model="m",
            pipeline="p",
            generation=generation,
            num_stages=3,
            throughput_per_s=100.0,
            latency_s=0.02,
            window=window,
            micro_batch=MicroBatchLimits(size, "so", size, (0.01, 0.01, 0.01)),
        )
    )


def spread(sent: Action) -> list[Dispatch]:
    """As the wire has it item by item."""
    assert isinstance(sent, Dispatch)
    alone = Dispatch(
        request_id=sent.request_id,
        item_index=sent.item_index,
        attempt=sent.attempt,
        model=sent.model,
        pipeline=sent.pipeline,
        generation=sent.generation,
        payload=sent.payload,
        size_bytes=0,
    )
    others = [
        Dispatch(
            request_id=sent.request_id,
            item_index=other.item_index,
            attempt=other.attempt,
            model=sent.model,
            pipeline=sent.pipeline,
            generation=sent.generation,
            payload=other.payload,
            size_bytes=0,
        )
        for other in sent.companions
    ]
    return [alone, *others]


def indices(sent: Action) -> list[int]:
    return [each.item_index for each in spread(sent)]


def test_a_batch_goes_in_messages_of_one_credit_each() -> None:
    made = bench()
    first, second = made.ask(*[10] * 11)
    assert isinstance(first, Dispatch)
    assert first.companions == tuple(Companion(i, 1, f"in{i}") for i in (1, 2, 3))
    assert first.size_bytes == 40
    assert indices(second) == [4, 5, 6, 7]
    for each in spread(first)[:3]:
        assert made.result(each) == [], "the credit is free with the last of them"
    third = one(made.result(spread(first)[3]), Dispatch)
    assert indices(third) == [8, 9, 10]
    assert [action for each in spread(third) for action in made.result(each)] == []
    answers = [action for each in spread(second) for action in made.result(each)]
    answer = one(answers, Answer)
    assert [item.outcome for item in answer.items] == [Output(f"out{i}", 100) for i in range(11)]


def test_requests_do_not_share_a_message() -> None:
    made = bench(window=4)
    assert [indices(sent) for sent in made.ask(1, 1)] == [[0, 1]]
    assert [indices(sent) for sent in made.ask(1)] == [[0]]
    assert [indices(sent) for sent in made.ask(1, 1, 1)] == [[0, 1, 2]]


def test_a_message_has_a_largest_size() -> None:
    made = bench(window=4)
    sent = made.ask(*[MOST_BYTES // 2] * 5)
    assert [indices(each) for each in sent] == [[0, 1], [2, 3], [4]]


def test_what_failed_together_runs_again_alone_and_only_the_bad_one_fails() -> None:
    made = bench(window=8)
    (sent,) = made.ask(1, 1, 1, 1)
    again = [action for each in spread(sent) for action in made.result(each, RETRYABLE)]
    assert [indices(each) for each in again] == [[0], [1], [2], [3]]
    last: list[Action] = []
    for each in again:
        assert isinstance(each, Dispatch)
        assert each.attempt == 2
        if each.item_index != 2:
            assert made.result(each) == []
        else:
            third = one(made.result(each, RETRYABLE), Dispatch)
            last = [third]
    answer = one(made.result(last[0], RETRYABLE), Answer)
    assert [isinstance(item.outcome, Failure) for item in answer.items] == [
        False,
        False,
        True,
        False,
    ]


def test_one_bad_input_is_that_items_trouble() -> None:
    made = bench()
    (sent,) = made.ask(1, 1, 1)
    bad = Failure(code=ErrorCode.BAD_INPUT, message="no image")
    first, second, third = spread(sent)
    assert made.result(second, bad) == []
    assert made.result(first) == []
    answer = one(made.result(third), Answer)
    assert [isinstance(item.outcome, Failure) for item in answer.items] == [False, True, False]


def test_the_item_that_kills_nodes_is_found_among_those_it_came_with() -> None:
    made = bench(window=8)
    made.ask(1, 1, 1, 1)
    made.lose("p", crashed="n1")
    alone = activate(made, generation=2, window=8)
    assert [indices(each) for each in alone] == [[0], [1], [2], [3]]
    for each in alone:
        assert isinstance(each, Dispatch)
        assert each.watched
    made.computes(alone[0], "n2")
    made.result(alone[0])
    made.computes(alone[1], "n2")
    (poisoned,) = made.lose("p", generation=2, crashed="n2")
    assert isinstance(poisoned, Poisoned)
    assert (poisoned.item_index, poisoned.nodes) == (1, ("n1", "n2"))
    rest = activate(made, generation=3, window=8)
    assert [indices(each) for each in rest] == [[2], [3]]
    assert made.result(rest[0]) == []
    answer = one(made.result(rest[1]), Answer)
    codes = [
        item.outcome.code if isinstance(item.outcome, Failure) else "ok" for item in answer.items
    ]
    assert codes == ["ok", ErrorCode.POISON, "ok", "ok"]


def test_a_deadline_ends_items_under_way_and_frees_their_credit() -> None:
    made = bench(window=1)
    (sent,) = made.ask(1, 1, 1, 1, 1, within_s=1.0)
    made.now = 1.0
    assert len(made.wait(0.0)) == 1
    assert [indices(each) for each in made.ask(1)] == [[0]], "the credit is free"
    before = made.counters.unknown_results
    for each in spread(sent):
        made.result(each)
    assert made.counters.unknown_results == before + 4


def test_what_a_group_took_is_no_measure_of_an_item() -> None:
    made = bench()
    (sent,) = made.ask(1, 1, 1, 1)
    made.now = 0.4
    for each in spread(sent):
        made.result(each)
    (load,) = made.core.snapshot().models[0].pipelines
    assert load.rate_per_s is not None
    assert abs(load.rate_per_s - 10.0) < 1e-6

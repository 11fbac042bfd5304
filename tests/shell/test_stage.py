"""One item through a stage: what its times consist of."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from edge_agent.stage import Item, Stage, process
from shared.codec import decode_msgpack, encode_msgpack
from shared.errors import ErrorCode, JobError, StageError
from shared.messages.job import Activation, CompanionInput, Progress, StageResult, StageTime
from shared.tensor import Array, from_wire, to_wire


class Doubles:
    """A runtime's stage that doubles its input."""

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return {"y": np.asarray(inputs["x"]) * 2}

    def unload(self) -> None:
        """Nothing is held."""


class Given:
    """Takes the input as it came."""

    def read(self, activation: Activation) -> dict[str, Array]:
        assert activation.job
        return {"x": np.ones((2, 3), np.float32)}


def stage() -> Stage:
    return Stage(
        life=1, node="n", model="m", pipeline="m-0", generation=1, index=0, num_stages=1,
        topic="t", next_topic="next", result_topic="result", runner=Doubles(), inputs=Given(),
    )  # fmt: skip


def run(one: Stage, receive_cpu_s: float = 0.0) -> StageTime:
    activation = Activation(
        job="j", item=0, attempt=0, tensors={"x": to_wire(np.ones((2, 3), np.float32))}
    )
    payload = bytes(encode_msgpack(activation))
    outcome = process(one, Item(payload, time.monotonic(), receive_cpu_s), _nobody)
    ((topic, sent),) = outcome.publish
    assert topic == "result"
    (times,) = decode_msgpack(bytes(sent), StageResult).trace
    assert times.cpu_s == pytest.approx(outcome.cpu_s)
    return times


def test_receiving_and_the_last_sending_are_part_of_an_items_time() -> None:
    """A day each: whatever the rest took is nothing against it."""
    one, day_s = stage(), 86_400.0
    assert run(one).cpu_s < 1.0
    received = run(one, receive_cpu_s=day_s)
    assert received.cpu_s == pytest.approx(day_s, abs=1.0)
    assert received.compute_s == pytest.approx(day_s, abs=10.0)
    one.send_s = one.send_cpu_s = day_s
    both = run(one, receive_cpu_s=day_s)
    assert both.cpu_s == pytest.approx(2 * day_s, abs=1.0)
    assert both.compute_s == pytest.approx(2 * day_s, abs=10.0)


def test_a_watched_item_is_announced_before_it_is_computed_and_when_it_is_handed_on() -> None:
    """What a stage says may be its last word, so it comes first; the next stage watches on."""
    said: list[tuple[str, StageResult]] = []
    ran: list[int] = []

    class Computes(Doubles):
        def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
            ran.append(len(said))
            return super().run(inputs)

    def say(topic: str, payload: bytes | bytearray) -> None:
        said.append((topic, decode_msgpack(bytes(payload), StageResult)))

    one = replace(stage(), num_stages=2, runner=Computes())
    given = Activation(job="j", item=3, attempt=2, watched=True)
    outcome = process(one, Item(bytes(encode_msgpack(given)), time.monotonic()), say)
    ((topic, begun),) = said
    assert ran == [1], "said before"
    assert topic == "result"
    assert (begun.job, begun.item, begun.attempt) == ("j", 3, 2)
    assert begun.progress == Progress(node="n", begun=True)
    ((topic, sent),) = outcome.publish
    assert topic == "next"
    assert decode_msgpack(bytes(sent), Activation).watched
    assert outcome.handed_on is not None
    on = decode_msgpack(bytes(outcome.handed_on), StageResult)
    assert on.progress == Progress(node="n", begun=False)
    last = process(stage(), Item(bytes(encode_msgpack(given)), time.monotonic()), say)
    assert last.handed_on is None, "the result says so itself"


def _nobody(topic: str, payload: bytes | bytearray) -> None:
    raise AssertionError("nothing is said of an item that is not watched")


class Learns(Doubles):
    """Doubles batches, and notes how many items came at once; refuses 13."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        self.sizes.append(len(inputs["x"]))
        if (inputs["x"] == 13).any():
            raise StageError("thirteen")
        return super().run(inputs)


class Numbers:
    """An item's input is its body as a number; `bad` is none. Between stages tensors as they are."""

    def read(self, activation: Activation) -> dict[str, Array]:
        if activation.body is None:
            return {name: from_wire(tensor) for name, tensor in activation.tensors.items()}
        try:
            return {"x": np.array([[float(bytes(activation.body))]], np.float32)}
        except ValueError:
            raise JobError(ErrorCode.BAD_INPUT, "no number") from None


def batch(*bodies: bytes) -> Activation:
    first, *others = bodies
    return Activation(
        job="j",
        item=10,
        attempt=1,
        body=memoryview(first),
        with_inputs=[
            CompanionInput(item=index, attempt=1, body=memoryview(body))
            for index, body in enumerate(others, 11)
        ],
    )


def through(one: Stage, given: Activation) -> list[tuple[str, bytes]]:
    outcome = process(one, Item(bytes(encode_msgpack(given)), time.monotonic()), _nobody)
    return [(topic, bytes(payload)) for topic, payload in outcome.publish]


def test_a_micro_batch_goes_on_as_one_message() -> None:
    runner = Learns()
    one = replace(stage(), num_stages=2, runner=runner, inputs=Numbers())
    ((topic, sent),) = through(one, batch(b"1", b"2", b"3"))
    assert topic == "next"
    on = decode_msgpack(sent, Activation)
    assert (on.item, [other.item for other in on.companions]) == (10, [11, 12])
    assert from_wire(on.tensors["y"]).tolist() == [[2.0], [4.0], [6.0]]
    assert on.trace[0].items == 3
    passed = replace(on, tensors={"x": on.tensors["y"]})
    ((topic, sent),) = through(replace(stage(), runner=runner, inputs=Numbers()), passed)
    result = decode_msgpack(sent, StageResult)
    assert topic == "result"
    assert [other.item for other in result.companions] == [11, 12]
    assert from_wire(result.tensors["y"]).tolist() == [[4.0], [8.0], [12.0]]


def test_a_bad_input_in_a_micro_batch_is_answered_and_the_others_go_on() -> None:
    one = replace(stage(), num_stages=2, runner=Learns(), inputs=Numbers())
    refused, on = through(one, batch(b"1", b"bad", b"3"))
    said = decode_msgpack(refused[1], StageResult)
    assert refused[0] == "result"
    assert said.failure is not None
    assert (said.item, said.failure.code, said.failure.retryable) == (11, "bad_input", False)
    rest = decode_msgpack(on[1], Activation)
    assert (rest.item, [other.item for other in rest.companions]) == (10, [12])
    assert from_wire(rest.tensors["y"]).tolist() == [[2.0], [6.0]]
    all_bad = through(one, batch(b"bad", b"worse"))
    assert [decode_msgpack(sent, StageResult).item for _, sent in all_bad] == [10, 11]


def test_what_fails_together_may_be_tried_again_alone() -> None:
    one = replace(stage(), runner=Learns(), inputs=Numbers())
    ((_, sent),) = through(one, batch(b"1", b"13"))
    result = decode_msgpack(sent, StageResult)
    assert result.failure is not None
    assert result.failure.retryable
    assert [other.item for other in result.companions] == [11]


def test_a_stage_learns_how_many_to_compute_at_once() -> None:
    """All sizes up to the batch's are tried, and every item is computed once each time."""
    runner = Learns()
    one = replace(stage(), runner=runner, inputs=Numbers())
    for _ in range(40):
        before = len(runner.sizes)
        ((_, sent),) = through(one, batch(b"1", b"2", b"3", b"4", b"5"))
        assert sum(runner.sizes[before:]) == 5
        assert from_wire(decode_msgpack(sent, StageResult).tensors["y"]).shape == (5, 1)
    assert {1, 2, 4} <= set(runner.sizes)


def test_an_output_that_is_not_one_part_per_item_fails() -> None:
    class Two(Doubles):
        def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
            return {"y": inputs["x"].repeat(2, 0)}

    one = replace(stage(), runner=Two(), inputs=Numbers())
    ((_, sent),) = through(one, batch(b"1", b"2", b"3"))
    result = decode_msgpack(sent, StageResult)
    assert result.failure is not None
    assert "several items" in result.failure.message

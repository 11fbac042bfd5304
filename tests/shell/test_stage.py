"""One item through a stage: what its times consist of."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from edge_agent.stage import Item, Stage, process
from shared.codec import decode_msgpack, encode_msgpack
from shared.messages.job import Activation, Progress, StageResult, StageTime
from shared.tensor import Array, to_wire


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

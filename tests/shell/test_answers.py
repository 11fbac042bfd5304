"""Answers: probabilities, the trace that sums to the latency, errors, batches, msgpack."""

from __future__ import annotations

import json
from dataclasses import replace

import msgpack
import numpy as np
import pytest

from orchestrator.answers import Context, ItemResult, Shown, classify, write_answer, write_error
from orchestrator.core.dispatch_events import Answer, EndedItem, Failure, Output
from shared.errors import ErrorCode
from shared.messages.job import StageTime
from shared.tensor import to_wire

LABELS = ("cat", "dog", "bird")
JSON_CONTEXT = Context(job="j", correlation=None, msgpack=False, batch=False, version_5=True)
LOGITS = np.array([[1.0, 3.0, 2.0]], np.float32)


def ended(*outcomes: Output | Failure, latency_s: float = 0.1, flight_s: float = 0.08) -> Answer:
    items = tuple(
        EndedItem(
            outcome=outcome, pipeline="m-0", generation=4, attempts=1, queue_s=latency_s - flight_s,
            flight_s=flight_s, latency_s=latency_s,
        )
        for outcome in outcomes
    )  # fmt: skip
    return Answer(
        request_id="r", model="m", reply_to="t", job="j", context=None, items=items,
        latency_s=latency_s, handles=(),
    )  # fmt: skip


def output(array: np.ndarray = LOGITS) -> Output:
    trace = (
        StageTime(stage=0, node="a", queue_s=0.01, compute_s=0.02, cpu_s=0.02),
        StageTime(stage=1, node="b", queue_s=0.0, compute_s=0.03, cpu_s=0.03),
    )
    return Output(ItemResult({"logits": to_wire(array)}, trace), array.nbytes)


def test_the_softmax_and_the_order() -> None:
    top = classify(LOGITS, LABELS)
    assert top is not None
    assert [(line.index, line.label) for line in top] == [(1, "dog"), (2, "bird"), (0, "cat")]
    assert sum(line.probability for line in top) == pytest.approx(1.0, abs=1e-5)
    assert top[0].probability == pytest.approx(np.exp(3) / np.exp([1, 2, 3]).sum(), abs=1e-6)


def test_huge_logits_do_not_overflow_and_labels_may_be_too_few() -> None:
    top = classify(np.array([[1e38, 0.0, 1.0]], np.float32), ("only",))
    assert top is not None
    assert top[0].label == "only"
    assert {line.label for line in top[1:]} == {"1", "2"}


@pytest.mark.parametrize(
    "array",
    [np.zeros((1, 2, 3), np.float32), np.zeros((2, 3), np.float32), np.zeros((1, 3), np.int64),
     np.zeros((1, 0), np.float32), np.array([[np.nan, 1.0]], np.float32)],
)  # fmt: skip
def test_what_is_no_classification_gets_no_labels(array: np.ndarray) -> None:
    assert classify(array, LABELS) is None


def test_an_answer_says_all_that_was_promised() -> None:
    shown = Shown(LABELS, "none", (0.001, 0.002, 0.001))
    said = json.loads(write_answer(ended(output()), JSON_CONTEXT, lambda _: shown))
    assert "tensors" not in said
    assert said["status"] == "ok"
    assert said["job"] == "j"
    assert said["model"] == "m"
    assert said["top"][0] == {"index": 1, "label": "dog", "probability": 0.665241}
    assert said["pipeline"] == "m-0"
    assert said["generation"] == 4
    assert said["nodes"] == ["a", "b"]
    assert said["weights"] == "none"
    assert said["exact"] is True
    assert said["cached"] is False
    assert said["latency_ms"] == 100.0
    parts = [
        stage[part] for stage in said["trace"] for part in ("queue_s", "compute_s", "transit_s")
    ]
    assert sum(parts) == pytest.approx(0.1, abs=1e-5)
    assert said["trace"][0]["queue_s"] == pytest.approx(0.02 + 0.01)


def test_an_answer_of_a_lossy_level_says_so() -> None:
    shown = Shown(LABELS, "file", exact=False)
    said = json.loads(write_answer(ended(output()), JSON_CONTEXT, lambda _: shown))
    assert said["exact"] is False


def test_msgpack_has_the_raw_output() -> None:
    context = Context(job="j", correlation=None, msgpack=True, batch=False, version_5=True)
    said = msgpack.unpackb(write_answer(ended(output()), context, lambda _: Shown(None, "default")))
    tensor = said["tensors"]["logits"]
    assert np.frombuffer(tensor["data"], tensor["dtype"]).tolist() == LOGITS[0].tolist()
    assert said["top"][0]["label"] == "1"


def test_a_batch_is_answered_in_order_with_its_errors_in_place() -> None:
    context = Context(job="j", correlation=None, msgpack=False, batch=True, version_5=True)
    bad = Failure(code=ErrorCode.BAD_INPUT, message="no image", expected="a JPEG", got="text")
    said = json.loads(write_answer(ended(output(), bad), context, lambda _: Shown(LABELS, "file")))
    assert [item["status"] for item in said["results"]] == ["ok", "error"]
    assert said["results"][1]["error"] == {
        "code": "bad_input", "message": "no image", "expected": "a JPEG", "got": "text",
        "retry_after_s": None,
    }  # fmt: skip


def test_an_item_is_shown_as_the_pipeline_that_ran_it_shows_it() -> None:
    context = Context(job="j", correlation=None, msgpack=False, batch=True, version_5=True)
    answer = ended(output(), output())
    later = replace(answer.items[1], generation=5)
    answer = replace(answer, items=(answer.items[0], later))
    shown = {4: Shown(LABELS, "none"), 5: Shown(("x", "y", "z"), "default")}
    said = json.loads(write_answer(answer, context, lambda item: shown[item.generation or 0]))
    assert [item["top"][0]["label"] for item in said["results"]] == ["dog", "y"]
    assert [item["weights"] for item in said["results"]] == ["none", "default"]


def test_stages_that_say_nothing_of_their_times_leave_no_trace() -> None:
    silent = Output(ItemResult({"logits": to_wire(LOGITS)}, ()), 12)
    said = json.loads(write_answer(ended(silent), JSON_CONTEXT, lambda _: Shown(None, "")))
    assert said["trace"] == []
    assert said["nodes"] == []
    assert said["top"][0]["index"] == 1


def test_a_refusal() -> None:
    failure = Failure(code=ErrorCode.OVERLOADED, message="full", retry_after_s=0.51239)
    said = json.loads(write_error("m", JSON_CONTEXT, failure))
    assert said["status"] == "error"
    assert said["error"]["code"] == "overloaded"
    assert said["error"]["retry_after_s"] == 0.512

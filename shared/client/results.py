"""What a caller gets back: results with names, times in seconds, tensors as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.codec import convert, decode_json, decode_msgpack
from shared.errors import JobError, ProtocolError
from shared.messages.job import Answer, BatchAnswer, ErrorAnswer, Label, TraceEntry
from shared.tensor import Array, from_wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A job's result. `print(result)` says it in a line.

    Attributes:
        job: the job's identity, as the cluster's events name it.
        model: the name it is served under.
        top: the likeliest labels, the best first (`best`); empty where the model is no classifier.
        latency_s: from the orchestrator's receipt of the job to its answer.
        nodes: the nodes that its stages ran on, in their order.
        trace: for each stage its node, and the seconds in its queue, computing, and on the way; empty where
            `cached`.
        pipeline: which of the model's pipelines ran it.
        generation: of the plan in force.
        weights: `none` where the model's weights are random (`random_weights`): its labels mean nothing then.
        exact: false where a lossy level or codec was asked for.
        cached: an equal input had been run before, and its answer was kept.
        tensors: the model's raw outputs by name, where they were asked for; else None.
        answer: the message as it came.
    """

    job: str
    model: str
    top: tuple[Label, ...]
    latency_s: float
    nodes: tuple[str, ...]
    trace: tuple[TraceEntry, ...]
    pipeline: str
    generation: int
    weights: str
    exact: bool
    cached: bool
    tensors: Mapping[str, Array] | None = field(default=None, repr=False, compare=False)
    answer: Answer = field(repr=False, compare=False)

    @property
    def best(self) -> Label | None:
        """The likeliest label: its `index`, `label` and `probability`; None where the model has none."""
        return self.top[0] if self.top else None

    @property
    def random_weights(self) -> bool:
        """Whether the model's weights are random, so that its labels mean nothing."""
        return self.weights == "none"

    def __str__(self) -> str:
        best = ", ".join(f"{label.label} {label.probability:.1%}" for label in self.top[:3])
        marks = [
            "" if not self.random_weights else "random weights: labels mean nothing",
            "" if self.exact else "not exact",
            "" if not self.cached else "cached",
        ]
        notes = "".join(f" ({mark})" for mark in marks if mark)
        where = " -> ".join(self.nodes) or "nowhere"
        return (
            f"{self.model}: {best or 'no labels'}{notes}, {self.latency_s * 1e3:.0f} ms on {where}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Status:
    """The one field by which an answer's shape is told."""

    status: str
    results: Any = None


def read_answer(payload: bytes | bytearray) -> Result | JobError | list[Result | JobError]:
    """An answer's bytes, JSON or msgpack: a result, an error, or a batch's list of these, in order.

    Raises:
        ProtocolError: the bytes are no answer.
    """
    decode: Any = decode_json if payload[:1] == b"{" else decode_msgpack
    head: _Status = decode(payload, _Status)
    if head.status == "error":
        return job_error(decode(payload, ErrorAnswer))
    if head.results is None:
        return _result(decode(payload, Answer))
    batch: BatchAnswer = decode(payload, BatchAnswer)
    return [_item(item) for item in batch.results]


def job_error(answer: ErrorAnswer) -> JobError:
    """The exception that an error answer stands for."""
    error = answer.error
    return JobError(
        error.code,
        error.message,
        expected=error.expected,
        got=error.got,
        retry_after_s=error.retry_after_s,
    )


def _item(item: Any) -> Result | JobError:
    if not isinstance(item, dict):
        raise ProtocolError("a batch's result is no answer", expected="a map", got=repr(item)[:80])
    if item.get("status") == "error":
        return job_error(convert(item, ErrorAnswer))
    return _result(convert(item, Answer))


def _result(answer: Answer) -> Result:
    tensors = None
    if isinstance(answer.tensors, dict):
        tensors = {name: from_wire(tensor) for name, tensor in answer.tensors.items()}
    return Result(
        job=answer.job,
        model=answer.model,
        top=tuple(answer.top or ()),
        latency_s=answer.latency_ms / 1e3,
        nodes=tuple(answer.nodes),
        trace=tuple(answer.trace),
        pipeline=answer.pipeline,
        generation=answer.generation,
        weights=answer.weights,
        exact=answer.exact,
        cached=answer.cached,
        tensors=tensors,
        answer=answer,
    )

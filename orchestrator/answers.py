"""Answers as clients see them: labels with probabilities, the trace, or an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.core.dispatch_events import Answer as Ended
from orchestrator.core.dispatch_events import EndedItem, Failure, Output
from orchestrator.core.trace import complete_trace
from shared.codec import encode_json, encode_msgpack
from shared.messages.job import (
    NO_TENSORS,
    Answer,
    BatchAnswer,
    ErrorAnswer,
    ErrorBody,
    Label,
    StageTime,
    TraceEntry,
)
from shared.tensor import Array, WireTensor, from_wire
from shared.trace import StageTiming

MSGPACK = "application/msgpack"
TOP = 5


@dataclass(slots=True)
class ItemResult:
    """What the last stage sent for one item: output tensors and each stage's own times.

    Answers are remembered for minutes, and mostly nobody asked for the tensors: when such an answer is out
    they go (None), and what it said of them stays in `top`.
    """

    tensors: dict[str, WireTensor] | None
    trace: tuple[StageTime, ...]
    top: list[Label] | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """What answers say besides the output: labels, what weights and level make of it, where time went.

    `hops_s` are the predicted seconds of a pipeline's num_stages + 1 hops; empty where it is not known.
    `exact`: the answer is the original model's, but for what float32 rounds.
    """

    labels: tuple[str, ...] | None
    weights: str
    hops_s: tuple[float, ...] = ()
    exact: bool = True


ShownOf = Callable[[EndedItem], Shown]
"""What is shown of the pipeline that brought an item's outcome: a batch may have gone through several."""


@dataclass(frozen=True, slots=True)
class Context:
    """How a request wants to be answered; kept small, since answers are remembered."""

    job: str
    correlation: bytes | None
    msgpack: bool
    batch: bool
    version_5: bool


def classify(output: Array, labels: Sequence[str] | None, top: int = TOP) -> list[Label] | None:
    """The `top` most probable classes of logits [1, classes]; None when the output is no such thing.

    Probabilities are the softmax in float64.
    """
    if output.ndim != 2 or output.shape[0] != 1 or output.dtype.kind != "f":
        return None
    logits = output[0].astype(np.float64)
    count = min(top, logits.size)
    if not count or not np.isfinite(logits).all():
        return None
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    best = np.argpartition(weights, -count)[-count:]
    best = best[np.argsort(-weights[best], kind="stable")]
    return [
        Label(
            index=int(index),
            label=labels[index] if labels is not None and index < len(labels) else str(index),
            probability=round(float(weights[index]), 6),
        )
        for index in best
    ]


def write_answer(ended: Ended, context: Context, shown_of: ShownOf) -> bytes:
    """The payload that answers a request."""
    results = [_item(ended, context, item, shown_of) for item in ended.items]
    if not context.batch:
        return _encode(results[0], context)
    latency_ms = round(ended.latency_s * 1000, 3)
    return _encode(
        BatchAnswer(job=context.job, model=ended.model, results=results, latency_ms=latency_ms),
        context,
    )


def shorten(ended: Ended) -> None:
    """Let go of the tensors of an answer that was written without them."""
    for result in _results(ended):
        result.tensors = None


def has_tensors(ended: Ended) -> bool:
    """Whether an answer can still be written with its tensors."""
    return all(result.tensors is not None for result in _results(ended))


def _results(ended: Ended) -> Iterator[ItemResult]:
    for item in ended.items:
        if isinstance(item.outcome, Output):
            assert isinstance(item.outcome.value, ItemResult)
            yield item.outcome.value


def write_error(model: str, context: Context, failure: Failure) -> bytes:
    """The payload that answers a request which was refused."""
    return _encode(_error(model, context, failure), context)


def _item(
    ended: Ended, context: Context, item: EndedItem, shown_of: ShownOf
) -> Answer | ErrorAnswer:
    outcome = item.outcome
    if isinstance(outcome, Failure):
        return _error(ended.model, context, outcome)
    result = outcome.value
    assert isinstance(result, ItemResult)
    shown = shown_of(item)
    # Who made a cached answer can be told, but its job went nowhere.
    trace = (
        [] if item.cached else trace_of(item.latency_s, item.flight_s, result.trace, shown.hops_s)
    )
    if result.tensors is not None and len(result.tensors) == 1:
        (output,) = result.tensors.values()
        result.top = classify(from_wire(output), shown.labels)
    return Answer(
        job=context.job,
        model=ended.model,
        top=result.top,
        pipeline=item.pipeline or "",
        generation=item.generation or 0,
        nodes=[stage.node for stage in result.trace],
        latency_ms=round(item.latency_s * 1000, 3),
        trace=trace,
        weights=shown.weights,
        exact=shown.exact,
        cached=item.cached,
        tensors=result.tensors if context.msgpack and result.tensors else NO_TENSORS,
    )


def trace_of(
    latency_s: float, flight_s: float, stages: tuple[StageTime, ...], hops_s: tuple[float, ...]
) -> list[TraceEntry]:
    """Where an item's `latency_s` went; none where the stages said nothing about their times.

    `flight_s` is since the dispatch that brought the result, `hops_s` the predicted hops, where known.
    """
    timings = [StageTiming(t.stage, t.node, t.queue_s, t.compute_s) for t in stages]
    if not timings:
        return []
    hops = hops_s if len(hops_s) == len(timings) + 1 else (0.0,) * (len(timings) + 1)
    waited_s = max(latency_s - flight_s, 0.0)
    return [
        TraceEntry(
            stage=stage.stage,
            node=stage.node,
            queue_s=round(stage.queue_s, 6),
            compute_s=round(stage.compute_s, 6),
            transit_s=round(stage.transit_s, 6),
        )
        for stage in complete_trace(latency_s, timings, hops, waited_s)
    ]


def _error(model: str, context: Context, failure: Failure) -> ErrorAnswer:
    return ErrorAnswer(
        job=context.job,
        model=model,
        error=ErrorBody(
            code=failure.code,
            message=failure.message,
            expected=failure.expected,
            got=failure.got,
            retry_after_s=_rounded(failure.retry_after_s),
        ),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _encode(answer: Answer | ErrorAnswer | BatchAnswer, context: Context) -> bytes:
    return bytes(encode_msgpack(answer)) if context.msgpack else encode_json(answer)

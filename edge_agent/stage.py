"""One loaded stage, and what it does with one item, or a micro-batch of them: bytes in, bytes out.

    decode -> (first stage: read the client's input) -> run -> encode for the next stage, or as the result

Every failure becomes an answer where the item can still be named: a `JobError` is the client's fault and
final, anything else is ours and may go better elsewhere. Both go straight to the pipeline's result topic. Of
a micro-batch each input is read for itself; what fails while they are computed together fails for all of
them, and the dispatcher sends each alone then.

A watched item is one that a node may have died of: its stages say there when they begin with it and when they
have handed it on, so that the one it kills next is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from edge_agent.batching import run_batch, stack
from shared.batch_costs import BatchCosts
from shared.codec import decode_msgpack, encode_msgpack
from shared.compression import PLAIN, Compression, PackedTensor, pack
from shared.errors import ErrorCode, JobError, ProtocolError
from shared.messages import Count
from shared.messages.job import (
    Activation,
    Companion,
    Companions,
    Failure,
    Progress,
    StageResult,
    StageTime,
)
from shared.pipeline_mac import PipelineMac
from shared.tensor import Array, WireTensor

_OVERHEAD_BYTES = 1024


class Runner(Protocol):
    """The part of a runtime's loaded stage that is needed here."""

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name; StageError when the inputs do not fit."""

    def unload(self) -> None:
        """Let go of weights and buffers."""


class Inputs(Protocol):
    """Makes a stage's inputs out of an activation."""

    def read(self, activation: Activation) -> dict[str, Array]:
        """Arrays by the graph's input names; JobError when a client's input cannot be used."""


@dataclass(frozen=True, slots=True)
class Item:
    """An activation as it came; `read_at` is the monotonic time when it was read.

    `receive_cpu_s` is what receiving cost the thread since the item before: this one, or another as large,
    where one comes after the other.
    """

    payload: bytes | bytearray
    read_at: float
    receive_cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a message's `items`.

    `publish` are (topic, payload), none when nobody can be answered.
    """

    publish: tuple[tuple[str, bytes | bytearray], ...]
    problem: str
    queue_s: float
    compute_s: float
    cpu_s: float
    began: float
    encoded: float
    cpu_at: float
    handed_on: bytes | bytearray | None = None
    """What the result topic is to be told after `publish`, of an item that is watched."""
    items: int = 1
    request: str = ""
    """The orchestrator's name of the job; empty where the message could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Identity:
    """What an activation that is broken elsewhere may still say."""

    job: str
    item: Count
    attempt: Count
    companions: Companions = field(default_factory=list)
    with_inputs: Companions = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Stage:
    """A stage that is ready to run, with the topics that it reads and writes."""

    life: int
    node: str
    model: str
    pipeline: str
    generation: int
    index: int
    num_stages: int
    topic: str
    next_topic: str
    result_topic: str
    runner: Runner
    inputs: Inputs
    mac: PipelineMac | None = None
    """Proves messages of its pipeline; None on an open cluster."""
    compression: Compression = PLAIN
    """How it sends its tensors to the next stage."""
    costs: BatchCosts = field(default_factory=BatchCosts)
    """What it learned of computing several items at once."""
    send_s: float = 0.0
    """Wall seconds that encoding and sending took last time: the time of the present item's own sending
    cannot stand in the message that is being sent."""
    send_cpu_s: float = 0.0

    def sent(self, outcome: Outcome) -> None:
        """Note what encoding and sending cost, for the next item's times."""
        self.send_s = max(0.0, time.monotonic() - outcome.encoded)
        self.send_cpu_s = max(0.0, time.thread_time() - outcome.cpu_at)


def process(stage: Stage, item: Item, say: Callable[[str, bytes | bytearray], None]) -> Outcome:
    """Run one item through `stage`. Raises nothing that an item can cause.

    Args:
        stage: where.
        item: what.
        say: takes topic and payload of what must be known before the item is computed, for it may be
            the last that this process says.
    """
    began, cpu_began = time.monotonic(), time.thread_time()
    queue_s = max(0.0, began - item.read_at)
    problem = ""
    try:
        activation = decode_msgpack(item.payload, Activation)
    except ProtocolError as error:
        named = _named(item.payload)
        if named is None:
            return Outcome((), str(error), queue_s, 0.0, 0.0, began, began, cpu_began)
        failure = Failure(
            code=ErrorCode.INTERNAL,
            message=f"{_where(stage)} got an activation that it cannot read: {error.message}",
            expected=error.expected,
            got=error.got,
            retryable=True,
        )
        result = StageResult(
            job=named.job,
            item=named.item,
            attempt=named.attempt,
            companions=named.companions or named.with_inputs,
            failure=failure,
        )
        return Outcome(
            ((stage.result_topic, encode_msgpack(result)),),
            str(error), queue_s, 0.0, 0.0, began, began, cpu_began,
        )  # fmt: skip
    last = stage.index + 1 >= stage.num_stages
    if activation.watched:
        say(stage.result_topic, _progress(stage, activation, begun=True))
    batch = _read(stage, activation)
    tensors, packed, failed = _compute(stage, activation, batch, last=last)
    encoded, cpu_at = time.monotonic(), time.thread_time()
    compute_s = item.receive_cpu_s + encoded - began + stage.send_s
    cpu_s = item.receive_cpu_s + cpu_at - cpu_began + stage.send_cpu_s
    trace = [
        *activation.trace,
        StageTime(
            stage=stage.index,
            node=stage.node,
            queue_s=queue_s,
            compute_s=compute_s,
            cpu_s=cpu_s,
            items=max(1, len(batch.items)),
        ),
    ]
    messages = [_refusal(stage, activation, one, why, trace) for one, why in batch.refused]
    handed_on = None
    if batch.items:
        first, *others = batch.items
        hint = _OVERHEAD_BYTES + 128 * len(trace) + 32 * len(others)
        hint += sum(t.data.nbytes + 128 for t in tensors.values())
        hint += sum(t.data.nbytes + 128 for t in packed.values())
        if failed is None and not last:
            if activation.watched:
                handed_on = _progress(stage, activation, begun=False)
            on = Activation(
                job=activation.job,
                item=first.item,
                attempt=first.attempt,
                companions=others,
                tensors=tensors,
                packed=packed,
                exact=activation.exact,
                trace=trace,
                watched=activation.watched,
            )
            messages.append((stage.next_topic, encode_msgpack(on, hint)))
        else:
            result = StageResult(
                job=activation.job,
                item=first.item,
                attempt=first.attempt,
                companions=others,
                tensors=tensors,
                failure=None if failed is None else failed.answer,
                trace=trace,
            )
            messages.append((stage.result_topic, encode_msgpack(result, hint)))
    problem = "; ".join(
        [str(why.problem) for _, why in batch.refused] + ([failed.problem] if failed else [])
    )
    return Outcome(
        tuple(messages), problem, queue_s, compute_s, cpu_s, began, encoded, cpu_at, handed_on,
        max(1, len(batch.items) + len(batch.refused)), activation.job,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why an item has no output: what its sender is told, and what we note."""

    answer: Failure
    problem: str


@dataclass(frozen=True, slots=True)
class _Batch:
    """The items of a message that can be computed, with their inputs, and those that cannot."""

    items: list[Companion]
    inputs: dict[str, Array]
    refused: list[tuple[Companion, _Failed]]


def _read(stage: Stage, activation: Activation) -> _Batch:
    """Each item's input for itself at the first stage, so that a bad one is that item's trouble only."""
    own = Companion(item=activation.item, attempt=activation.attempt)
    one_by_one = [(own, activation)]
    one_by_one += [
        (
            Companion(item=given.item, attempt=given.attempt),
            replace(
                activation,
                tensors=given.tensors,
                body=given.body,
                content_type=given.content_type,
                with_inputs=[],
            ),
        )
        for given in activation.with_inputs
    ]
    read: list[tuple[Companion, dict[str, Array]]] = []
    refused: list[tuple[Companion, _Failed]] = []
    for one, given in one_by_one:
        try:
            read.append((one, stage.inputs.read(given)))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it gets an answer and we go on
            refused.append((one, _failure(stage, error)))
    items = [one for one, _ in read]
    if activation.companions:  # between stages: the inputs are those of all
        if refused:
            refused += [(each, refused[0][1]) for each in activation.companions]
        else:
            items += activation.companions
    return _Batch(items, stack([arrays for _, arrays in read]) if read else {}, refused)


def _compute(
    stage: Stage, activation: Activation, batch: _Batch, *, last: bool
) -> tuple[dict[str, WireTensor], dict[str, PackedTensor], _Failed | None]:
    tensors: dict[str, WireTensor] = {}
    packed: dict[str, PackedTensor] = {}
    if not batch.items:
        return tensors, packed, None
    how = PLAIN if last else stage.compression
    if activation.exact or len(batch.items) > 1:  # what is rounded must not depend on its company
        how = how.lossless()
    try:
        outputs = run_batch(stage.runner.run, batch.inputs, len(batch.items), stage.costs)
        for name, array in outputs.items():
            sent = pack(array, how)
            if isinstance(sent, PackedTensor):
                packed[name] = sent
            else:
                tensors[name] = sent
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises, the item gets an answer and we go on
        return {}, {}, _failure(stage, error)
    return tensors, packed, None


def _failure(stage: Stage, error: Exception) -> _Failed:
    """A `JobError` is the client's fault and final, anything else ours."""
    if isinstance(error, JobError):
        told = Failure(
            code=error.code, message=error.message, expected=error.expected, got=error.got
        )
        return _Failed(told, str(error))
    problem = f"{type(error).__name__}: {error}"
    told = Failure(
        code=ErrorCode.INTERNAL,
        message=f"{_where(stage)} failed: {problem}"[:2000],
        expected=getattr(error, "expected", None),
        got=getattr(error, "got", None),
        retryable=True,
    )
    return _Failed(told, problem)


def _refusal(
    stage: Stage, activation: Activation, one: Companion, why: _Failed, trace: list[StageTime]
) -> tuple[str, bytes | bytearray]:
    result = StageResult(
        job=activation.job, item=one.item, attempt=one.attempt, failure=why.answer, trace=trace
    )
    return stage.result_topic, encode_msgpack(result)


def _progress(stage: Stage, activation: Activation, *, begun: bool) -> bytes | bytearray:
    return encode_msgpack(
        StageResult(
            job=activation.job,
            item=activation.item,
            attempt=activation.attempt,
            progress=Progress(node=stage.node, begun=begun),
        )
    )


def _named(payload: bytes | bytearray) -> _Identity | None:
    try:
        return decode_msgpack(payload, _Identity)
    except ProtocolError:
        return None


def _where(stage: Stage) -> str:
    return f"stage {stage.index} of {stage.model} on node {stage.node}"

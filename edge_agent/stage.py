"""One loaded stage, and what it does with one item: bytes in, bytes out.

    decode -> (first stage: read the client's input) -> run -> encode for the next stage, or as the result

Every failure becomes an answer where the item can still be named: a `JobError` is the client's fault and
final, anything else is ours and may go better elsewhere. Both go straight to the pipeline's result topic.

A watched item is one that a node may have died of: its stages say there when they begin with it and when they
have handed it on, so that the one it kills next is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shared.codec import decode_msgpack, encode_msgpack
from shared.compression import PLAIN, Compression, PackedTensor, pack
from shared.errors import ErrorCode, JobError, ProtocolError
from shared.messages import Count
from shared.messages.job import Activation, Failure, Progress, StageResult, StageTime
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
    """What became of an item. `publish` is (topic, payload), None when nobody can be answered."""

    publish: tuple[str, bytes | bytearray] | None
    problem: str
    queue_s: float
    compute_s: float
    cpu_s: float
    began: float
    encoded: float
    cpu_at: float
    handed_on: bytes | bytearray | None = None
    """What the result topic is to be told after `publish`, of an item that is watched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Identity:
    """What an activation that is broken elsewhere may still say."""

    job: str
    item: Count
    attempt: Count


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
            return Outcome(None, str(error), queue_s, 0.0, 0.0, began, began, cpu_began)
        failure = Failure(
            code=ErrorCode.INTERNAL,
            message=f"{_where(stage)} got an activation that it cannot read: {error.message}",
            expected=error.expected,
            got=error.got,
            retryable=True,
        )
        result = StageResult(job=named.job, item=named.item, attempt=named.attempt, failure=failure)
        return Outcome(
            (stage.result_topic, encode_msgpack(result)),
            str(error), queue_s, 0.0, 0.0, began, began, cpu_began,
        )  # fmt: skip
    tensors: dict[str, WireTensor] = {}
    packed: dict[str, PackedTensor] = {}
    failed: Failure | None = None
    last = stage.index + 1 >= stage.num_stages
    how = PLAIN if last else stage.compression
    if activation.exact:
        how = how.lossless()
    if activation.watched:
        say(stage.result_topic, _progress(stage, activation, begun=True))
    try:
        outputs = stage.runner.run(stage.inputs.read(activation))
        for name, array in outputs.items():
            sent = pack(array, how)
            if isinstance(sent, PackedTensor):
                packed[name] = sent
            else:
                tensors[name] = sent
    except JobError as error:
        problem = str(error)
        failed = Failure(
            code=error.code, message=error.message, expected=error.expected, got=error.got
        )
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises, the item gets an answer and we go on
        problem = f"{type(error).__name__}: {error}"
        tensors, packed = {}, {}
        failed = Failure(
            code=ErrorCode.INTERNAL,
            message=f"{_where(stage)} failed: {problem}"[:2000],
            expected=getattr(error, "expected", None),
            got=getattr(error, "got", None),
            retryable=True,
        )
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
        ),
    ]
    hint = _OVERHEAD_BYTES + 128 * len(trace)
    hint += sum(t.data.nbytes + 128 for t in tensors.values())
    hint += sum(t.data.nbytes + 128 for t in packed.values())
    handed_on = None
    if failed is None and not last:
        if activation.watched:
            handed_on = _progress(stage, activation, begun=False)
        topic = stage.next_topic
        payload = encode_msgpack(
            Activation(
                job=activation.job,
                item=activation.item,
                attempt=activation.attempt,
                tensors=tensors,
                packed=packed,
                exact=activation.exact,
                trace=trace,
                watched=activation.watched,
            ),
            hint,
        )
    else:
        topic = stage.result_topic
        payload = encode_msgpack(
            StageResult(
                job=activation.job,
                item=activation.item,
                attempt=activation.attempt,
                tensors=tensors,
                failure=failed,
                trace=trace,
            ),
            hint,
        )
    return Outcome(
        (topic, payload), problem, queue_s, compute_s, cpu_s, began, encoded, cpu_at, handed_on
    )


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

"""Jobs: activations between stages, results, and the answers that clients see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, UnsetType

from shared.compression import PackedTensor
from shared.errors import ErrorCode
from shared.messages import Count, Seconds, Version
from shared.tensor import Shape, WireTensor

MAX_BATCH: Final = 1024
MAX_TENSORS: Final = 1024
"""Of one message; between stages as many as are alive at a cut."""
# Lengths are checked before what they count is made: an image of no bytes has two on the wire, and 200 then.
Tensors = Annotated[dict[str, WireTensor], Meta(max_length=MAX_TENSORS)]
Packed = Annotated[dict[str, PackedTensor], Meta(max_length=MAX_TENSORS)]
Trace = Annotated[list["StageTime"], Meta(max_length=1024)]
Companions = Annotated[list["Companion"], Meta(max_length=MAX_BATCH)]
Images = Annotated[list[memoryview], Meta(max_length=MAX_BATCH)]
InputTensors = Annotated[dict[str, "TensorInput"], Meta(max_length=64)]
NO_TENSORS: Final = UNSET
"""Of an answer that was not asked for its tensors: the field is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """What a stage measured for one item: wall seconds queued and computing, CPU seconds used.

    Of `items` that came through together it is for all of them: each waited for the others.
    """

    stage: Count
    node: str
    queue_s: Seconds
    compute_s: Seconds
    cpu_s: Seconds
    items: Annotated[int, Meta(ge=1, le=MAX_BATCH)] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CompanionInput:
    """Another item of the same job in one message; its input for stage 0, as in `Activation`."""

    item: Count
    attempt: Count
    tensors: Tensors = field(default_factory=dict)
    body: memoryview | None = None
    content_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """Another item of the same job, whose part of the message's tensors follows that of the one before."""

    item: Count
    attempt: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What a stage takes: tensors by name, or for stage 0 a client's input as it came (`body`).

    Between stages a tensor is in `tensors` as it is or in `packed` compressed; `exact` asks every stage to
    round nothing. A micro-batch has more items: for stage 0 with their inputs in `with_inputs`, between
    stages in `companions`, and the tensors of all then lie behind each other along axis 0.
    `watched`: a node died while it had this item, so whoever has it now says so (`Progress`).
    """

    job: str
    item: Count
    attempt: Count
    tensors: Tensors = field(default_factory=dict)
    packed: Packed = field(default_factory=dict)
    with_inputs: Annotated[list[CompanionInput], Meta(max_length=MAX_BATCH)] = field(
        default_factory=list
    )
    companions: Companions = field(default_factory=list)
    exact: bool = False
    body: memoryview | None = None
    content_type: str = ""
    trace: Trace = field(default_factory=list)
    watched: bool = False
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an item has no result. Retryable: another node or time may do better."""

    code: ErrorCode
    message: str
    expected: str | None = None
    got: str | None = None
    retryable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a watched item is: `node` computes it from now on, or (`begun` false) has handed it on."""

    node: str
    begun: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What the last stage made of an item, a stage's failure, or no more than the `progress` of one.

    With `companions` it is of all of them: their tensors along axis 0, or one failure for each.
    """

    job: str
    item: Count
    attempt: Count
    companions: Companions = field(default_factory=list)
    tensors: Tensors = field(default_factory=dict)
    failure: Failure | None = None
    progress: Progress | None = None
    trace: Trace = field(default_factory=list)
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInput:
    """A client's tensor in msgpack: `data` little-endian in C order."""

    dtype: str
    shape: Shape
    data: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorsInput:
    """Several named tensors in msgpack."""

    tensors: Annotated[dict[str, TensorInput], Meta(min_length=1, max_length=64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchInput:
    """A batch of image files in msgpack; answered by `results` in order."""

    images: Annotated[list[memoryview], Meta(min_length=1, max_length=1024)]


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonTensorInput:
    """A tensor in JSON: `data` is nested lists of `shape`."""

    dtype: str
    shape: Shape
    data: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One line of a classifier's answer."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEntry:
    """Where an item's time went at one stage; over all stages the parts sum to `latency_ms`."""

    stage: int
    node: str
    queue_s: float
    compute_s: float
    transit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBody:
    """`code` is one of `ErrorCode`; what was expected and what came, where that makes sense."""

    code: ErrorCode
    message: str
    expected: str | None = None
    got: str | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAnswer:
    """A job that ended in an error."""

    job: str
    model: str
    error: ErrorBody
    status: Literal["error"] = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A job's answer.

    `weights` is `none` where the model's weights are random (then the labels mean nothing). `exact` is false
    where the model is served at a lossy level (O2): its answers may differ from the original's.
    `cached`: an equal input was run instead, on `nodes`; the trace is empty then.
    `tensors` are the raw outputs; the field is there only where msgpack was asked for.
    """

    job: str
    model: str
    top: list[Label] | None
    pipeline: str
    generation: int
    nodes: list[str]
    latency_ms: float
    trace: list[TraceEntry]
    weights: str
    exact: bool = True
    cached: bool = False
    tensors: dict[str, WireTensor] | UnsetType = UNSET
    status: Literal["ok"] = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswer:
    """The answers of a batch, in the order of its images: each an `Answer` or an `ErrorAnswer`.

    Which one is told by `status`; the codec's types cannot say that, so a reader decodes each item.
    """

    job: str
    model: str
    results: list[Any]
    latency_ms: float
    status: Literal["ok"] = "ok"

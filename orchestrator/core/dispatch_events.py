"""What the dispatcher is told (events) and what it wants done (actions).

`now` is on every event, in seconds of one monotonic clock. Payloads, outputs, contexts and handles are
opaque: held, handed back, never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from orchestrator.core.dispatch_settings import SettingsChanged
from orchestrator.core.micro_batch import ALONE, MicroBatchLimits
from shared.errors import ErrorCode
from shared.job_options import DEFAULT_PRIORITY

if TYPE_CHECKING:
    from collections.abc import Hashable

    from orchestrator.core.nsa import NodeFigures
    from orchestrator.core.result_cache import CacheKey, CacheSettings
    from orchestrator.core.selection import Decision


# --- values ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InputItem:
    """One input of a request; `size_bytes` is what it takes in the queue.

    `key` is equal for inputs that have the same answer; None where that is not to be used.
    """

    payload: object
    size_bytes: int
    key: CacheKey | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """A stage's result: opaque `value`, and the bytes that keeping it takes."""

    value: object
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why there is no output, with the fields of an error answer.

    `retryable`: another attempt may succeed (a stage's own trouble); without it the fault lies in the
    input and the item ends at once.
    """

    code: ErrorCode
    message: str
    retryable: bool = False
    expected: str | None = None
    got: str | None = None
    retry_after_s: float | None = None


Outcome: TypeAlias = Output | Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedItem:
    """How one item ended. `latency_s` counts from the request's arrival.

    `flight_s` is from the dispatch that brought the outcome to the outcome's arrival, and `queue_s` all
    waiting in the queue before that dispatch, so that `latency_s - flight_s` is all that passed before
    it (`waited_s` of `complete_trace`), and what of that is not `queue_s` went into attempts that
    failed. Ended without a result: `pipeline` and `generation` are None, `flight_s` is 0 and
    `queue_s` all waiting there was. `cached`: the output is that of an equal input, which those name.
    """

    outcome: Outcome
    pipeline: str | None
    generation: int | None
    attempts: int
    queue_s: float
    flight_s: float
    latency_s: float
    cached: bool = False


# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestArrived:
    """A client's request: one item or a batch, answered by one answer.

    `request_id` is unique for ever (the shell makes it). `job` is the client's own id or None: the same
    (`reply_to`, `job`) is the same job. `deadline` is absolute, by the clock of `now`. `handle`
    acknowledges the message. `client` is whose share of the queue it takes, `priority` (one of
    `PRIORITIES`) what goes first. `latest`: of such requests of one client only the newest waits.
    `delivery` names the broker's delivery: equal for a redelivery of the same unacknowledged message and
    for nothing else within the broker's session (so: the session's number and the packet id). `context`
    comes back with the answer; that of a keyed request must not be large.
    """

    now: float
    request_id: str
    model: str
    reply_to: str
    items: tuple[InputItem, ...]
    handle: object
    job: str | bytes | None = None
    deadline: float | None = None
    client: str = ""
    priority: int = DEFAULT_PRIORITY
    latest: bool = False
    delivery: Hashable | None = None
    context: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultArrived:
    """A pipeline's outcome of one attempt at one item.

    Of a message that `size` items came through in, one event says what the stages measured: `stage_cpu_s`,
    each stage's CPU seconds for all of them.
    """

    now: float
    request_id: str
    item_index: int
    attempt: int
    pipeline: str
    generation: int
    outcome: Outcome
    size: int = 1
    stage_cpu_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemProgressed:
    """A watched item is where it was not before: `node` computes it, or (None) it is between two nodes."""

    now: float
    request_id: str
    item_index: int
    attempt: int
    pipeline: str
    generation: int
    node: str | None


@dataclass(frozen=True, slots=True)
class ModelServed:
    """Requests for the model are accepted from now on, even before a pipeline is active.

    `cache`: keep its answers; None keeps none. Other settings than before begin with none.
    """

    now: float
    model: str
    cache: CacheSettings | None = None


@dataclass(frozen=True, slots=True)
class ModelStopped:
    """The model is no longer served.

    What waits is `unavailable`, what is in flight may finish, and all its pipelines drain.
    """

    now: float
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineActivated:
    """All stages of a pipeline of a served model are ready, or its figures have changed.

    `throughput_per_s` and `latency_s` are the plan's predictions; `window` None means `default_window`.
    `identity` is that of the cache keys whose answers it makes.
    `micro_batch` says how many items may travel in one message.
    """

    now: float
    model: str
    pipeline: str
    generation: int
    num_stages: int
    throughput_per_s: float
    latency_s: float
    window: int | None = None
    identity: str = ""
    micro_batch: MicroBatchLimits = ALONE


@dataclass(frozen=True, slots=True)
class PipelineDraining:
    """No new items for this pipeline.

    Always followed by a `PipelineDrained` (at once when nothing is in flight or the pipeline is not
    known), unless it is lost first.
    """

    now: float
    model: str
    pipeline: str
    generation: int


@dataclass(frozen=True, slots=True)
class PipelineLost:
    """A node of this pipeline is gone, and with it what was in flight there.

    `crashed` names it when its process ended without a word: what it was computing may be why.
    """

    now: float
    model: str
    pipeline: str
    generation: int
    crashed: str | None = None


@dataclass(frozen=True, slots=True)
class PipelineFigures:
    """How the nodes of a pipeline do, by telemetry: one entry for each stage. For the rules that go by it."""

    now: float
    model: str
    pipeline: str
    generation: int
    nodes: tuple[NodeFigures, ...]


@dataclass(frozen=True, slots=True)
class BusReconnected:
    """The connection to the broker was made anew: the broker may have lost what was in flight."""

    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due when `Dispatcher.next_wakeup()` says so (earlier does no harm).

    Deadlines and timeouts of what is in flight act here only, so a shell that hands over all results
    it has before the tick never lets a result lose against a timeout that it arrived before.
    """

    now: float


Event: TypeAlias = (
    RequestArrived
    | ResultArrived
    | ItemProgressed
    | ModelServed
    | ModelStopped
    | PipelineActivated
    | PipelineDraining
    | PipelineLost
    | PipelineFigures
    | BusReconnected
    | SettingsChanged
    | Tick
)


# --- actions --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Companion:
    """An item that travels with another one of its request; its `attempt` as in `Dispatch`."""

    item_index: int
    attempt: int
    payload: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Send one item to stage 0 of a pipeline, and in the same message its `companions`.

    `attempt` counts from 1. `size_bytes` are those of all. `watched`: the stages are to say where it is
    (`ItemProgressed`); such an item travels alone.
    """

    request_id: str
    item_index: int
    attempt: int
    model: str
    pipeline: str
    generation: int
    payload: object
    size_bytes: int
    priority: int = DEFAULT_PRIORITY
    watched: bool = False
    companions: tuple[Companion, ...] = ()


@dataclass(frozen=True, slots=True)
class Poisoned:
    """Set this item's request aside: nodes died of it, the last of `nodes` while it computed it.

    Its answer, an error, follows. `handle` is the request's message.
    """

    request_id: str
    item_index: int
    model: str
    job: str | bytes | None
    nodes: tuple[str, ...]
    handle: object


@dataclass(frozen=True, slots=True)
class Decided:
    """Say where an item went and why; only where the settings ask for it."""

    request_id: str
    item_index: int
    model: str
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Publish the answer of an accepted request, then acknowledge all `handles`.

    These are its own message and repeats of it. `items` are in the order of the request's.
    """

    request_id: str
    model: str
    reply_to: str
    job: str | bytes | None
    context: object
    items: tuple[EndedItem, ...]
    latency_s: float
    handles: tuple[object, ...]

    @property
    def failure(self) -> Failure | None:
        """The first failure in item order; None when every item has its output."""
        for item in self.items:
            if isinstance(item.outcome, Failure):
                return item.outcome
        return None

    @property
    def is_final(self) -> bool:
        """Whether a repeat of the job gets this answer again; who was told to come back later runs anew."""
        for item in self.items:
            if isinstance(item.outcome, Failure) and item.outcome.code is ErrorCode.OVERLOADED:
                return False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerAgain:
    """Publish a job's first answer again, then acknowledge the repeat.

    `first` has no context and no handles left; `context` and `handle` are the repeat's.
    """

    first: Answer
    context: object
    handle: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Publish an error for a request that was not accepted, then acknowledge it.

    A repeat is a new request: a client told `overloaded` comes back with the same job.
    """

    request_id: str
    model: str
    reply_to: str
    job: str | bytes | None
    context: object
    failure: Failure
    handle: object


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Acknowledge a repeat without an answer of its own."""

    handle: object


@dataclass(frozen=True, slots=True)
class PipelineDrained:
    """Nothing is in flight in this pipeline any more and it is forgotten: its stages may go."""

    model: str
    pipeline: str
    generation: int


Action: TypeAlias = (
    Dispatch | Decided | Poisoned | Answer | AnswerAgain | Reject | Acknowledge | PipelineDrained
)

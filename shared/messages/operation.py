"""Operating the cluster: requests and responses, the orchestrator's state, events, metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from shared.messages import Count, Digest, Name, Ratio, Seconds, Term, Version
from shared.messages.job import ErrorBody
from shared.messages.model import PredictionError, ServeOptions
from shared.messages.stage import Blob
from shared.profile import DEFAULT_ZONE, ModelProfile, NodeProfile

Transaction = Annotated[str, Meta(min_length=1, max_length=128)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """Serve a model. `provider` is the peer that holds `manifest` and `blobs` until we have them.

    Without `manifest` the model is one that is served, and is to be with other options.
    """

    transaction: Transaction
    model: Name
    manifest: Blob | None = None
    blobs: Annotated[list[Blob], Meta(max_length=20_000)] = field(default_factory=list)
    provider: Name | None = None
    options: ServeOptions = field(default_factory=ServeOptions)
    timeout_s: Annotated[float, Meta(gt=0, le=86400)] = 120.0
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequest:
    """Stop serving a model: its stages are unloaded, its waiting jobs answered `unknown_model`."""

    transaction: Transaction
    model: Name
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplanRequest:
    """Plan a served model again, with no hysteresis and no cool-down."""

    transaction: Transaction
    model: Name
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRequest:
    """Say where the latest items went and why, of one model or (None) of all; see `Decisions`."""

    transaction: Transaction
    model: Name | None = None
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRow:
    """One pipeline in a decision: the rule's terms, and why it was not taken by rank (empty: it could be)."""

    pipeline: str
    generation: Count
    chosen: bool
    terms: dict[str, float]
    passed_over: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRow:
    """Where an item went and why. `probe`: not by rank, but to get a new sample of that pipeline."""

    scheduler: str
    probe: bool
    candidates: list[CandidateRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDecision:
    """A model's latest decision that was explained, one a second at most; None before its first job."""

    model: str
    age_s: Seconds | None
    decision: DecisionRow | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """The `data` of the response to `explain`."""

    models: list[ModelDecision]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentsRequest:
    """List the latest deployments, of one model or (None) of all; see `Deployments`."""

    transaction: Transaction
    model: Name | None = None
    most: Annotated[int, Meta(ge=1, le=1000)] = 20
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployedStage:
    """One stage of a deployment, with what its node said; None each where it did not come to that.

    `fetched_bytes` came over the bus for it, as they travelled, in `fetch_s`; from there it took `load_s`
    until it took activations.
    """

    pipeline: str
    stage: Count
    node: str
    blocks: tuple[int, int]
    state: str
    fetched_bytes: Count = 0
    fetch_s: Seconds = 0.0
    load_s: Seconds = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A plan that was set on its way to the nodes.

    `at` is when it was decided and `reason` why, `manifest` the digest of the model's package. It took
    `took_s` until it was `active` or was given up (`failed`; `detail` says why); of that `waited_s` until its
    nodes had room for it, and `slice_s` to cut its stages out of the model. `fetched_bytes` are those of all
    stages.
    """

    at: str
    model: Name
    manifest: Digest
    runtime: str
    level: str
    generation: Count
    reason: str
    outcome: Literal["active", "failed"]
    detail: str
    took_s: Seconds
    waited_s: Seconds
    slice_s: Seconds
    fetched_bytes: Count
    stages: list[DeployedStage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployments:
    """The `data` of the response to `deployments`: the latest first."""

    deployments: list[Deployment]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsRequest:
    """List the latest events, of one node or model or (None) of all; see `KeptEvents`."""

    transaction: Transaction
    node: Name | None = None
    model: Name | None = None
    most: Annotated[int, Meta(ge=0, le=1000)] = 20
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptEvents:
    """The `data` of the response to `events`: as they stood on `event`, the latest last.

    The orchestrator that leads remembers 1,000 since it began to.
    """

    events: list[Happening]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """Say what should run where now; nothing is changed by it. See `PlanAnswer`.

    `model` is one that is served, unless `manifest` names the package of one that is not, which
    `provider` holds until we have it; its weights are not needed. Without `options` no plan is made.
    """

    transaction: Transaction
    model: Name
    manifest: Blob | None = None
    provider: Name | None = None
    options: ServeOptions | None = None
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnswer:
    """The `data` of the response to `plan`: what the orchestrator plans with, and what it would choose.

    `profile` is the model as measured with `runtime`; `nodes` are those that live and have it, with
    their measured links, corrected speeds, and what other models leave of them. The same planner gives
    the same plan of them anywhere. `plan` is null where none was asked for.
    """

    runtime: str
    profile: ModelProfile
    nodes: list[NodeProfile]
    plan: dict[str, Any] | None = None
    broker_zone: str = DEFAULT_ZONE
    orchestrator_zone: str = DEFAULT_ZONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """`progress` lines may come before the one `ok` or `error` that ends a transaction."""

    transaction: str
    status: Literal["progress", "ok", "error"]
    data: dict[str, Any] = field(default_factory=dict)
    error: ErrorBody | None = None
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a job has to keep."""

    max_item_bytes: Count
    max_queue_items: Count
    max_queue_bytes: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorState:
    """Who orchestrates; agents report again when `incarnation` changes.

    `starting` is a claim: it leads unless a greater claim came before, and takes requests when `online`.
    `set_aside` is how many jobs of which nodes died it keeps for the operator to see.
    `term` only grows, with each orchestrator that begins to lead; `leader` names the process. Of two that
    claim one term the greater name counts. `standbys` are the processes that are ready to take over.
    """

    text: str = ""
    state: Literal["starting", "online", "offline", "lost"]
    incarnation: Count
    term: Term = 0
    leader: Name | None = None
    standbys: list[Name] = field(default_factory=list)
    host: str = ""
    pid: Count = 0
    version: str = ""
    limits: Limits | None = None
    set_aside: Count = 0
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The leader lives. `count` only grows, also over restarts of the orchestrator and over terms."""

    count: Count
    term: Term = 0
    leader: Name | None = None
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Standby:
    """An orchestrator that would lead lives. `serial` counts its signs: by its own it knows that it hears.

    `ready`: it has the packages of all models that are served.
    """

    text: str = ""
    name: Name
    serial: Count
    ready: bool = True
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One thing that happened. `text` is for people, the fields for programs.

    Of level `debug` is what comes with every job; only where the orchestrator was told to send it.
    """

    at: str
    text: str
    event: str
    level: Literal["info", "debug"] = "info"
    node: str | None = None
    model: str | None = None
    generation: int | None = None
    reason: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheMetrics:
    """A model's result cache since it was served, in inputs, and what it holds now.

    `hits` were answered from it, `joined` by the run of an equal input that was under way, `misses` were run.
    `hit_ratio` is the share of the first two; null before the first input.
    """

    hits: Count
    joined: Count
    misses: Count
    hit_ratio: Ratio | None
    entries: Count
    size_bytes: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class LastLabel:
    """The class that a classifier's latest answer puts first. `at` is when it was answered."""

    label: str
    probability: float
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetrics:
    """One model over the last second, with totals since the orchestrator started.

    `prediction_error` is that of the plan in force, as in the model's state; null before a measurement.
    `cache` is null where its answers are not kept. `last` is told with `--home-assistant` only: answers are
    otherwise for who asked.
    """

    queued: Count
    in_flight: Count
    answered_per_s: float
    latency_p50_s: Seconds | None
    latency_p95_s: Seconds | None
    prediction_error: PredictionError | None = None
    cache: CacheMetrics | None = None
    last: LastLabel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStanding:
    """A node that is not simply there.

    `silent`: it said nothing for too long and did not answer; `lost` and `offline` as in its state;
    `left_out`: it came and went too often, and is used only where nothing fits without it. `for_s` is how
    long it has been gone; `until_s` how long until it is forgotten, or used as any other again.
    `disk_full`: it runs what it has, but has no room for what `reason` says; that ends with the room.
    """

    state: Literal["silent", "lost", "offline", "left_out", "disk_full"]
    for_s: Seconds
    until_s: Seconds
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Totals since start by counter, each model's last second, and the nodes that are not simply there.

    `cpu_s` are CPU seconds of the orchestrator since its start, `memory_bytes` its largest resident size;
    `sent_at_ms` its wall time, 0 where it does not say.
    """

    text: str = ""
    counters: dict[str, Count]
    models: dict[str, ModelMetrics]
    nodes_online: Count
    cpu_s: float
    memory_bytes: Count
    nodes: dict[str, NodeStanding] = field(default_factory=dict)
    sent_at_ms: Count = 0
    v: Version = 1

"""What can happen to a cluster, and what it does about it: the events and actions of `cluster.Cluster`.

Every event carries `now`, in seconds of the shell's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from orchestrator.core.cluster_settings import SettingsChanged
from orchestrator.core.micro_batch import MicroBatchLimits
from orchestrator.core.plan import PipelinePlan
from shared.errors import ErrorCode
from shared.manifest import Quantisation
from shared.messages.cordon import Cordon
from shared.messages.model import ModelState, ServeOptions
from shared.messages.node import NodeState, Telemetry
from shared.messages.stage import Report, StageReport
from shared.profile import UNCOMPRESSED, ModelProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A model as the cluster knows it.

    `reference` has, per runtime, the calibration seconds of the machine that measured the profile;
    a node's own calibration against it gives the node's speed. `block_shares` says how each block's
    time divides over the classes of operators, in the order of `CostClass` (empty: evenly). `blobs` are the
    digests of each block's weights ("" for a block without any); where they are not given no two models
    share weights. `level` is how far the graph was optimised. Where nobody asked for a runtime, `others` is
    the same model as it would be served with the others, by runtime; theirs are empty.
    """

    name: str
    manifest: str
    profile: ModelProfile
    options: ServeOptions
    runtime: str
    weights: str
    reference: dict[str, dict[str, float]] = field(default_factory=dict)
    block_shares: tuple[tuple[float, ...], ...] = ()
    blobs: tuple[str, ...] = ()
    level: str = ""
    quantisation: Quantisation | None = None
    others: tuple[ModelEntry, ...] = ()

    def variants(self) -> tuple[ModelEntry, ...]:
        """This, and then the same model with each other runtime that it may be served with."""
        bare = (*self.others, replace(self, others=()))
        return self, *(
            replace(other, others=_by_runtime(each for each in bare if each is not other))
            for other in self.others
        )

    def with_options(self, options: ServeOptions) -> ModelEntry:
        """The same, to be served in another way, with whatever runtime."""
        others = tuple(replace(other, options=options) for other in self.others)
        return replace(self, options=options, others=others)

    def weights_key(self, block: int) -> str:
        """What the weights of a block are known by on a node: equal keys are the same bytes, there once."""
        return f"{self.runtime}/{self.blobs[block] if self.blobs else f'{self.manifest}/{block}'}"


def _by_runtime(entries: Iterable[ModelEntry]) -> tuple[ModelEntry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.runtime))


# --- events


@dataclass(frozen=True, slots=True)
class NodeBorn:
    """A birth, or the same birth again (reconnected, or its calibration is ready)."""

    now: float
    state: NodeState


@dataclass(frozen=True, slots=True)
class NodeDied:
    """A death: by itself (`offline`) or from the last will (`lost`)."""

    now: float
    state: NodeState


@dataclass(frozen=True, slots=True)
class NodeHeard:
    """Telemetry; renews the node's lease."""

    now: float
    telemetry: Telemetry


@dataclass(frozen=True, slots=True)
class QuestionSeen:
    """A question of `AskNode` came back to us from the broker: it was passed on, and we can hear."""

    now: float
    node: str


@dataclass(frozen=True, slots=True)
class NodeReported:
    """How far a node's stages are."""

    now: float
    report: Report


@dataclass(frozen=True, slots=True)
class MessageRefused:
    """A node's message that could not be read; `incarnation` where at least that could be."""

    now: float
    node: str
    what: str
    problem: str
    incarnation: int | None


@dataclass(frozen=True, slots=True)
class AssignmentSeen:
    """A retained assignment: revisions go on from it, and so do generation numbers.

    One that we published ourselves changes nothing. `generations` are (model, generation) of its stages.
    """

    now: float
    node: str
    revision: int
    generations: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ServeAsked:
    """Serve a model; `deadline` is when the asker stops waiting."""

    now: float
    transaction: str
    entry: ModelEntry
    deadline: float


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Stop serving a model."""

    now: float
    transaction: str
    model: str


@dataclass(frozen=True, slots=True)
class ReplanAsked:
    """Plan a model again, with no hysteresis."""

    now: float
    transaction: str
    model: str


@dataclass(frozen=True, slots=True)
class CordonAsked:
    """Give a node nothing new; with `drain`, move what it holds, too, and wait for that until `deadline`.

    `at` is what people call now.
    """

    now: float
    transaction: str
    node: str
    drain: bool
    at: str
    reason: str
    deadline: float


@dataclass(frozen=True, slots=True)
class UncordonAsked:
    """Plan with a node again."""

    now: float
    transaction: str
    node: str


@dataclass(frozen=True, slots=True)
class CordonSeen:
    """A node was cordoned or drained under an earlier orchestrator; one that we published changes nothing."""

    now: float
    node: str
    cordon: Cordon


@dataclass(frozen=True, slots=True)
class ModelRestored:
    """What an earlier orchestrator had retained about a model that it served."""

    now: float
    entry: ModelEntry
    state: ModelState


@dataclass(frozen=True, slots=True)
class RestoreEnded:
    """All that an earlier orchestrator had retained was seen: from now on nodes are told what to hold.

    Before, an assignment would be empty, and unload what serves.
    """

    now: float


@dataclass(frozen=True, slots=True)
class PipelineDrained:
    """The dispatcher has nothing left in a pipeline that it was told to drain."""

    now: float
    model: str
    pipeline: str
    generation: int


@dataclass(frozen=True, slots=True)
class StageMeasured:
    """Mean seconds per item of one stage since the last such event."""

    now: float
    model: str
    pipeline: str
    generation: int
    stage: int
    node: str
    items: int
    cpu_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class InputsCounted:
    """Items of a model that went to first stages since the dispatcher knows it, and their bytes."""

    now: float
    model: str
    items: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class RoundingHurt:
    """What a generation rounds between stages changes answers by more than was allowed."""

    now: float
    model: str
    generation: int
    error_ratio: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes."""

    now: float


Event = (
    NodeBorn
    | NodeDied
    | NodeHeard
    | QuestionSeen
    | NodeReported
    | MessageRefused
    | AssignmentSeen
    | ServeAsked
    | StopAsked
    | ReplanAsked
    | CordonAsked
    | UncordonAsked
    | CordonSeen
    | SettingsChanged
    | ModelRestored
    | RestoreEnded
    | PipelineDrained
    | RoundingHurt
    | StageMeasured
    | InputsCounted
    | Tick
)

# --- actions


@dataclass(frozen=True, slots=True)
class StageRef:
    """One stage of one generation; the shell turns it into digests by slicing the model."""

    entry: ModelEntry
    pipeline: str
    generation: int
    stage: int
    num_stages: int
    blocks: tuple[int, int]
    compression: str = UNCOMPRESSED

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What a report names a stage by."""
        return (self.entry.name, self.pipeline, self.generation, self.stage)


@dataclass(frozen=True, slots=True)
class AskNode:
    """Ask a node that is silent whether it is there; it answers with its report."""

    node: str


@dataclass(frozen=True, slots=True)
class PushAssignment:
    """Publish the full desired state of a node."""

    node: str
    revision: int
    stages: tuple[StageRef, ...]


@dataclass(frozen=True, slots=True)
class ClearAssignment:
    """A node holds nothing, and knows that it shall: nothing has to be retained for it."""

    node: str


@dataclass(frozen=True, slots=True)
class ForgetNode:
    """A node is gone for good: clear all that is retained of it."""

    node: str


@dataclass(frozen=True, slots=True)
class ModelKnown:
    """Jobs for this model may be accepted."""

    model: str
    entry: ModelEntry


@dataclass(frozen=True, slots=True)
class ModelForgotten:
    """Jobs for this model are to be refused, those that wait as well."""

    model: str


@dataclass(frozen=True, slots=True)
class ActivatePipeline:
    """Every stage is ready: send jobs."""

    entry: ModelEntry
    pipeline: str
    generation: int
    plan: PipelinePlan
    throughput_per_s: float
    latency_s: float
    micro_batch: MicroBatchLimits


@dataclass(frozen=True, slots=True)
class DrainPipeline:
    """Send no new jobs; say when the last is out."""

    model: str
    pipeline: str
    generation: int


@dataclass(frozen=True, slots=True)
class LosePipeline:
    """A node of it is gone: what was in it has to run again elsewhere.

    `crashed` is the node's name when its process ended without a word.
    """

    model: str
    pipeline: str
    generation: int
    crashed: str | None = None


@dataclass(frozen=True, slots=True)
class StageLoad:
    """One stage of a plan that was set on its way; `report` is the last that its node said, if anything."""

    pipeline: str
    stage: int
    node: str
    blocks: tuple[int, int]
    report: StageReport | None


@dataclass(frozen=True, slots=True)
class DeploymentEnded:
    """A plan that was set on its way runs (`active`), or was given up: `fate` says why.

    `took_s` is from the decision, `loaded_s` from when its nodes had room for it and were told.
    """

    model: str
    manifest: str
    runtime: str
    level: str
    generation: int
    cause: str
    took_s: float
    loaded_s: float
    active: bool
    fate: str
    stages: tuple[StageLoad, ...]


@dataclass(frozen=True, slots=True)
class PublishModel:
    """The model's state changed (`Cluster.model_state`), or it is not served any more."""

    model: str


@dataclass(frozen=True, slots=True)
class PublishCordon:
    """A node is out of plans, or (None) it is not any more."""

    node: str
    cordon: Cordon | None


@dataclass(frozen=True, slots=True)
class Tell:
    """One line for the `event` topic."""

    event: str
    text: str
    node: str | None = None
    model: str | None = None
    generation: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """A line for whoever waits for a transaction."""

    transaction: str
    verb: str
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a transaction about a model, or about a node: done, or why not."""

    transaction: str
    verb: str
    model: str | None = None
    error: str | None = None
    code: ErrorCode = ErrorCode.UNAVAILABLE
    node: str | None = None


Action = (
    AskNode
    | PushAssignment
    | ClearAssignment
    | ForgetNode
    | ModelKnown
    | ModelForgotten
    | ActivatePipeline
    | DrainPipeline
    | LosePipeline
    | DeploymentEnded
    | PublishModel
    | PublishCordon
    | Tell
    | Progress
    | Finish
)

"""What this node shall hold, against what it holds: an assignment in, stage by stage actions out.

An assignment is the full desired state. Each stage that it names lives through this table, and each life has
a number, so that what comes late for an earlier life changes nothing:

==========  ==================  ==========  =================================
state       event               next        actions
==========  ==================  ==========  =================================
(none)      named               fetching    `FetchBlobs`
fetching    blobs arriving      fetching
fetching    blobs ready         loading     `Load`
fetching    blobs failed        failed
fetching    no longer named     (none)      `CancelFetch`
loading     loaded              ready
loading     load failed         failed
loading     no longer named     abandoned
abandoned   loaded              unloading   `Unload`
abandoned   load failed         (none)
ready       no longer named     unloading   `Unload`
unloading   unloaded            (none)
failed      no longer named     (none)
failed      named by a later    fetching    `FetchBlobs`, in a new life
            revision
==========  ==================  ==========  =================================

`Unload` finishes what is queued for the stage before it lets go. A stage that is named again while it is
unloading begins a new life beside the old one. A stage named with other contents (another graph, other
weights) is another stage. Every change is followed by `PublishReport`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias, assert_never

from shared.errors import ForgedReason
from shared.messages.stage import (
    Assignment,
    Blob,
    Forgery,
    Report,
    StageAssignment,
    StageReport,
    StageState,
    VouchedTopic,
)


class Phase(StrEnum):
    """The states of the table above."""

    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    ABANDONED = "abandoned"
    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True)
class AssignmentReceived:
    """The retained assignment came, for the first time, changed, or once more."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class BlobsArriving:
    """Of what life `life` needs, `here_bytes` are here: it takes long, and goes on."""

    life: int
    here_bytes: int


@dataclass(frozen=True, slots=True)
class BlobsReady:
    """Everything that life `life` needs is in the cache.

    `fetched_bytes` came over the bus for it, as they travelled, in `fetch_s` wall seconds.
    """

    life: int
    fetched_bytes: int
    fetch_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BlobsFailed:
    """A blob cannot be had; where the disk is full `needs_disk_bytes` free would do."""

    life: int
    reason: str
    needs_disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StageLoaded:
    """The stage takes activations. `load_s`: wall seconds from the blobs to here."""

    life: int
    load_s: float


@dataclass(frozen=True, slots=True)
class StageLoadFailed:
    """The runtime refused the stage."""

    life: int
    reason: str


@dataclass(frozen=True, slots=True)
class StageUnloaded:
    """The stage is gone, and its memory with it."""

    life: int


@dataclass(frozen=True, slots=True)
class OrchestratorBorn:
    """An orchestrator says that it is online, as it does after each of its connections.

    `again`: it is the retained word, which comes with each connection of ours. `term`: under which it leads.
    """

    incarnation: int
    again: bool = False
    term: int = 0


@dataclass(frozen=True, slots=True)
class MessageForged:
    """`count` messages more were dropped, since nobody vouches for them who may."""

    topic: VouchedTopic
    reason: ForgedReason
    count: int = 1


@dataclass(frozen=True, slots=True)
class BusConnected:
    """A connection was made: the broker may have forgotten, and a report may have been lost."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody asks whether this node is there: it says so with its report."""


@dataclass(frozen=True, slots=True)
class PrefetchEnded:
    """The prefetch of assignment `revision` came to its end, complete or not."""

    revision: int


Event: TypeAlias = (
    AssignmentReceived
    | BlobsArriving
    | BlobsReady
    | BlobsFailed
    | StageLoaded
    | StageLoadFailed
    | StageUnloaded
    | OrchestratorBorn
    | MessageForged
    | BusConnected
    | Asked
    | PrefetchEnded
)


@dataclass(frozen=True, slots=True)
class FetchBlobs:
    """Bring what the stage needs into the cache, and keep it there.

    Answered by `BlobsReady` or `BlobsFailed`.
    """

    life: int
    stage: StageAssignment


@dataclass(frozen=True, slots=True)
class CancelFetch:
    """Nobody waits for these blobs any more; not answered."""

    life: int


@dataclass(frozen=True, slots=True)
class Load:
    """Load the stage and subscribe to its activations; answered by `StageLoaded` or `StageLoadFailed`."""

    life: int
    stage: StageAssignment


@dataclass(frozen=True, slots=True)
class Unload:
    """Unsubscribe, finish what is queued, let go; answered by `StageUnloaded`."""

    life: int
    stage: StageAssignment


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Fetch `blobs` one after the other while idle; replaces the prefetch before, none stops it."""

    revision: int
    blobs: tuple[Blob, ...]


@dataclass(frozen=True, slots=True)
class PublishReport:
    """Tell the orchestrator how far each stage is."""

    report: Report


Action: TypeAlias = FetchBlobs | CancelFetch | Load | Unload | Prefetch | PublishReport


@dataclass(slots=True)
class Held:
    """One life of one stage."""

    life: int
    stage: StageAssignment
    phase: Phase
    reason: str = ""
    load_s: float = 0.0
    fetch_s: float = 0.0
    here_bytes: int = 0
    fetched_bytes: int = 0
    needs_disk_bytes: int = 0


@dataclass(slots=True)
class Desired:
    """The state machine of one node. `step` is the only way to change it."""

    node: str
    incarnation: int
    term: int = 0
    """The greatest that was heard of; what a leader of a lesser one says is not listened to."""
    revision: int = -1
    """The assignment in force, of term `obeyed`; -1 before the first."""
    obeyed: int = 0
    lives: dict[int, Held] = field(default_factory=dict)
    foreign: int = 0
    """Assignments dropped because they were for another node."""
    outdated: int = 0
    """Assignments dropped because a later one of the same leader had come."""
    refused: int = 0
    """Assignments dropped because there is a leader of a greater term."""
    forged: Counter[tuple[VouchedTopic, ForgedReason]] = field(default_factory=Counter)
    """What was dropped so far: the first of each kind is reported at once, the rest with the next report."""
    _next_life: int = 1
    _orchestrator: int = -1
    _prefetch: tuple[Blob, ...] = ()
    _prefetching: bool = False

    def step(self, event: Event) -> list[Action]:
        """What to do about `event`, in this order."""
        match event:
            case AssignmentReceived(assignment):
                actions = self._assign(assignment)
            case BlobsArriving(life, here_bytes):
                actions = self._arriving(life, here_bytes)
            case BlobsReady():
                actions = self._blobs_ready(event)
            case BlobsFailed(life, reason, needs_disk_bytes):
                actions = self._failed(life, Phase.FETCHING, reason, needs_disk_bytes)
            case StageLoaded(life, load_s):
                actions = self._loaded(life, load_s)
            case StageLoadFailed(life, reason):
                actions = self._failed(life, Phase.LOADING, reason)
            case StageUnloaded(life):
                held = self.lives.get(life)
                if held is not None and held.phase is Phase.UNLOADING:
                    del self.lives[life]
                actions = []
            case OrchestratorBorn():
                actions = self._orchestrator_born(event)
            case MessageForged(topic, reason, count):
                is_first = (topic, reason) not in self.forged
                self.forged[topic, reason] += count
                actions = [self._report()] if is_first else []
            case BusConnected():
                actions = [self._report()] if self.revision >= 0 else []
            case Asked():
                actions = [self._report()]
            case PrefetchEnded(revision):
                if revision == self.revision and self._prefetching:
                    self._prefetching = False
                    self._prefetch = ()
                actions = []
            case _:
                assert_never(event)
        return actions + self._idle()

    def _orchestrator_born(self, born: OrchestratorBorn) -> list[Action]:
        if born.term < self.term:
            return []  # one that was cut off, and does not know yet that another leads
        self.term = born.term
        # While it was away, and be it for a moment, our reports went nowhere: they are not retained.
        # Only what it said before we came back needs no answer: `BusConnected` has it.
        unheard = not born.again or born.incarnation != self._orchestrator
        self._orchestrator = born.incarnation
        return [self._report()] if unheard and self.revision >= 0 else []

    def named(self) -> list[Held]:
        """The stages of the assignment in force, in its order of life."""
        gone = (Phase.ABANDONED, Phase.UNLOADING)
        return [held for held in self.lives.values() if held.phase not in gone]

    def _assign(self, assignment: Assignment) -> list[Action]:
        if assignment.node != self.node:
            self.foreign += 1
            return []
        if assignment.term < self.term:
            self.refused += 1
            return [self._report()]
        if assignment.term == self.obeyed and assignment.revision <= self.revision:
            self.outdated += assignment.revision < self.revision
            return []
        self.term = self.obeyed = assignment.term
        self.revision = assignment.revision
        self._prefetch = tuple(assignment.prefetch)
        actions: list[Action] = []
        if self._prefetching:
            self._prefetching = False
            actions.append(Prefetch(self.revision, ()))
        # Compared whole: the same place with another graph or other weights is another stage.
        wanted = list({_place(stage): stage for stage in assignment.stages}.values())
        kept: list[StageAssignment] = []
        for held in list(self.named()):
            if held.stage in wanted and held.phase is not Phase.FAILED:
                kept.append(held.stage)
            else:
                actions += self._drop(held)
        for stage in wanted:
            if stage not in kept:
                actions.append(self._begin(stage))
        return [*actions, self._report()]

    def _begin(self, stage: StageAssignment) -> FetchBlobs:
        life = self._next_life
        self._next_life += 1
        self.lives[life] = Held(life, stage, Phase.FETCHING)
        return FetchBlobs(life, stage)

    def _drop(self, held: Held) -> list[Action]:
        match held.phase:
            case Phase.FETCHING:
                del self.lives[held.life]
                return [CancelFetch(held.life)]
            case Phase.LOADING:
                # A load cannot be stopped half way; it is undone when it ends.
                held.phase = Phase.ABANDONED
                return []
            case Phase.READY:
                held.phase = Phase.UNLOADING
                return [Unload(held.life, held.stage)]
            case Phase.FAILED:
                del self.lives[held.life]
                return []
            case Phase.ABANDONED | Phase.UNLOADING:
                return []
            case _:
                assert_never(held.phase)

    def _arriving(self, life: int, here_bytes: int) -> list[Action]:
        held = self.lives.get(life)
        if held is None or held.phase is not Phase.FETCHING or here_bytes <= held.here_bytes:
            return []
        held.here_bytes = here_bytes
        return [self._report()]

    def _blobs_ready(self, ready: BlobsReady) -> list[Action]:
        held = self.lives.get(ready.life)
        if held is None or held.phase is not Phase.FETCHING:
            return []
        held.phase = Phase.LOADING
        held.fetched_bytes, held.fetch_s = ready.fetched_bytes, ready.fetch_s
        return [Load(held.life, held.stage), self._report()]

    def _loaded(self, life: int, load_s: float) -> list[Action]:
        held = self.lives.get(life)
        if held is None:
            return []
        if held.phase is Phase.ABANDONED:
            held.phase = Phase.UNLOADING
            return [Unload(life, held.stage)]
        if held.phase is not Phase.LOADING:
            return []
        held.phase = Phase.READY
        held.load_s = load_s
        return [self._report()]

    def _failed(
        self, life: int, during: Phase, reason: str, needs_disk_bytes: int = 0
    ) -> list[Action]:
        held = self.lives.get(life)
        if held is None:
            return []
        if held.phase is Phase.ABANDONED and during is Phase.LOADING:
            del self.lives[life]
            return []
        if held.phase is not during:
            return []
        held.phase = Phase.FAILED
        held.reason, held.needs_disk_bytes = reason, needs_disk_bytes
        return [self._report()]

    def _idle(self) -> list[Action]:
        """Prefetch when there is something to prefetch and nothing better to do."""
        # What was abandoned while it loads is still loading.
        at_work = (Phase.FETCHING, Phase.LOADING, Phase.ABANDONED)
        busy = any(held.phase in at_work for held in self.lives.values())
        if busy or self._prefetching or not self._prefetch:
            return []
        self._prefetching = True
        return [Prefetch(self.revision, self._prefetch)]

    def _report(self) -> PublishReport:
        return PublishReport(
            Report(
                node=self.node,
                incarnation=self.incarnation,
                revision=max(self.revision, 0),
                term=self.term,
                refused=self.refused,
                stages=[_stage_report(held) for held in self.named()],
                forged=[
                    Forgery(topic=topic, reason=reason, count=count)
                    for (topic, reason), count in self.forged.items()
                ],
            )
        )


def _place(stage: StageAssignment) -> tuple[str, int, int]:
    """Where a stage's activations come in: no two may share it."""
    return stage.pipeline, stage.generation, stage.stage


_STATES: dict[Phase, StageState] = {
    Phase.FETCHING: "fetching",
    Phase.LOADING: "loading",
    Phase.READY: "ready",
    Phase.FAILED: "failed",
}


def _stage_report(held: Held) -> StageReport:
    return StageReport(
        model=held.stage.model,
        pipeline=held.stage.pipeline,
        generation=held.stage.generation,
        stage=held.stage.stage,
        state=_STATES[held.phase],
        reason=held.reason,
        load_s=held.load_s,
        fetch_s=held.fetch_s,
        here_bytes=held.here_bytes,
        fetched_bytes=held.fetched_bytes,
        needs_disk_bytes=held.needs_disk_bytes,
    )

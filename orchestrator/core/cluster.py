"""The cluster: which nodes are there, which models are served, and when to plan again.

`Cluster.step(event) -> actions` is the whole of it. No clock, no network: events say when and what
happened, actions say what the shell has to do. Jobs do not pass through here (see `dispatch`).

A model's life::

    asked for --no node can run it--> unserved <--------------------------+
        |                                |                                |
        +--a plan fits--> loading <------+--a node joins                  |
                             |                                            |
                             +--all stages ready--> serving --its last pipeline is lost
                             |                         |
                             +--load fails: other nodes, else failed      +--re-plan: loads beside,
                                                                             then takes over

The parts: `members` (who is there), `cluster_requests` (what is asked for), `cluster_planning` (which plan,
and when), `cluster_stages` (loading, active, lost, drained), `assignments` (what each node is told). At
the end of a step the rest follows from the state: assignments, what is published, who has got what they
waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from orchestrator.core import (
    cluster_planning,
    cluster_requests,
    cluster_sharing,
    cluster_stages,
    cordons,
    deployments,
    ghosts,
    model_view,
    pace,
)
from orchestrator.core.assignments import Assignments
from orchestrator.core.changes import (
    Altered,
    Change,
    DiskFreed,
    Forgotten,
    Joined,
    Left,
    LeftOut,
    Questioned,
    Readmitted,
    Refused,
    Shrunk,
)
from orchestrator.core.cluster_context import Context
from orchestrator.core.cluster_events import (
    Action,
    AskNode,
    AssignmentSeen,
    ClearAssignment,
    CordonAsked,
    CordonSeen,
    Event,
    ForgetNode,
    InputsCounted,
    MessageRefused,
    ModelEntry,
    ModelRestored,
    NodeBorn,
    NodeDied,
    NodeHeard,
    NodeReported,
    PipelineDrained,
    Progress,
    PublishModel,
    QuestionSeen,
    ReplanAsked,
    RestoreEnded,
    RoundingHurt,
    ServeAsked,
    StageMeasured,
    StageRef,
    StopAsked,
    Tick,
    UncordonAsked,
)
from orchestrator.core.cluster_settings import ClusterSettings, SettingsChanged
from orchestrator.core.dispatch_events import PipelineFigures
from orchestrator.core.members import Members
from orchestrator.core.nodes import Node
from orchestrator.core.pipeline_figures import pipeline_figures
from orchestrator.core.served import Served
from orchestrator.core.stage_times import prediction_error
from shared.messages.model import Figures, ModelState, PredictionError
from shared.messages.operation import NodeStanding
from shared.profile import NodeProfile

__all__ = ["Cluster", "ClusterSettings"]


class Cluster:
    """The state machine.

    `first_revision` must exceed those of earlier orchestrators, else `AssignmentSeen` corrects it.
    `restoring`: no assignment is pushed until `RestoreEnded`.
    """

    def __init__(
        self,
        first_revision: int = 1,
        settings: ClusterSettings | None = None,
        *,
        restoring: bool = False,
    ) -> None:
        settings = settings or ClusterSettings()
        members, assignments = Members(settings.forget_after_s), Assignments(first_revision)
        self._context = Context(settings, members, assignments, restoring=restoring)

    @property
    def settings(self) -> ClusterSettings:
        """When it acts."""
        return self._context.settings

    @property
    def first_revision(self) -> int:
        """The revision of the first assignment."""
        return self._context.assignments.first

    @property
    def nodes(self) -> dict[str, Node]:
        """Every node of which there was a birth, by name."""
        return self._context.members.nodes

    @property
    def models(self) -> dict[str, Served]:
        """Every model that is to be served, by name."""
        return self._context.models

    def offered(self, entry: ModelEntry) -> tuple[NodeProfile, ...]:
        """The living nodes as a model that need not be served may plan with them.

        What another model holds or has reserved is not in it; one that is served under the same name
        counts as making room. Nodes that are cordoned are left out.
        """
        profiles = cluster_sharing.offered(self._context, Served(entry, asked=0.0)).profiles
        return tuple(each for each in profiles if each.name not in self._context.cordons)

    def as_sent(self, entry: ModelEntry) -> ModelEntry:
        """A model as plans see it: where it is served, with jobs of the size that comes."""
        served = self.models.get(entry.name)
        if served is None or served.entry.manifest != entry.manifest:
            return entry
        return served.as_sent(entry)

    def step(self, event: Event) -> list[Action]:
        """Take one event in; what to do, in order."""
        context = self._context
        members = context.members
        match event:
            case NodeBorn(now, state):
                self._changed(now, members.born(now, state))
            case NodeDied(now, state):
                self._changed(now, members.died(now, state))
            case NodeHeard(now, telemetry):
                self._changed(now, members.heard(now, telemetry))
            case QuestionSeen(now, name):
                members.question_seen(now, name)
            case NodeReported(now, report):
                self._changed(now, members.reported(now, report))
                node = members.nodes.get(report.node)
                # The latest of this life, not one that was delivered late or twice.
                if node is not None and node.alive and node.report is report:
                    context.assignments.seen(report.node, report.revision)
                    cluster_stages.reported(context, event)
                    holds_nothing = not report.stages
                    if holds_nothing and context.assignments.to_clear(node.name, report.revision):
                        context.actions.append(ClearAssignment(node.name))
            case MessageRefused(now, node_name, what, problem, incarnation):
                self._changed(now, members.refused(now, node_name, what, problem, incarnation))
            case AssignmentSeen():
                members.assigned(event.now, event.node)
                context.assignments.seen(event.node, event.revision)
                for model, number in event.generations:
                    context.number_seen(model, number)
            case ServeAsked():
                cluster_requests.serve(context, event)
            case StopAsked():
                cluster_requests.stop(context, event)
            case ReplanAsked():
                cluster_requests.replan_asked(context, event)
            case CordonAsked():
                cordons.asked(context, event)
            case UncordonAsked():
                cordons.lifted(context, event)
            case CordonSeen():
                cordons.seen(context, event)
            case SettingsChanged(_, settings):
                context.settings = replace(settings, zones=context.settings.zones)
                members.forget_after_s = settings.forget_after_s
            case ModelRestored():
                cluster_requests.restored(context, event)
            case RestoreEnded():
                cluster_requests.restore_ended(context, event)
            case PipelineDrained():
                cluster_stages.drained(context, event)
            case RoundingHurt():
                cluster_requests.rounding_hurt(context, event)
            case StageMeasured():
                cluster_stages.measured(context, event)
            case InputsCounted():
                served = self.models.get(event.model)
                if served is not None:
                    size = served.entry.profile.input_bytes
                    served.inputs.counted(event.items, event.size_bytes, size)
            case Tick(now):
                self._tick(now)
            case _:
                assert_never(event)
        self._settle(event.now)
        actions, context.actions = context.actions, []
        return actions

    def next_tick_s(self, now: float) -> float:
        """Seconds from `now` until the next `Tick` should come."""
        return pace.next_tick_s(self._context, now)

    def model_state(self, name: str, measured: Figures) -> ModelState | None:
        """The retained state of a model, or None when it is not served."""
        served = self.models.get(name)
        return None if served is None else model_view.model_state(served, measured)

    def figures(self, now: float) -> list[PipelineFigures]:
        """What telemetry says of the nodes below each active pipeline."""
        active = [served.active for served in self.models.values() if served.active is not None]
        return pipeline_figures(now, active, self.nodes)

    def standings(self, now: float) -> dict[str, NodeStanding]:
        """The nodes that are gone, silent or left out, and since when; those gone last, by name."""
        return ghosts.standings(self.nodes, now, self.settings.forget_after_s)

    def prediction_errors(self) -> dict[str, PredictionError]:
        """How far predicted stage times are from measured ones, by model; of plans in force."""
        return {
            name: error
            for name, served in self.models.items()
            if served.active is not None
            and (error := prediction_error(served.active.times.values())) is not None
        }

    def alive(self) -> list[Node]:
        """The nodes that can be planned for, by name."""
        return self._context.members.alive()

    def _changed(self, now: float, changes: Sequence[Change]) -> None:
        """Nodes came, went or changed: lose what they held, then plan once for all of it."""
        context = self._context
        only_measured = True
        causes: list[str] = []
        for change in changes:
            match change:
                case Refused(node, what, text, problem):
                    context.tell(f"{what}_refused", text, node=node, reason=problem)
                    continue
                case Questioned(node):
                    context.actions.append(AskNode(node))
                    continue
                case Forgotten(node, cause):
                    context.assignments.forget(node)
                    cordons.forget(context, node)
                    for served in context.models.values():
                        served.blocked.pop(node, None)
                    context.actions.append(ForgetNode(node))
                    context.tell("node_forgotten", cause, node=node)
                    continue
                case LeftOut(node, cause):
                    context.tell("node_left_out", cause, node=node)
                    continue
                case Readmitted(node, cause):
                    only_measured = False
                    context.tell("node_readmitted", cause, node=node)
                case DiskFreed(node, model, cause):
                    if (waiting := context.models.get(model)) is not None:
                        waiting.blocked.pop(node, None)
                    only_measured = False
                    context.tell("disk_freed", cause, node=node, model=model)
                case Shrunk(node, cause):
                    cluster_planning.consider_memory(context, now, node, cause)
                    continue
                case Joined():
                    only_measured = False
                    context.tell("node_joined", change.text, node=change.node)
                    context.assignments.expected_by(change.node)
                    if change.anew:
                        for served in context.models.values():
                            served.blocked.pop(change.node, None)
                case Left():
                    only_measured = False
                    text, why = change.cause, change.why
                    context.tell("node_left", text, node=change.node, reason=why)
                    cluster_stages.node_left(context, change.node, crashed=change.crashed)
                case Altered():
                    only_measured = only_measured and change.calibrated
                    name = "node_calibrated" if change.calibrated else "node_changed"
                    context.tell(name, change.cause, node=change.node)
                case _:
                    assert_never(change)
            causes.append(change.cause)
        if causes and only_measured:
            cluster_planning.consider_measured(context, now, "; ".join(causes))
        elif causes:
            cluster_planning.consider_all(context, now, "; ".join(causes))

    def _tick(self, now: float) -> None:
        context = self._context
        self._changed(now, context.members.ticked(now))
        for served in context.in_order():
            cluster_stages.load_timed_out(context, now, served)
            cluster_planning.tick(context, now, served)
            cluster_requests.expire(context, now, served)
        cordons.expire(context, now)

    def _settle(self, now: float) -> None:
        """What follows from the state, however it came about."""
        context = self._context
        cluster_stages.forget_drained(context)
        cluster_planning.consider_neighbours(context, now)
        for served in context.in_order():
            cluster_planning.make_room(context, now, served)
        deployments.follow(context, now)
        if not context.restoring:
            desired = self._desired()
            pushes = context.assignments.changed(desired)
            context.actions += pushes
            for push in pushes:
                context.members.told(push.node, push.revision)
            if context.drains:
                cordons.settle(context, desired)
        for served in context.models.values():
            essence = model_view.essence(served)
            if essence != served.published:
                served.published = essence
                context.actions.append(PublishModel(served.name))
            if served.satisfied():
                context.finish_all(served)
            line = f"{served.state}: {model_view.reason(served)}"
            for waiting in served.waiting:
                if waiting.told != line:
                    waiting.told = line
                    context.actions.append(Progress(waiting.transaction, waiting.verb, line))
        context.actions += context.finished
        context.finished = []

    def _desired(self) -> dict[str, tuple[StageRef, ...]]:
        """What each node is to hold, of those that are to hold something."""
        context = self._context
        generations = list(context.draining)
        for _, served in sorted(context.models.items()):
            generations += served.generations()
        desired: dict[str, tuple[StageRef, ...]] = {}
        for generation in generations:
            for node in generation.nodes():
                desired[node] = (*desired.get(node, ()), *generation.stages_on(node))
        return desired

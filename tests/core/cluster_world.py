"""A cluster core with agents that answer it: histories by table, with no broker and no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from orchestrator.core.cluster import Cluster, ClusterSettings
from orchestrator.core.cluster_events import (
    Action,
    AskNode,
    AssignmentSeen,
    CordonAsked,
    CordonSeen,
    Event,
    Finish,
    ModelEntry,
    ModelRestored,
    NodeBorn,
    NodeDied,
    NodeHeard,
    NodeReported,
    PipelineDrained,
    PublishModel,
    PushAssignment,
    QuestionSeen,
    ReplanAsked,
    RestoreEnded,
    ServeAsked,
    StageRef,
    StopAsked,
    Tell,
    Tick,
    UncordonAsked,
)
from orchestrator.core.served import Served
from shared.messages.model import Figures, ModelState, ServeOptions
from shared.messages.node import Calibration, Hardware, NodeState, Telemetry
from shared.messages.stage import Report, StageReport, StageState
from tests.core.cluster_checks import Checks
from tests.core.plan_cases import model

MB = 10**6
Death = Literal["offline", "lost"]


def entry(name: str = "m", *, manifest: str = "a", weight: int = MB, **options: Any) -> ModelEntry:
    """Six equal blocks of 10 ms; what is sent between them is small."""
    return ModelEntry(
        name=name,
        manifest=manifest * 64,
        profile=model([0.01] * 6, [1000] * 5, weights=[weight] * 6, runtime_bytes=10 * MB),
        options=ServeOptions(**options),
        runtime="torch",
        weights="random",
        reference={"torch": {"conv_dense": 0.1}},
    )


def birth(node: str, incarnation: int = 1, **other: Any) -> NodeState:
    """A node with one CPU and 1 GB; `cpu`, `memory` and `speed` (by calibration) may be given."""
    cpu, memory = other.pop("cpu", 1.0), other.pop("memory", 1000 * MB)
    speed = other.pop("speed", None)
    if speed is not None:
        measured = Calibration(seconds={"conv_dense": 0.1 / speed}, runtime_bytes=1)
        other["calibration"] = {"torch": measured}
    values: dict[str, Any] = {
        "state": "online",
        "node": node,
        "incarnation": incarnation,
        "hardware": Hardware(cpu=cpu, cores=1, memory_bytes=memory, architecture="x"),
        "runtimes": {"torch": "2"},
    }
    return NodeState(**(values | other))


def death(node: str, incarnation: int = 1, state: Death = "lost") -> NodeState:
    """A last will, or a clean leave."""
    return NodeState(state=state, node=node, incarnation=incarnation)


def telemetry(node: str, incarnation: int = 1, **other: Any) -> Telemetry:
    values: dict[str, Any] = {
        "node": node,
        "incarnation": incarnation,
        "uptime_s": 1.0,
        "cpu_percent": 50.0,
        "memory_used_bytes": 1,
        "memory_limit_bytes": 2,
        "network_received_bytes": 0,
        "network_sent_bytes": 0,
        "round_trip_s": None,
        "queue": 0,
        "stability": 1.0,
    }
    return Telemetry(**(values | other))


@dataclass
class Agent:
    """A node's agent: does what it is told, and says so when the test lets it.

    `broken` are models, by name or manifest, that it cannot load; `mute` agents send nothing; `figures` are
    fields of its telemetry; `needs_disk_bytes` makes a failure that of a full disk.
    """

    state: NodeState
    up: bool = True
    mute: bool = False
    broken: set[str] = field(default_factory=set)
    needs_disk_bytes: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    revision: int = -1
    stages: tuple[StageRef, ...] = ()
    reported: object = None

    def last_word(self) -> NodeState:
        """What is retained about the node."""
        return self.state if self.up else death(self.state.node, self.state.incarnation)

    def report(self, state: StageState = "ready") -> Report:
        return Report(
            node=self.state.node,
            incarnation=self.state.incarnation,
            revision=max(self.revision, 0),
            stages=[
                replace(
                    stage_report(
                        ref,
                        "failed" if self.broken & {ref.entry.name, ref.entry.manifest} else state,
                    ),
                    needs_disk_bytes=self.needs_disk_bytes,
                )
                for ref in self.stages
            ],
        )


def stage_report(ref: StageRef, state: StageState, reason: str = "no memory") -> StageReport:
    return StageReport(
        model=ref.entry.name,
        pipeline=ref.pipeline,
        generation=ref.generation,
        stage=ref.stage,
        state=state,
        reason=reason if state == "failed" else "",
    )


class World:
    """The core, its agents, and everything that it did. Every step is checked."""

    def __init__(
        self,
        settings: ClusterSettings | None = None,
        *,
        first_revision: int = 1,
        restoring: bool = False,
        agents: dict[str, Agent] | None = None,
    ) -> None:
        self.cluster = Cluster(first_revision, settings, restoring=restoring)
        self.checks = Checks(self.cluster)
        self.now = 100.0
        self.agents: dict[str, Agent] = agents or {}
        self.log: list[Action] = []
        self.asked = 0
        self.questions: list[str] = []
        """Which nodes were asked whether they are there, and the broker has not passed it on yet."""
        self._retained: dict[str, ModelState] = {}

    # --- one step

    def send(self, event: Event) -> list[Action]:
        if isinstance(event, NodeReported):
            for stage in event.report.stages:
                if stage.state == "ready":
                    key = (stage.model, stage.pipeline, stage.generation, stage.stage)
                    self.checks.ready.add((event.report.node, event.report.incarnation, key))
        if isinstance(event, ServeAsked):
            self.checks.asked["serve", event.transaction] += 1
        if isinstance(event, StopAsked):
            self.checks.asked["stop", event.transaction] += 1
        if isinstance(event, ReplanAsked):
            self.checks.asked["replan", event.transaction] += 1
        if isinstance(event, CordonAsked):
            self.checks.asked["drain" if event.drain else "cordon", event.transaction] += 1
        if isinstance(event, UncordonAsked):
            self.checks.asked["uncordon", event.transaction] += 1
        actions = self.cluster.step(event)
        self.took(actions)
        return actions

    def took(self, actions: list[Action]) -> None:
        """Check what the core wants done, and do it."""
        self.checks.observe(actions)
        self.log += actions
        for action in actions:
            if isinstance(action, PushAssignment) and action.node in self.agents:
                agent = self.agents[action.node]
                agent.revision, agent.stages = action.revision, action.stages
            elif isinstance(action, AskNode):
                self.questions.append(action.node)
            elif isinstance(action, PublishModel):
                state = self.cluster.model_state(action.model, Figures())
                self._retained.pop(action.model, None)
                if state is not None:
                    self._retained[action.model] = state

    # --- nodes

    def join(self, *names: str, **values: Any) -> list[Action]:
        actions: list[Action] = []
        for name in names:
            known = self.agents.get(name)
            incarnation = 1 if known is None else known.state.incarnation + 1
            state = birth(name, incarnation, **values)
            # What is retained for the node is what it hears first.
            kept = ((), -1) if known is None else (known.stages, known.revision)
            self.agents[name] = Agent(state, stages=kept[0], revision=kept[1])
            actions += self.send(NodeBorn(self.now, state))
        return actions

    def kill(self, name: str, state: Death = "lost") -> list[Action]:
        agent = self.agents[name]
        agent.up = False
        return self.send(NodeDied(self.now, death(name, agent.state.incarnation, state)))

    def calibrate(self, name: str, speed: float) -> list[Action]:
        agent = self.agents[name]
        agent.state = replace(agent.state, calibration=birth(name, speed=speed).calibration)
        return self.send(NodeBorn(self.now, agent.state))

    def report(self, name: str, state: StageState = "ready") -> list[Action]:
        agent = self.agents[name]
        return self.send(NodeReported(self.now, agent.report(state)))

    # --- the orchestrator

    def retained(self) -> dict[str, ModelState]:
        """The models' states as they were published last."""
        return dict(self._retained)

    def restart(self, entries: dict[str, ModelEntry], *, reports_first: bool = False) -> None:
        """Another orchestrator takes over what is retained, in the order of the shell."""
        old, marked = self.checks, len(self.log)
        cluster = Cluster(old.revision + 100, self.cluster.settings, restoring=True)
        self.cluster, self.checks = cluster, Checks(cluster)
        self.checks.revision, self.checks.ready = old.revision, old.ready
        self.checks.asked, self.checks.finished = old.asked, old.finished
        self.checks.cordons = dict(old.cordons)
        for _, agent in sorted(self.agents.items()):
            self.send((NodeBorn if agent.up else NodeDied)(self.now, agent.last_word()))
        for name, stages in sorted(old.assigned.items()):
            generations = tuple((ref.entry.name, ref.generation) for ref in stages)
            for of, number in generations:
                self.checks.numbers[of] = max(number, self.checks.numbers.get(of, 0))
            revision = max(self.agents[name].revision, 0)
            self.send(AssignmentSeen(self.now, name, revision, generations))
        for name, agent in sorted(self.agents.items()):
            agent.reported = None
            if reports_first and agent.up and not agent.mute:
                self.report(name)
        for name, cordon in sorted(old.cordons.items()):
            self.send(CordonSeen(self.now, name, cordon))
        assert not any(isinstance(action, PushAssignment) for action in self.log[marked:])
        retained, self._retained = self._retained, {}
        for of, state in sorted(retained.items()):
            self.checks.restored.add((of, state.generation))
            number = self.checks.numbers.get(of, 0)
            self.checks.numbers[of] = max(number, state.generation)
            again = replace(entries[state.manifest or ""], options=state.options)
            self.send(ModelRestored(self.now, again, state))
        self.send(RestoreEnded(self.now))

    # --- requests

    def serve(self, model: ModelEntry, timeout_s: float = 60.0, **other: Any) -> list[Action]:
        self.asked += 1
        transaction = other.get("transaction", f"t{self.asked}")
        return self.send(ServeAsked(self.now, transaction, model, self.now + timeout_s))

    def stop(self, name: str = "m") -> list[Action]:
        self.asked += 1
        return self.send(StopAsked(self.now, f"t{self.asked}", name))

    def replan(self, name: str = "m") -> list[Action]:
        self.asked += 1
        return self.send(ReplanAsked(self.now, f"t{self.asked}", name))

    def cordon(self, node: str, reason: str = "") -> list[Action]:
        self.asked += 1
        return self.send(
            CordonAsked(self.now, f"t{self.asked}", node, False, "now", reason, self.now)
        )

    def drain(self, node: str, timeout_s: float = 60.0, reason: str = "") -> list[Action]:
        self.asked += 1
        deadline = self.now + timeout_s
        return self.send(
            CordonAsked(self.now, f"t{self.asked}", node, True, "now", reason, deadline)
        )

    def uncordon(self, node: str) -> list[Action]:
        self.asked += 1
        return self.send(UncordonAsked(self.now, f"t{self.asked}", node))

    # --- time

    def answers(self) -> bool:
        """Each agent reports once what it was told to hold; whether any had something new to say."""
        said = False
        for name, agent in sorted(self.agents.items()):
            news = (agent.revision, agent.stages, frozenset(agent.broken))
            if agent.up and not agent.mute and agent.reported != news:
                agent.reported = news
                self.report(name)
                said = True
        return said

    def drains(self) -> bool:
        """The dispatcher empties what it was told to drain."""
        some = sorted(self.checks.draining)
        for key in some:
            self.checks.draining.discard(key)
            self.send(PipelineDrained(self.now, *key))
        return bool(some)

    def settle(self) -> None:
        """Agents and dispatcher answer until nothing is new."""
        for _ in range(100):
            if not self.answers() and not self.drains():
                return
        raise AssertionError("the cluster does not come to rest")

    def tick(self, seconds: float = 0.0, *, broker: bool = True) -> list[Action]:
        """Time passes at once; where there is a `broker` it passes on who was asked whether it is there."""
        self.now += seconds
        actions = self.send(Tick(self.now))
        if broker:
            self.pass_questions()
        return actions

    def pass_questions(self) -> None:
        """The broker passes on what nodes were asked, and those that live answer."""
        questions, self.questions = self.questions, []
        for name in questions:
            self.send(QuestionSeen(self.now, name))
            agent = self.agents.get(name)
            if agent is not None and agent.up and not agent.mute:
                self.report(name)

    def wait(self, seconds: float, *, settle: bool = True, step_s: float = 0.5) -> list[Action]:
        """Time passes in steps; agents that live send telemetry."""
        before = len(self.log)
        for _ in range(round(seconds / step_s)):
            self.now += step_s
            for name, agent in sorted(self.agents.items()):
                if agent.up and not agent.mute:
                    sample = telemetry(name, agent.state.incarnation, **agent.figures)
                    self.send(NodeHeard(self.now, sample))
            self.tick()
            if settle:
                self.settle()
        return self.log[before:]

    # --- looking at it

    def served(self, name: str = "m") -> Served:
        return self.cluster.models[name]

    def state(self, name: str = "m") -> ModelState:
        state = self.cluster.model_state(name, Figures())
        assert state is not None
        return state

    def stages(self, name: str = "m") -> list[list[str]]:
        """The nodes of the plan in force, by pipeline."""
        return [[stage.node for stage in p.stages] for p in self.state(name).pipelines]

    def finished(self, verb: str = "serve") -> list[Finish]:
        return of_kind(self.log, Finish, verb)

    def told(self, event: str) -> list[Tell]:
        return [a for a in self.log if isinstance(a, Tell) and a.event == event]


def of_kind(actions: Sequence[Action], kind: type[Finish], verb: str) -> list[Finish]:
    return [a for a in actions if isinstance(a, kind) and a.verb == verb]

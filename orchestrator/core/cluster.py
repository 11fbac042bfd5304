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
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, assert_never

from orchestrator.core import model_view, replan
from orchestrator.core.cluster_events import (
    Action,
    ActivatePipeline,
    AssignmentSeen,
    DrainPipeline,
    Event,
    Finish,
    LosePipeline,
    ModelEntry,
    ModelForgotten,
    ModelKnown,
    ModelRestored,
    NodeBorn,
    NodeDied,
    NodeHeard,
    NodeReported,
    PipelineDrained,
    Progress,
    PublishModel,
    PushAssignment,
    ReplanAsked,
    ServeAsked,
    StageMeasured,
    StageRef,
    StopAsked,
    Tell,
    Tick,
)
from orchestrator.core.generation import Generation, describe
from orchestrator.core.nodes import Node
from orchestrator.core.plan import Plan
from orchestrator.core.served import Served, Waiting
from shared.errors import ConfigurationError, ErrorCode, PlanError
from shared.messages.model import Figures, ModelState
from shared.messages.node import NodeState
from shared.messages.stage import StageReport
from shared.profile import NodeProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """When to act. Seconds, and the least gain that is worth a switch."""

    gain_threshold: float = 0.15
    cool_down_s: float = 30.0
    drift_interval_s: float = 10.0
    settle_s: float = 2.0
    """How long a new model waits for the number of nodes that was asked for."""
    load_timeout_s: float = 120.0
    """Importing torch takes 10 s at 0.2 CPU, and weights have to travel first."""
    blocked_s: float = 60.0
    """How long a node on which a model failed to load is left out for that model."""


@dataclass(slots=True)
class Cluster:
    """The state machine. `first_revision` must exceed those of earlier orchestrators."""

    first_revision: int = 1
    settings: ClusterSettings = field(default_factory=ClusterSettings)
    nodes: dict[str, Node] = field(default_factory=dict)
    models: dict[str, Served] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)
    _pushed: dict[str, tuple[StageRef, ...]] = field(default_factory=dict)
    _revision: int = 0
    _actions: list[Action] = field(default_factory=list)

    def step(self, event: Event) -> list[Action]:
        """Take one event in; what to do, in order."""
        match event:
            case NodeBorn():
                self._born(event)
            case NodeDied():
                self._died(event)
            case NodeHeard():
                self._heard(event)
            case NodeReported():
                self._reported(event)
            case AssignmentSeen():
                self._revision = max(self._revision, event.revision)
                # Something unknown is out there: the first push to that node must not be skipped.
                self._pushed.pop(event.node, None)
            case ServeAsked():
                self._serve(event)
            case StopAsked():
                self._stop(event)
            case ReplanAsked():
                self._replan_asked(event)
            case ModelRestored():
                self._restored(event)
            case PipelineDrained():
                self._drained(event)
            case StageMeasured():
                self._measured(event)
            case Tick():
                self._tick(event.now)
            case _:
                assert_never(event)
        self._push()
        actions, self._actions = self._actions, []
        return actions

    def model_state(self, name: str, measured: Figures) -> ModelState | None:
        """The retained state of a model, or None when it is not served."""
        served = self.models.get(name)
        return None if served is None else model_view.model_state(served, measured)

    def alive(self) -> list[Node]:
        """The nodes that can be planned for, by name."""
        return [node for _, node in sorted(self.nodes.items()) if node.alive]

    # --- nodes

    def _born(self, event: NodeBorn) -> None:
        state = event.state
        known = self.nodes.get(state.node)
        if known is not None and state.incarnation < known.state.incarnation:
            return  # an old birth, delivered late
        again = known is not None and known.alive and known.state.incarnation == state.incarnation
        if known is not None and known.alive and not again:
            # It started anew before anybody noticed that it had died: what it held is gone.
            self._lose(event.now, known, "it started anew")
        if known is None or not again:
            corrections = known.corrections if known is not None else {}
            self.nodes[state.node] = Node(state, heard=event.now, corrections=corrections)
            self._pushed.pop(state.node, None)
            self._tell("node_joined", f"node {state.node} joined{_size(state)}", node=state.node)
            for served in self.models.values():
                served.blocked.pop(state.node, None)
            self._reconsider(event.now, f"node {state.node} joined")
            return
        assert known is not None
        calibrated = state.calibration != known.state.calibration
        known.state, known.heard = state, event.now
        if calibrated:
            self._tell("node_calibrated", f"node {state.node} measured its speed", node=state.node)
            # Nobody would switch models about for a first measurement while they load.
            self._reconsider(event.now, f"node {state.node} measured its speed", cool_down=True)

    def _died(self, event: NodeDied) -> None:
        node = self.nodes.get(event.state.node)
        if node is None or event.state.incarnation != node.state.incarnation:
            return  # a late will of an earlier life
        was_alive, node.state = node.alive, event.state
        if was_alive:
            why = "left" if event.state.state == "offline" else "was lost (last will)"
            self._lose(event.now, node, why)
            self._reconsider(event.now, f"node {node.name} {why}")

    def _heard(self, event: NodeHeard) -> None:
        node = self.nodes.get(event.telemetry.node)
        if node is None or event.telemetry.incarnation != node.state.incarnation:
            return
        node.heard, node.telemetry = event.now, event.telemetry
        if not node.alive and node.state.state == "online":
            node.alive = True
            self._tell("node_joined", f"node {node.name} answers again", node=node.name)
            self._reconsider(event.now, f"node {node.name} answers again")

    def _lose(self, now: float, node: Node, why: str) -> None:
        node.alive = False
        self._tell("node_left", f"node {node.name} {why}", node=node.name, reason=why)
        for served in self.models.values():
            for generation in served.generations():
                for index, pipeline in list(generation.running()):
                    if any(stage.node == node.name for stage in pipeline.stages):
                        self._lose_pipeline(served, generation, index)
            if served.pending is not None and served.pending.lost:
                served.pending = None
            self._settle_state(served, f"node {node.name} {why}")

    def _lose_pipeline(self, served: Served, generation: Generation, index: int) -> None:
        generation.lost.add(index)
        if generation is not served.pending:
            name = generation.pipeline_name(index)
            self._actions.append(LosePipeline(served.name, name, generation.number))
        if generation.dead():
            if generation is served.active:
                served.active = None
            if generation in served.draining:
                served.draining.remove(generation)

    # --- stages

    def _reported(self, event: NodeReported) -> None:
        report = event.report
        node = self.nodes.get(report.node)
        if node is None or node.state.incarnation != report.incarnation or not node.alive:
            return
        node.heard = event.now
        states = {(s.model, s.pipeline, s.generation, s.stage): s for s in report.stages}
        for served in list(self.models.values()):
            if served.pending is not None:
                self._pending_reported(event.now, served, served.pending, node, states)
            if served.active is not None:
                self._active_reported(event.now, served, served.active, node, states)

    def _pending_reported(
        self,
        now: float,
        served: Served,
        pending: Generation,
        node: Node,
        states: dict[tuple[str, str, int, int], StageReport],
    ) -> None:
        for ref in pending.stages_on(node.name):
            stage = states.get(ref.key)
            index = pending.index_of(ref.pipeline)
            if stage is None or index is None:
                continue
            if stage.state == "ready":
                pending.ready.add((index, ref.stage))
            elif stage.state == "failed":
                self._load_failed(now, served, node.name, stage.reason)
                return
        if pending.all_ready():
            self._activate(now, served, pending)

    def _active_reported(
        self,
        now: float,
        served: Served,
        active: Generation,
        node: Node,
        states: dict[tuple[str, str, int, int], StageReport],
    ) -> None:
        gone = [
            index
            for ref in active.stages_on(node.name)
            if (index := active.index_of(ref.pipeline)) is not None
            and ((stage := states.get(ref.key)) is None or stage.state != "ready")
        ]
        if gone:
            for index in gone:
                self._lose_pipeline(served, active, index)
            self._settle_state(served, f"node {node.name} does not hold its stage any more")
            self._consider(now, served, f"node {node.name} does not hold its stage any more")

    def _load_failed(self, now: float, served: Served, node: str, reason: str) -> None:
        served.pending = None
        served.blocked[node] = now + self.settings.blocked_s
        self._tell(
            "load_failed",
            f"{served.name} could not be loaded on {node}: {reason}",
            node=node,
            model=served.name,
            reason=reason,
        )
        served.reason = f"could not be loaded on {node}: {reason}"
        self._settle_state(served, served.reason)
        self._consider(now, served, f"{node} could not load it")
        if served.pending is None and served.active is None:
            served.state = "failed"
            self._actions.append(PublishModel(served.name))
            self._finish_all(served, served.reason)

    def _activate(self, now: float, served: Served, generation: Generation) -> None:
        old = served.active
        served.active, served.pending = generation, None
        served.state, served.reason, served.switched = "serving", generation.cause, now
        served.served_before = True
        served.measured.clear()
        if served.entry is generation.entry:
            self._actions.append(ModelKnown(served.name, generation.entry))
        for index, pipeline in generation.running():
            self._actions.append(
                ActivatePipeline(
                    generation.entry,
                    generation.pipeline_name(index),
                    generation.number,
                    pipeline,
                    1.0 / max(stage.period_s for stage in pipeline.stages),
                    sum(s.compute_s + s.receive_s + s.send_s for s in pipeline.stages),
                )
            )
        if old is not None:
            served.draining.append(old)
            for index, _ in old.running():
                self._actions.append(
                    DrainPipeline(served.name, old.pipeline_name(index), old.number)
                )
        self._actions.append(PublishModel(served.name))
        predicted = generation.plan.predicted
        self._tell(
            "pipeline_active",
            f"{served.name} generation {generation.number} is active after "
            f"{now - generation.began:.1f} s: {describe(generation.plan.pipelines)}; predicted "
            f"{predicted.throughput_per_s:.1f}/s, {predicted.latency_s * 1000:.0f} ms",
            model=served.name,
            generation=generation.number,
        )
        self._finish_satisfied(served)
        if served.dirty:
            served.dirty = False
            self._consider(now, served, "the cluster changed while it loaded")

    def _drained(self, event: PipelineDrained) -> None:
        served = self.models.get(event.model)
        if served is None:
            return
        for generation in list(served.draining):
            if generation.number != event.generation:
                continue
            index = generation.index_of(event.pipeline)
            if index is not None:
                generation.drained.add(index)
            if all(i in generation.drained for i, _ in generation.running()):
                served.draining.remove(generation)
                self._tell(
                    "generation_drained",
                    f"{served.name} generation {generation.number} is drained and unloaded",
                    model=served.name,
                    generation=generation.number,
                )
        self._begin_held(event.now, served)

    def _measured(self, event: StageMeasured) -> None:
        served, node = self.models.get(event.model), self.nodes.get(event.node)
        if served is None or node is None:
            return
        generation = next((g for g in served.generations() if g.number == event.generation), None)
        if generation is None or generation is served.pending:
            return
        index = generation.index_of(event.pipeline)
        if index is None or event.stage >= len(generation.plan.pipelines[index].stages):
            return
        entry = generation.entry
        start, stop = generation.plan.pipelines[index].stages[event.stage].blocks
        seconds = sum(block.seconds for block in entry.profile.blocks[start:stop])
        seconds += entry.profile.input_seconds if start == 0 else 0.0
        speed = node.speed(entry) * node.corrections.get(entry.name, 1.0)
        node.correct(entry.name, event.cpu_s, seconds / speed, event.items)
        if generation is served.active and node.state.hardware is not None:
            share = min(node.state.hardware.cpu, 1.0)
            # Wall time that an item costs the node: CPU time at the share it may use, or what
            # passed, if others kept the node from its share.
            served.measured[(index, event.stage)] = max(event.cpu_s / share, event.compute_s)

    # --- models

    def _serve(self, event: ServeAsked) -> None:
        entry = event.entry
        served = self.models.get(entry.name)
        waiting = Waiting(event.transaction, "serve", event.deadline)
        if served is None:
            served = Served(entry, asked=event.now)
            self.models[entry.name] = served
            self._actions.append(ModelKnown(entry.name, entry))
        else:
            served.pending, served.asked, served.blocked = None, event.now, {}
            served.entry = entry
        served.waiting.append(waiting)
        self._tell("model_asked", f"{entry.name} is to be served", model=entry.name)
        self._consider(event.now, served, "it was asked for", force=True)
        self._settle_state(served, served.reason)
        self._finish_satisfied(served)

    def _stop(self, event: StopAsked) -> None:
        served = self.models.pop(event.model, None)
        if served is None:
            self._actions.append(
                Finish(
                    event.transaction,
                    "stop",
                    event.model,
                    error=f"{event.model} is not served; "
                    f"served are: {', '.join(sorted(self.models)) or 'none'}",
                    code=ErrorCode.UNKNOWN_MODEL,
                )
            )
            return
        self._actions.append(ModelForgotten(event.model))
        for waiting in served.waiting:
            self._actions.append(
                Finish(waiting.transaction, waiting.verb, event.model, error="it was stopped")
            )
        self._tell("model_stopped", f"{event.model} is not served any more", model=event.model)
        self._actions.append(PublishModel(event.model))
        self._actions.append(Finish(event.transaction, "stop", event.model))

    def _replan_asked(self, event: ReplanAsked) -> None:
        served = self.models.get(event.model)
        if served is None:
            error = f"{event.model} is not served"
            self._actions.append(
                Finish(event.transaction, "replan", event.model, error, ErrorCode.UNKNOWN_MODEL)
            )
            return
        self._consider(event.now, served, "it was asked for", force=True)
        self._actions.append(Finish(event.transaction, "replan", event.model))

    def _restored(self, event: ModelRestored) -> None:
        entry, state = event.entry, event.state
        self._numbers[entry.name] = max(self._numbers.get(entry.name, 0), state.generation)
        served = Served(entry, asked=event.now)
        self.models[entry.name] = served
        self._actions.append(ModelKnown(entry.name, entry))
        generation = model_view.generation_from(entry, state, event.now)
        if generation is not None:
            for index, pipeline in list(generation.running()):
                if all(self._is_alive(stage.node) for stage in pipeline.stages):
                    generation.ready |= {(index, n) for n in range(len(pipeline.stages))}
                else:
                    generation.lost.add(index)
        if generation is None or generation.dead():
            self._consider(event.now, served, "the orchestrator started anew")
            self._settle_state(served, "the orchestrator started anew")
            return
        nodes = self._profiles(event.now, served)
        generation.plan = model_view.repriced(entry, generation.plan, nodes)
        self._activate(event.now, served, generation)
        self._consider(event.now, served, "the orchestrator started anew")

    # --- planning

    def _reconsider(self, now: float, cause: str, *, cool_down: bool = False) -> None:
        for served in list(self.models.values()):
            if cool_down and now - served.switched < self.settings.cool_down_s:
                continue
            self._consider(now, served, cause)

    def _consider(self, now: float, served: Served, cause: str, *, force: bool = False) -> None:
        """Whether a better plan exists, and if so set it on its way."""
        if served.pending is not None or served.held is not None:
            served.dirty = True
            return
        served.considered = now
        entry, active = served.entry, served.active
        nodes = self._profiles(now, served)
        fewest = entry.options.min_stages or 1
        settling = now - served.asked < self.settings.settle_s
        if len(nodes) < fewest and settling and not served.served_before:
            served.reason = f"waits for {fewest} nodes, {len(nodes)} are here"
            return
        try:
            choice = replan.choose(entry, nodes)
        except (PlanError, ConfigurationError) as error:
            reason = str(error) if nodes else replan.no_nodes(entry, self.alive())
            if reason != served.reason:
                self._settle_state(served, reason)
            return
        served.chosen, served.short = choice.plan, choice.short
        served.free_choice = replan.free_choice(entry, nodes)
        if active is not None and active.entry is entry and active.same_placement(choice.plan):
            active.plan = model_view.repriced(entry, active.plan, nodes)
            return
        why = (
            "a new plan was asked for"
            if force and active is not None and active.entry is entry
            else replan.worth(served, choice, nodes, self.settings.gain_threshold)
        )
        if why is not None:
            self._begin(now, served, choice.plan, f"{cause}; {why}" if cause else why)

    def _profiles(self, now: float, served: Served) -> list[NodeProfile]:
        return [
            profile
            for node in self.alive()
            if served.blocked.get(node.name, now) <= now
            and (profile := node.profile(served.entry)) is not None
        ]

    def _begin(self, now: float, served: Served, plan: Plan, cause: str) -> None:
        number = self._numbers.get(served.name, 0) + 1
        self._numbers[served.name] = number
        generation = Generation(served.entry, number, plan, now, cause)
        active = served.active
        crowded = [] if active is None else replan.crowded(active, generation, self.nodes)
        self._tell(
            "replanned",
            f"{served.name} generation {number}: {describe(plan.pipelines)} because {cause}",
            model=served.name,
            generation=number,
            reason=cause,
        )
        if active is not None and crowded:
            # Both generations do not fit side by side: break before make, and say so.
            served.held = generation
            old, served.active = active, None
            served.draining.append(old)
            for index, _ in old.running():
                self._actions.append(
                    DrainPipeline(served.name, old.pipeline_name(index), old.number)
                )
            self._tell(
                "break_before_make",
                f"{served.name} generations {old.number} and {number} do not fit together on "
                f"{', '.join(crowded)}: the old one is drained first, requests wait",
                model=served.name,
                generation=number,
            )
            self._settle_state(served, cause)
            self._begin_held(now, served)
            return
        served.pending = generation
        self._settle_state(served, cause)

    def _begin_held(self, now: float, served: Served) -> None:
        if served.held is not None and not served.draining:
            served.pending, served.held = served.held, None
            served.pending.began = now
            if any(not self._is_alive(node) for node in served.pending.nodes()):
                served.pending = None
                self._consider(now, served, "a node was lost")

    # --- time

    def _tick(self, now: float) -> None:
        for node in self.alive():
            if now > node.lease_ends():
                silent = now - node.heard
                self._lose(now, node, f"is silent for {silent:.1f} s (lease)")
                self._reconsider(now, f"node {node.name} is silent")
        for served in list(self.models.values()):
            self._tick_model(now, served)

    def _tick_model(self, now: float, served: Served) -> None:
        pending = served.pending
        if pending is not None and now - pending.began > self.settings.load_timeout_s:
            slow = [
                stage.node
                for index, pipeline in pending.running()
                for number, stage in enumerate(pipeline.stages)
                if (index, number) not in pending.ready
            ]
            self._load_failed(
                now, served, slow[0], f"not ready after {self.settings.load_timeout_s:.0f} s"
            )
        if served.pending is None and served.held is None:
            waits = served.active is None
            drifts = (
                now - served.considered >= self.settings.drift_interval_s
                and now - served.switched >= self.settings.cool_down_s
            )
            if drifts or (waits and now - served.considered >= 1.0):
                self._consider(now, served, "" if waits else "the measured speeds changed")
        for waiting in [w for w in served.waiting if now >= w.deadline]:
            served.waiting.remove(waiting)
            self._actions.append(
                Finish(waiting.transaction, waiting.verb, served.name, self._unmet(served))
            )

    # --- telling

    def _settle_state(self, served: Served, reason: str) -> None:
        """Work out `state` from what is active and pending, and publish it when it changed."""
        if served.active is not None:
            state: Literal["serving", "loading", "unserved"] = "serving"
        elif served.pending is not None or served.held is not None:
            state = "loading"
        else:
            state = "unserved"
        served.state, served.reason = state, reason
        self._actions.append(PublishModel(served.name))
        for waiting in served.waiting:
            self._actions.append(Progress(waiting.transaction, waiting.verb, f"{state}: {reason}"))

    def _finish_satisfied(self, served: Served) -> None:
        active = served.active
        if active is None or active.entry is not served.entry:
            return
        if replan.misses_stages(served.entry, active):
            return
        for waiting in served.waiting:
            self._actions.append(Finish(waiting.transaction, waiting.verb, served.name))
        served.waiting.clear()

    def _finish_all(self, served: Served, error: str) -> None:
        for waiting in served.waiting:
            self._actions.append(Finish(waiting.transaction, waiting.verb, served.name, error))
        served.waiting.clear()

    def _unmet(self, served: Served) -> str:
        active = served.active
        if active is None or active.entry is not served.entry:
            return f"not served in time: {served.reason}"
        low = served.entry.options.min_stages or 1
        return (
            f"served in {min(active.num_stages())} stage(s), {low} were asked for; "
            f"{len(self.alive())} node(s) are here"
        )

    def _tell(
        self,
        event: str,
        text: str,
        *,
        node: str | None = None,
        model: str | None = None,
        generation: int | None = None,
        reason: str | None = None,
    ) -> None:
        self._actions.append(Tell(event, text, node, model, generation, reason))

    def _push(self) -> None:
        """Publish every node's desired state that differs from the one published last."""
        for name in sorted(self.nodes):
            stages = tuple(self._desired(name))
            if self._pushed.get(name) != stages:
                self._pushed[name] = stages
                self._revision = max(self._revision + 1, self.first_revision)
                self._actions.append(PushAssignment(name, self._revision, stages))

    def _desired(self, node: str) -> Iterator[StageRef]:
        for _, served in sorted(self.models.items()):
            for generation in served.generations():
                yield from generation.stages_on(node)

    def _is_alive(self, name: str) -> bool:
        node = self.nodes.get(name)
        return node is not None and node.alive


def _size(state: NodeState) -> str:
    hardware = state.hardware
    if hardware is None:
        return ""
    runtimes = ", ".join(f"{name} {version}" for name, version in sorted(state.runtimes.items()))
    return (
        f": {hardware.cpu:g} CPU, {hardware.memory_bytes / 1e6:.0f} MB, {runtimes or 'no runtime'}"
    )

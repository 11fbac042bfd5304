"""What must hold for a cluster after every step of a test, whatever happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import assert_never

from orchestrator.core.cluster import Cluster
from orchestrator.core.cluster_events import (
    Action,
    ActivatePipeline,
    AskNode,
    ClearAssignment,
    DeploymentEnded,
    DrainPipeline,
    Finish,
    ForgetNode,
    LosePipeline,
    ModelForgotten,
    ModelKnown,
    Progress,
    PublishCordon,
    PublishModel,
    PushAssignment,
    StageRef,
    Tell,
)
from orchestrator.core.footprint import footprints
from orchestrator.core.generation import Generation
from orchestrator.core.sharing import uses_of
from shared.codec import decode_json, encode_json
from shared.messages.cordon import Cordon
from shared.messages.model import Figures, ModelState

Pipeline = tuple[str, str, int]
"""Model, pipeline, generation."""


def live_generations(cluster: Cluster) -> Iterator[Generation]:
    """Every generation whose stages nodes shall hold."""
    yield from cluster._context.draining
    for served in cluster.models.values():
        yield from served.generations()


def assert_valid(cluster: Cluster) -> None:
    """The state agrees with itself."""
    context = cluster._context
    assert not context.actions
    assert not context.finished
    numbers: list[tuple[str, int]] = []
    for generation in live_generations(cluster):
        numbers.append((generation.entry.name, generation.number))
        assert generation.number <= context.numbers[generation.entry.name]
        assert not generation.dead(), "what has ended is let go"
        assert all(cluster._context.members.is_alive(node) for node in generation.nodes())
        on = Counter(s.node for p in generation.plan.pipelines for s in p.stages)
        assert set(on.values()) == {1}, "a node holds at most one stage of a generation"
    assert len(set(numbers)) == len(numbers)
    assert all(generation.activated for generation in context.draining)
    for name, served in cluster.models.items():
        assert name == served.name
        assert served.pending is None or served.held is None
        assert served.active is None or served.active.activated
        for loading in (served.pending, served.held):
            assert loading is None or (loading.entry is served.entry and not loading.activated)
        assert served.pending is None or served.pending.unready()
        assert not served.failed or served.state in {"failed", "serving"}
        assert len({waiting.transaction for waiting in served.waiting}) == len(served.waiting)
        assert not (served.waiting and served.satisfied())
        state = cluster.model_state(name, Figures())
        assert state is not None
        assert decode_json(encode_json(state), ModelState) == state
        assert state.reason, "a state always says why"
    assert_shared(cluster)
    if not cluster._context.restoring:
        desired = cluster._desired()
        for node, stages in context.assignments._out.items():
            assert stages == desired.get(node, ())


def assert_shared(cluster: Cluster) -> None:
    """No node is told to hold more than it has room for, nor promised to be faster than it is."""
    on = Counter(name for generation in live_generations(cluster) for name in generation.nodes())
    for name, taken in footprints(live_generations(cluster)).items():
        hardware = cluster.nodes[name].state.hardware
        assert hardware is not None
        fits = taken.bytes <= hardware.memory_bytes * 9 // 10
        # One that is alone may be from before its node shrank.
        assert fits or on[name] == 1, f"{name} is told to hold too much"
    reserved: Counter[str] = Counter()
    for use in uses_of(cluster.models.values()):
        reserved.update(use.reserved or {})
    assert all(share <= 1.0 + 1e-6 for share in reserved.values()), reserved


@dataclass
class Checks:
    """What must hold for the actions of a whole history. Feed it every action in order."""

    cluster: Cluster
    revision: int = 0
    assigned: dict[str, tuple[StageRef, ...]] = field(default_factory=dict)
    ready: set[tuple[str, int, tuple[str, str, int, int]]] = field(default_factory=set)
    """Reported: (node, incarnation, stage key)."""
    restored: set[tuple[str, int]] = field(default_factory=set)
    """(model, generation) taken over, whose stages need not be reported."""
    numbers: dict[str, int] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    deployed: set[tuple[str, int]] = field(default_factory=set)
    active: set[Pipeline] = field(default_factory=set)
    draining: set[Pipeline] = field(default_factory=set)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    finished: dict[tuple[str, str], list[Finish]] = field(default_factory=dict)
    published: list[str] = field(default_factory=list)
    cordons: dict[str, Cordon] = field(default_factory=dict)
    """What is retained of nodes that are out of plans."""

    def observe(self, actions: list[Action]) -> None:
        for action in actions:
            self._one(action)
        assert_valid(self.cluster)
        for tell in actions:
            if isinstance(tell, Tell) and tell.event == "replanned" and tell.model is not None:
                newest = self.cluster.models[tell.model].newest
                avoided = {name for name, cordon in self.cordons.items() if cordon.drain}
                assert newest is None or not avoided & newest.nodes()
        running = {
            (served.name, served.active.names[index], served.active.number)
            for served in self.cluster.models.values()
            if served.active is not None
            for index, _ in served.active.running()
        }
        assert running == self.active, "the dispatcher knows the same pipelines"
        for verb_and_transaction, finishes in self.finished.items():
            assert len(finishes) <= self.asked[verb_and_transaction]

    def _one(self, action: Action) -> None:
        match action:
            case AskNode(node):
                assert self.cluster.nodes[node].alive, "who is gone is not asked"
            case ClearAssignment(node):
                assert self.assigned[node] == ()
            case ForgetNode(node):
                assert node not in self.cluster.nodes
            case PushAssignment(node, revision, stages):
                assert revision > self.revision
                self.revision = revision
                self._pushed(node, stages)
            case ModelKnown(model):
                self.known.add(model)
            case ModelForgotten(model):
                assert model in self.known
                self.known.remove(model)
                assert not any(key[0] == model for key in self.active)
            case ActivatePipeline():
                self._activated(action)
            case DrainPipeline(model, pipeline, generation):
                self.active.remove((model, pipeline, generation))
                self.draining.add((model, pipeline, generation))
            case LosePipeline(model, pipeline, generation):
                key = (model, pipeline, generation)
                assert key in self.active | self.draining
                self.active.discard(key)
                self.draining.discard(key)
            case DeploymentEnded(model=model, generation=number):
                assert (model, number) not in self.deployed, "it is told once"
                self.deployed.add((model, number))
                assert action.active == (action.fate == "")
                assert action.took_s >= action.loaded_s >= 0.0
            case PublishModel(model):
                self.published.append(model)
            case PublishCordon(node, cordon):
                self.cordons.pop(node, None)
                if cordon is not None:
                    self.cordons[node] = cordon
            case Tell():
                self._told(action)
            case Progress(transaction, verb, text):
                assert text
                done = self.finished.get((verb, transaction), [])
                assert len(done) < self.asked[verb, transaction]
            case Finish():
                self.finished.setdefault((action.verb, action.transaction), []).append(action)
            case _:
                assert_never(action)

    def _pushed(self, node: str, stages: tuple[StageRef, ...]) -> None:
        self.assigned[node] = stages
        wanted = {key.key for g in live_generations(self.cluster) for key in g.stages_on(node)}
        assert {ref.key for ref in stages} == wanted
        if not self.cluster._context.members.is_alive(node):
            assert not stages
        places = Counter((ref.entry.name, ref.generation) for ref in stages)
        assert not places or max(places.values()) == 1

    def _activated(self, action: ActivatePipeline) -> None:
        model = action.entry.name
        assert model in self.known
        key = (model, action.pipeline, action.generation)
        assert key not in self.active | self.draining
        assert action.throughput_per_s > 0
        assert action.latency_s > 0
        self.active.add(key)
        for number, stage in enumerate(action.plan.stages):
            node = self.cluster.nodes[stage.node]
            assert node.alive
            place = (model, action.pipeline, action.generation, number)
            said = (stage.node, node.state.incarnation, place) in self.ready
            assert said or (model, action.generation) in self.restored

    def _told(self, action: Tell) -> None:
        assert action.text
        if action.event == "replanned":
            assert action.model is not None
            assert action.generation is not None
            assert action.generation > self.numbers.get(action.model, 0)
            self.numbers[action.model] = action.generation

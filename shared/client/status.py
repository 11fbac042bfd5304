"""The cluster as its retained topics show it, to anybody who may read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shared.bus import Message
from shared.codec import decode_json
from shared.messages.cordon import Cordon
from shared.messages.model import ModelState
from shared.messages.node import NodeState, Telemetry
from shared.messages.operation import Metrics, NodeStanding, OrchestratorState

WATCHED = ("orchestrator_state", "node_state", "telemetry", "cordon", "model_state", "metrics")
"""The topics of the table that a status is made of."""
MOST_NAMES = 20_000
"""Nodes, and models, that are shown: a flood of invented ones must not fill the memory of who looks on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node: what it says it is, and how it did when it last said so (None: not heard yet)."""

    state: NodeState
    telemetry: Telemetry | None = None
    standing: NodeStanding | None = None
    """What the orchestrator has to say of a node that is not simply there."""
    cordon: Cordon | None = None
    """It was taken out of plans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """Nodes and models by name; `orchestrator` is None when none ever was on this broker and root."""

    orchestrator: OrchestratorState | None
    nodes: tuple[NodeView, ...]
    models: tuple[ModelState, ...]
    metrics: Metrics | None = None

    @property
    def online(self) -> tuple[NodeView, ...]:
        """The nodes that are there now."""
        return tuple(node for node in self.nodes if node.state.state == "online")

    def model(self, name: str) -> ModelState | None:
        """The state of one model, or None."""
        return next((state for state in self.models if state.model == name), None)


@dataclass(slots=True)
class Overview:
    """Collects what the watched topics say; an empty retained message takes its subject away."""

    orchestrator: OrchestratorState | None = None
    nodes: dict[str, NodeState] = field(default_factory=dict)
    telemetry: dict[str, Telemetry] = field(default_factory=dict)
    cordons: dict[str, Cordon] = field(default_factory=dict)
    models: dict[str, ModelState] = field(default_factory=dict)
    metrics: Metrics | None = None

    def _room(self, known: dict[str, Any], name: str) -> bool:
        return name in known or len(known) < MOST_NAMES

    def take(self, name: str, levels: dict[str, str], message: Message) -> None:
        """One message on the topic `name` of the table.

        Raises:
            ProtocolError: the payload is not what the topic promises.
        """
        payload = message.payload
        match name:
            case "orchestrator_state":
                # It never clears its own state: an empty message is somebody else's, and says nothing.
                if payload:
                    self.orchestrator = decode_json(payload, OrchestratorState)
            case "node_state":
                if payload:
                    state = decode_json(payload, NodeState)
                    if self._room(self.nodes, levels["node"]):
                        self.nodes[levels["node"]] = state
                else:
                    self.nodes.pop(levels["node"], None)
            case "telemetry":
                telemetry = decode_json(payload, Telemetry)
                if self._room(self.telemetry, levels["node"]):
                    self.telemetry[levels["node"]] = telemetry
            case "cordon":
                if payload:
                    cordon = decode_json(payload, Cordon)
                    if self._room(self.cordons, levels["node"]):
                        self.cordons[levels["node"]] = cordon
                else:
                    self.cordons.pop(levels["node"], None)
            case "model_state":
                if payload:
                    model = decode_json(payload, ModelState)
                    if self._room(self.models, levels["model"]):
                        self.models[levels["model"]] = model
                else:
                    self.models.pop(levels["model"], None)
            case "metrics":
                self.metrics = decode_json(payload, Metrics)

    def incomplete(self) -> bool:
        """Whether something has not been heard of yet: a node by its telemetry, or what metrics say.

        Those are each model's last second, and how it stands with nodes that are gone.
        """
        led = self.orchestrator is not None and self.orchestrator.state == "online"
        untold = led and self.metrics is None
        return (untold and bool(self.models)) or any(
            self._heard(name, state) is None if state.state == "online" else untold
            for name, state in self.nodes.items()
        )

    def _heard(self, name: str, state: NodeState) -> Telemetry | None:
        heard = self.telemetry.get(name)
        return heard if heard and heard.incarnation == state.incarnation else None

    def snapshot(self) -> ClusterStatus:
        """What is known now."""
        standings = {} if self.metrics is None else self.metrics.nodes
        return ClusterStatus(
            orchestrator=self.orchestrator,
            nodes=tuple(
                NodeView(
                    state=state,
                    telemetry=self._heard(name, state),
                    standing=standings.get(name),
                    cordon=self.cordons.get(name),
                )
                for name, state in sorted(self.nodes.items())
            ),
            models=tuple(state for _, state in sorted(self.models.items())),
            metrics=self.metrics,
        )

"""Who is there: births, deaths, telemetry leases and incarnations, told apart and put in order.

A node's life::

    birth --> alive --clean leave or last will of this incarnation--> gone --birth--> alive
                |                                                                       ^
                +--silent for longer than its lease--> silent --it is heard of again----+

A death with an older incarnation than the node's is a late will; a birth with an older one came late.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from orchestrator.core.nodes import Node
from shared.messages.node import NodeState, Telemetry
from shared.messages.stage import Report


@dataclass(frozen=True, slots=True)
class Joined:
    """A node can be planned for; `anew` when this is another life of it, so that it holds nothing."""

    node: str
    cause: str
    text: str
    anew: bool


@dataclass(frozen=True, slots=True)
class Left:
    """A node cannot be planned for any more, and what it held is gone or out of reach."""

    node: str
    cause: str
    why: str


@dataclass(frozen=True, slots=True)
class Altered:
    """A living node says something else about itself, such as its measured speed."""

    node: str
    cause: str
    calibrated: bool


Change = Joined | Left | Altered


@dataclass(slots=True)
class Members:
    """The nodes by name, those that are gone too. `stall_s`: see `ClusterSettings`."""

    stall_s: float
    nodes: dict[str, Node] = field(default_factory=dict)
    _ticked: float | None = None

    def alive(self) -> list[Node]:
        """The nodes that can be planned for, by name."""
        return [node for _, node in sorted(self.nodes.items()) if node.alive]

    def is_alive(self, name: str) -> bool:
        """Whether a node of that name can be planned for."""
        node = self.nodes.get(name)
        return node is not None and node.alive

    def born(self, now: float, state: NodeState) -> list[Change]:
        """A birth, or the same once more."""
        known = self.nodes.get(state.node)
        if known is None:
            self.nodes[state.node] = Node(state, heard=now)
            return [_joined(state, anew=True)]
        if state.incarnation < known.state.incarnation:
            return []  # of an earlier life, delivered late
        anew = state.incarnation > known.state.incarnation
        if known.alive and not anew:
            return self._again(now, known, state)
        changes: list[Change] = []
        if known.alive:
            # It started anew before anybody noticed that it had died.
            changes.append(_left(known, "started anew"))
        report = None if anew else known.report
        self.nodes[state.node] = Node(
            state, heard=now, corrections=known.corrections, report=report
        )
        return [*changes, _joined(state, anew=anew)]

    def died(self, now: float, state: NodeState) -> list[Change]:
        """A clean leave or a last will; of a node that nobody knows, the incarnation is remembered."""
        known = self.nodes.get(state.node)
        if known is None:
            self.nodes[state.node] = Node(state, heard=now, alive=False)
            return []
        if state.incarnation < known.state.incarnation:
            return []  # the late will of an earlier life
        was_alive, known.state, known.alive = known.alive, state, False
        why = "left" if state.state == "offline" else "was lost (last will)"
        return [_left(known, why)] if was_alive else []

    def heard(self, now: float, telemetry: Telemetry) -> list[Change]:
        """Telemetry renews the lease, and brings a silent node back."""
        node = self._living(telemetry.node, telemetry.incarnation)
        if node is None:
            return []
        node.telemetry = telemetry
        return self._sign_of_life(now, node)

    def reported(self, now: float, report: Report) -> list[Change]:
        """So does a report."""
        node = self._living(report.node, report.incarnation)
        if node is None:
            return []
        if node.report is None or report.revision >= node.report.revision:
            node.report = report
        return self._sign_of_life(now, node)

    def expired(self, now: float) -> list[Change]:
        """The leases that have run out by `now`."""
        if self._ticked is not None and now - self._ticked > self.stall_s:
            # Nobody read what the nodes sent while we stood still.
            for node in self.nodes.values():
                node.heard = min(node.heard + now - self._ticked, now)
        self._ticked = now
        changes: list[Change] = []
        for node in self.alive():
            if now > node.lease_ends():
                node.alive = False
                changes.append(_left(node, f"is silent for {now - node.heard:.1f} s (lease)"))
        return changes

    def _living(self, name: str, incarnation: int) -> Node | None:
        node = self.nodes.get(name)
        if node is None or node.state.incarnation != incarnation or node.state.state != "online":
            return None
        return node

    def _again(self, now: float, known: Node, state: NodeState) -> list[Change]:
        before, known.state, known.heard = known.state, state, now
        if _planned_by(before) == _planned_by(state):
            return []
        calibrated = before.calibration != state.calibration
        if calibrated:
            known.corrections.clear()  # they are relative to it
        what = "measured its speed" if calibrated else "changed"
        return [Altered(state.node, f"node {state.node} {what}", calibrated)]

    def _sign_of_life(self, now: float, node: Node) -> list[Change]:
        node.heard = now
        if node.alive:
            return []
        node.alive = True
        cause = f"node {node.name} answers again"
        return [Joined(node.name, cause, cause, anew=False)]


def _planned_by(state: NodeState) -> NodeState:
    """The part of a birth that a plan depends on."""
    return replace(state, pid=0, host="", version="", reason="", telemetry_interval_s=1.0)


def _left(node: Node, why: str) -> Left:
    node.alive = False
    return Left(node.name, f"node {node.name} {why}", why)


def _joined(state: NodeState, *, anew: bool) -> Joined:
    cause = f"node {state.node} joined"
    hardware = state.hardware
    if hardware is None:
        return Joined(state.node, cause, cause, anew)
    runtimes = ", ".join(f"{name} {version}" for name, version in sorted(state.runtimes.items()))
    size = f"{hardware.cpu:g} CPU, {hardware.memory_bytes / 1e6:.0f} MB"
    return Joined(state.node, cause, f"{cause}: {size}, {runtimes or 'no runtime'}", anew)

"""Who is there: births, deaths, silence and incarnations, told apart and put in order.

A node's life::

    birth --> alive --clean leave or last will of this incarnation--> gone --birth--> alive
                |                                                                       ^
                +--silent--> asked --no answer--> silent for good --it is heard of again+
                                |
                                +--it answers--> alive

A node is asked when telemetry is overdue. Its silence counts from when the question has come back to us:
then the broker and our own connection work, and it is the node that does not.

A death with an older incarnation than the node's is a late will; a birth with an older one came late.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from orchestrator.core import ghosts
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
from orchestrator.core.nodes import ANSWER_S, Node, Question
from orchestrator.core.sanity import Complaints, birth_problem, telemetry_problem
from shared.errors import ForgedReason
from shared.messages.node import NodeState, Telemetry
from shared.messages.stage import Report
from shared.sentences import size_in_words

_FORGED: dict[ForgedReason, str] = {
    "unsigned": "nobody signed it; does the orchestrator have a token of this cluster?",
    "unknown_signer": "its signer is not of this cluster; was the node's token made by another one?",
    "wrong_role": "it is signed by somebody who is no orchestrator",
    "bad_signature": "it is not what the orchestrator signed",
    "bad_mac": "it does not come from its pipeline",
}


@dataclass(slots=True)
class Members:
    """The nodes by name, those that are gone too until they are forgotten (`ghosts`)."""

    forget_after_s: float
    nodes: dict[str, Node] = field(default_factory=dict)
    _complaints: Complaints = field(default_factory=Complaints)

    def alive(self) -> list[Node]:
        """The nodes that can be planned for, by name."""
        return sorted(
            (node for node in self.nodes.values() if node.alive), key=lambda node: node.name
        )

    def is_alive(self, name: str) -> bool:
        """Whether a node of that name can be planned for."""
        node = self.nodes.get(name)
        return node is not None and node.alive

    def born(self, now: float, state: NodeState) -> list[Change]:
        """A birth, or the same once more."""
        self._complaints.born(state.node)
        room = self._make_room(state.node)
        if room is None:
            full = f"{len(self.nodes)} nodes are here already, and none of them is gone"
            return self._complain(state.node, "birth", full)
        changes = room + self._born(now, state)
        if state.hardware is not None:
            self.nodes[state.node].condition.born(state.hardware.memory_bytes)
        problem = birth_problem(state)
        if problem is not None:
            changes += self._complain(state.node, "birth", problem)
        return changes

    def _born(self, now: float, state: NodeState) -> list[Change]:
        known = self.nodes.get(state.node)
        if known is None:
            self.nodes[state.node] = node = Node(state, heard=now)
            return [_joined(now, node, anew=True)]
        if state.incarnation < known.state.incarnation:
            return []  # of an earlier life, delivered late
        anew = state.incarnation > known.state.incarnation
        if known.alive and not anew:
            return self._again(now, known, state)
        changes: list[Change] = []
        if known.alive:
            # It started anew before anybody noticed that it had died.
            changes += _left(now, known, "started anew")
        report = None if anew else known.report
        self.nodes[state.node] = node = Node(
            state,
            heard=now,
            corrections=known.corrections,
            condition=known.condition,
            contention=known.contention,
            report=report,
            visits=known.visits,
            needs_disk_bytes={} if anew else known.needs_disk_bytes,
            disk_full_since=known.disk_full_since,
        )
        return [*changes, _joined(now, node, anew=anew)]

    def died(self, now: float, state: NodeState) -> list[Change]:
        """A clean leave or a last will; of a node that nobody knows, the incarnation is remembered."""
        known = self.nodes.get(state.node)
        if known is None:
            self._found(now, state)
            return []
        if state.incarnation < known.state.incarnation:
            return []  # the late will of an earlier life
        known.state = state
        why = "left" if state.state == "offline" else "was lost (last will)"
        return _left(now, known, why, crashed=state.state == "lost") if known.alive else []

    def assigned(self, now: float, name: str) -> None:
        """Something is retained for a node; where nobody knows of that node it is gone, too."""
        if name not in self.nodes:
            self._found(now, ghosts.ghost(name))

    def heard(self, now: float, telemetry: Telemetry) -> list[Change]:
        """Telemetry renews the lease, and brings a silent node back; one that makes no sense does no more."""
        node = self._living(telemetry.node, telemetry.incarnation)
        if node is None:
            return self._stranger(telemetry.node, telemetry.incarnation)
        changes = self._sign_of_life(now, node)
        problem = telemetry_problem(telemetry)
        if problem is not None:
            return [*changes, *self._complain(node.name, "telemetry", problem)]
        node.telemetry = telemetry
        changes += _disk_freed(node)
        node.contention.heard(now, telemetry.cpu_others_ratio)
        if node.condition.take(now, telemetry):
            cause = f"node {node.name} has {node.memory_bytes / 1e6:.0f} MB left for us"
            changes.append(Shrunk(node.name, cause))
        return changes

    def refused(
        self, now: float, name: str, what: str, problem: str, incarnation: int | None
    ) -> list[Change]:
        """A node's message that could not be read; it lives where that much could be (`incarnation`)."""
        node = None if incarnation is None else self._living(name, incarnation)
        alive = [] if node is None else self._sign_of_life(now, node)
        return [*alive, *self._complain(name, what, problem)]

    def reported(self, now: float, report: Report) -> list[Change]:
        """So does a report."""
        node = self._living(report.node, report.incarnation)
        if node is None:
            return []
        if node.report is None or report.revision >= node.report.revision:
            node.report = report
        changes = self._sign_of_life(now, node)
        for forgery in report.forged:
            what = f"forged_{forgery.topic}"
            if self._complaints.is_new(node.name, report.incarnation, f"{what} {forgery.reason}"):
                text = (
                    f"node {node.name} dropped what came on its {forgery.topic} topic: "
                    f"{_FORGED[forgery.reason]}"
                )
                changes.append(Refused(node.name, what, text, forgery.reason))
        return changes

    def ticked(self, now: float) -> list[Change]:
        """Who is to be asked whether it is there, who did not answer, and who is to be forgotten."""
        due = [n for n in self.nodes.values() if ghosts.is_due(n, now, self.forget_after_s)]
        changes: list[Change] = [self._forget(node) for node in due]
        for node in self.alive():
            if node.left_out and now >= node.visits.left_out_until:
                node.left_out = False
                changes.append(Readmitted(node.name, f"node {node.name} has stayed"))
            if now < node.asks_at():
                continue
            question = node.question
            if question is None or (question.reached is None and now - question.asked >= ANSWER_S):
                node.question = Question(now)
                changes.append(Questioned(node.name))
            elif question.reached is not None:
                question.looks += 1
                if node.may_be_lost(now):
                    why = f"is silent for {now - node.heard:.1f} s and does not answer"
                    changes += _left(now, node, why, crashed=False)
        return changes

    def told(self, name: str, revision: int) -> None:
        """An assignment is on its way to a node."""
        if (node := self.nodes.get(name)) is not None:
            node.told = revision

    def question_seen(self, now: float, name: str) -> None:
        """The question to a node has come back to us from the broker."""
        node = self.nodes.get(name)
        if node is not None and node.question is not None and node.question.reached is None:
            node.question.reached = now

    def left_out(self, name: str) -> bool:
        """Whether a node came and went too often to be planned for where anything fits without it."""
        node = self.nodes.get(name)
        return node is not None and node.left_out

    def _found(self, now: float, state: NodeState) -> None:
        """Somebody was here before us, and is gone. Beyond the bound it is left to who reads the topics."""
        if len(self.nodes) < ghosts.MOST_NODES:
            self.nodes[state.node] = Node(state, heard=now, alive=False, gone_since=now)

    def _make_room(self, name: str) -> list[Change] | None:
        """Forget who is gone longest where there are too many nodes for one more; None when nobody is."""
        if name in self.nodes or len(self.nodes) < ghosts.MOST_NODES:
            return []
        gone = ghosts.longest_gone(self.nodes)
        return None if gone is None else [self._forget(gone)]

    def _forget(self, node: Node) -> Forgotten:
        del self.nodes[node.name]
        self._complaints.forget(node.name)
        how = "left" if node.state.state == "offline" else "was lost"
        return Forgotten(node.name, f"node {node.name} {how} and did not come back")

    def _complain(self, name: str, what: str, problem: str) -> list[Change]:
        known = self.nodes.get(name)
        incarnation = 0 if known is None else known.state.incarnation
        if not self._complaints.is_new(name, incarnation, what):
            return []
        return [Refused(name, what, f"{what} of node {name} is refused: {problem}", problem)]

    def _stranger(self, name: str, incarnation: int) -> list[Change]:
        """Telemetry of a life that is not the node's: chance, or two agents of one name."""
        known = self.nodes.get(name)
        if known is not None and known.state.incarnation == incarnation:
            return []  # it left, and this came late; or it is about to say its birth again
        if not self._complaints.is_strange(name):
            return []
        expected = (
            "no birth of it is known"
            if known is None
            else f"its birth said {known.state.incarnation}: does another agent have this name?"
        )
        return self._complain(name, "telemetry", f"it is of incarnation {incarnation}, {expected}")

    def _living(self, name: str, incarnation: int) -> Node | None:
        node = self.nodes.get(name)
        if node is None or node.state.incarnation != incarnation or node.state.state != "online":
            return None
        return node

    def _again(self, now: float, known: Node, state: NodeState) -> list[Change]:
        before, known.state = known.state, state
        _heard(now, known)
        if _planned_by(before) == _planned_by(state):
            return []
        calibrated = before.calibration != state.calibration
        if calibrated:
            known.corrections.clear()  # they are relative to it
        what = "measured its speed" if calibrated else "changed"
        return [Altered(state.node, f"node {state.node} {what}", calibrated)]

    def _sign_of_life(self, now: float, node: Node) -> list[Change]:
        _heard(now, node)
        if node.alive:
            return []
        node.alive = True
        node.visits.joined(now)
        node.left_out = now < node.visits.left_out_until
        cause = f"node {node.name} answers again"
        return [Joined(node.name, cause, cause, anew=False)]


def _disk_freed(node: Node) -> list[Change]:
    """For which models a node has the space now that it lacked."""
    free_bytes = None if node.telemetry is None else node.telemetry.disk_free_bytes
    if free_bytes is None:
        return []
    freed = [model for model, needed in node.needs_disk_bytes.items() if free_bytes >= needed]
    changes: list[Change] = []
    for model in freed:
        del node.needs_disk_bytes[model]
        cause = f"the disk of node {node.name} has room for {model} now"
        changes.append(DiskFreed(node.name, model, cause))
    return changes


def _planned_by(state: NodeState) -> NodeState:
    """The part of a birth that a plan depends on."""
    return replace(state, pid=0, host="", version="", reason="", telemetry_interval_s=1.0)


def _heard(now: float, node: Node) -> None:
    node.heard, node.question = now, None


def _left(now: float, node: Node, why: str, *, crashed: bool = True) -> list[Change]:
    node.alive, node.question, node.gone_since = False, None, now
    left = Left(node.name, f"node {node.name} {why}", why, crashed)
    left_out_s = node.visits.left(now, loading=node.is_loading())
    if left_out_s is None:
        return [left]
    cause = f"node {node.name} comes and goes: left out of plans for {left_out_s:.0f} s"
    return [left, LeftOut(node.name, cause)]


def _joined(now: float, node: Node, *, anew: bool) -> Joined:
    node.visits.joined(now)
    node.left_out = now < node.visits.left_out_until
    state = node.state
    cause = f"node {state.node} joined"
    hardware = state.hardware
    if hardware is None:
        return Joined(state.node, cause, cause, anew)
    runtimes = ", ".join(f"{name} {version}" for name, version in sorted(state.runtimes.items()))
    size = f"{hardware.cpu:.3g} CPUs, {size_in_words(hardware.memory_bytes)}"
    return Joined(state.node, cause, f"{cause}: {size}, {runtimes or 'no runtime'}", anew)

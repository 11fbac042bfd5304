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

from orchestrator.core.nodes import ANSWER_S, Node, Question
from orchestrator.core.sanity import Complaints, birth_problem, telemetry_problem
from shared.errors import ForgedReason
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
    """A node cannot be planned for any more, and what it held is gone or out of reach.

    `crashed`: it did not say so itself, so what it computed may be why.
    """

    node: str
    cause: str
    why: str
    crashed: bool


@dataclass(frozen=True, slots=True)
class Altered:
    """A living node says something else about itself, such as its measured speed."""

    node: str
    cause: str
    calibrated: bool


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A living node has noticeably less memory for us than it had."""

    node: str
    cause: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A node said something that cannot be true; said once per life and kind of message."""

    node: str
    what: str
    text: str
    problem: str


@dataclass(frozen=True, slots=True)
class Questioned:
    """A node is silent: it is to be asked whether it is there."""

    node: str


_FORGED: dict[ForgedReason, str] = {
    "unsigned": "nobody signed it; does the orchestrator have a token of this cluster?",
    "unknown_signer": "its signer is not of this cluster; was the node's token made by another one?",
    "wrong_role": "it is signed by somebody who is no orchestrator",
    "bad_signature": "it is not what the orchestrator signed",
}

Change = Joined | Left | Altered | Shrunk | Refused | Questioned


@dataclass(slots=True)
class Members:
    """The nodes by name, those that are gone too."""

    nodes: dict[str, Node] = field(default_factory=dict)
    _complaints: Complaints = field(default_factory=Complaints)

    def alive(self) -> list[Node]:
        """The nodes that can be planned for, by name."""
        return [node for _, node in sorted(self.nodes.items()) if node.alive]

    def is_alive(self, name: str) -> bool:
        """Whether a node of that name can be planned for."""
        node = self.nodes.get(name)
        return node is not None and node.alive

    def born(self, now: float, state: NodeState) -> list[Change]:
        """A birth, or the same once more."""
        self._complaints.born(state.node)
        changes = self._born(now, state)
        if state.hardware is not None:
            self.nodes[state.node].condition.born(state.hardware.memory_bytes)
        problem = birth_problem(state)
        if problem is not None:
            changes += self._complain(state.node, "birth", problem)
        return changes

    def _born(self, now: float, state: NodeState) -> list[Change]:
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
            state,
            heard=now,
            corrections=known.corrections,
            condition=known.condition,
            contention=known.contention,
            report=report,
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
        return [_left(known, why, crashed=state.state == "lost")] if was_alive else []

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
                    f"node {node.name} does not obey what came on its {forgery.topic} topic: "
                    f"{_FORGED[forgery.reason]}"
                )
                changes.append(Refused(node.name, what, text, forgery.reason))
        return changes

    def ticked(self, now: float) -> list[Change]:
        """The nodes that are to be asked whether they are there, and those that did not answer."""
        changes: list[Change] = []
        for node in self.alive():
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
                    changes.append(_left(node, why))
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
        cause = f"node {node.name} answers again"
        return [Joined(node.name, cause, cause, anew=False)]


def _planned_by(state: NodeState) -> NodeState:
    """The part of a birth that a plan depends on."""
    return replace(state, pid=0, host="", version="", reason="", telemetry_interval_s=1.0)


def _heard(now: float, node: Node) -> None:
    node.heard, node.question = now, None


def _left(node: Node, why: str, *, crashed: bool = True) -> Left:
    node.alive, node.question = False, None
    return Left(node.name, f"node {node.name} {why}", why, crashed)


def _joined(state: NodeState, *, anew: bool) -> Joined:
    cause = f"node {state.node} joined"
    hardware = state.hardware
    if hardware is None:
        return Joined(state.node, cause, cause, anew)
    runtimes = ", ".join(f"{name} {version}" for name, version in sorted(state.runtimes.items()))
    size = f"{hardware.cpu:g} CPU, {hardware.memory_bytes / 1e6:.0f} MB"
    return Joined(state.node, cause, f"{cause}: {size}, {runtimes or 'no runtime'}", anew)

"""What comes in on the control connection, checked and turned into events.

What goes wrong with one message stays with it: a malformed one is logged and counted, one that fails by our
own fault as well, with its traceback. What is too large for its topic, or comes faster than its sender may
send, is not even read.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.core import cluster_events as events
from orchestrator.core.rates import RATES, Admission, RateLimits
from orchestrator.doubts import Doubts
from orchestrator.live_settings import LiveSettings
from orchestrator.outbox import Outbox
from orchestrator.request_gate import RequestGate
from orchestrator.restore import Restore
from orchestrator.vouching import Vouching
from shared.bus import Message
from shared.codec import decode_json
from shared.errors import ProtocolError
from shared.logs import get_log
from shared.messages import Count, Name
from shared.messages.cordon import Cordon
from shared.messages.model import ModelState
from shared.messages.node import NodeState, Telemetry
from shared.messages.operation import OrchestratorState
from shared.messages.settings import OrchestratorInfo
from shared.messages.stage import Assignment
from shared.messages.stage import Report as StageReports
from shared.topics import SPECS, Topics, check_payload
from shared.transfer import Transfers

log = get_log(__name__)

SUBSCRIPTIONS = (
    "node_state", "telemetry", "report", "ping", "model_state", "assignment", "cordon", "request",
    "orchestrator_info",
)  # fmt: skip

_OF_NODES = {"node_state": "birth", "telemetry": "telemetry", "report": "report"}
"""What nodes say of themselves, by topic: the cluster hears of it when it cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Life:
    """What a message that is broken elsewhere may still say."""

    node: Name
    incarnation: Count


class Intake:
    """Takes messages.

    `step` gives the cluster's core an event, `tell` puts a line on `event`, `doubted` is called when a last
    will is held back, `obeys` when a node obeys nobody below a term greater than ours, which is `term`.
    """

    def __init__(
        self,
        topics: Topics,
        *,
        incarnation: int,
        term: int,
        outbox: Outbox,
        restore: Restore,
        settings: LiveSettings,
        requests: RequestGate,
        vouching: Vouching,
        transfers: Transfers,
        counters: Counter[str],
        doubts: Doubts,
        step: Callable[[events.Event], None],
        tell: Callable[[events.Tell], None],
        doubted: Callable[[], None],
        obeys: Callable[[int], None],
    ) -> None:
        self._topics = topics
        self._incarnation = incarnation
        self._term = term
        self._outbox = outbox
        self._restore = restore
        self._settings = settings
        self._requests = requests
        self._vouching = vouching
        self._transfers = transfers
        self._counters = counters
        self._doubts = doubts
        self._step = step
        self._tell = tell
        self._rates = RateLimits()
        self._doubted = doubted
        self._obeys = obeys
        self._refusals: dict[str, tuple[int, int]] = {}
        """How many assignments of earlier leaders each node has refused, by incarnation."""

    def take(self, message: Message) -> None:
        """Deal with one message; raises nothing."""
        try:
            name, levels = self._topics.parse(message.topic)
            if not self._in_time(name, levels):
                return
            try:
                check_payload(name, len(message.payload))
                self._message(name, levels, message)
            except ProtocolError as error:
                if name in _OF_NODES:
                    readable = message.payload[: SPECS[name].max_bytes]
                    self._refused(_OF_NODES[name], levels["node"], readable, error)
                raise
        except ProtocolError as error:
            self._counters["bad_messages"] += 1
            if self._counters["bad_messages"].bit_count() == 1:  # a flood must not flood the log
                log.warning("dropped a message", topic=message.topic, error=error)
        except Exception:
            self._counters["internal_errors"] += 1
            log.exception("a message failed", topic=message.topic)

    def _in_time(self, name: str, levels: dict[str, str]) -> bool:
        """Whether the message keeps its sender's rate; said once where it does not."""
        sender = next(iter(levels.values()), "")
        admission = self._rates.admit(time.monotonic(), name, sender)
        if admission is Admission.TAKEN:
            return True
        self._counters["rate_limited"] += 1
        if admission is Admission.FIRST_DROPPED:
            text = (
                f"{name} of {sender[:64]} comes faster than {RATES[name].per_s:g} a second, or from too "
                "many new names at once: what is beyond that is dropped"
            )
            self._tell(events.Tell("rate_limited", text, node=levels.get("node")))
        return False

    def _message(self, name: str, levels: dict[str, str], message: Message) -> None:
        now, payload = time.monotonic(), message.payload
        match name:
            case "node_state" if payload:
                state = decode_json(payload, NodeState)
                _same_node(levels, state.node)
                self._node(now, state, message)
            case "telemetry":
                telemetry = decode_json(payload, Telemetry)
                _same_node(levels, telemetry.node)
                self._step(events.NodeHeard(now, telemetry))
            case "ping":
                self._step(events.QuestionSeen(now, levels["node"]))
            case "report":
                report = decode_json(payload, StageReports)
                _same_node(levels, report.node)
                self._node_obeys(report.term)
                self._tell_refusals(report)
                self._step(events.NodeReported(now, report))
            case "assignment" if message.retain and self._holds(name, message):
                self._outbox.kept(message.topic, payload)
                assignment = decode_json(payload, Assignment)
                numbers = tuple((stage.model, stage.generation) for stage in assignment.stages)
                self._step(events.AssignmentSeen(now, levels["node"], assignment.revision, numbers))
            case "cordon" if message.retain and self._holds(name, message):
                self._outbox.kept(message.topic, payload)
                cordon = decode_json(payload, Cordon)
                _same_node(levels, cordon.node)
                self._step(events.CordonSeen(now, cordon.node, cordon))
            case "model_state" if message.retain and self._holds(name, message):
                self._outbox.kept(message.topic, payload)
                self._restore.found(levels["model"], decode_json(payload, ModelState))
            case "orchestrator_info" if message.retain and self._holds(name, message):
                self._outbox.kept(message.topic, payload)
                self._settings.found(decode_json(payload, OrchestratorInfo))
            case "orchestrator_state" if self._holds(name, message):
                self._orchestrator_seen(decode_json(payload, OrchestratorState), message)
            case "request":
                self._requests.take(levels["verb"], message)
            case "artifact_want" | "artifact_piece":
                self._transfers.handle(name, levels, message)
            case _:
                # Our own words come back to us, and a cleared topic says nothing: neither is an error.
                return

    def _holds(self, name: str, message: Message) -> bool:
        """Whether somebody vouches for what an orchestrator said, who may. A cleared topic says nothing."""
        return bool(message.payload) and self._vouching.accepts(name, message)

    def _refused(
        self, what: str, node: str, payload: bytes | bytearray, error: ProtocolError
    ) -> None:
        """Have it complained about once; that the node lives may be readable all the same."""
        incarnation = None
        with contextlib.suppress(ProtocolError):
            life = decode_json(payload, _Life)
            incarnation = life.incarnation if life.node == node else None
        self._step(events.MessageRefused(time.monotonic(), node, what, error.message, incarnation))

    def _node(self, now: float, state: NodeState, message: Message) -> None:
        match state.state:
            case "online":
                self._node_obeys(state.term)
                self._doubts.born(state)
                self._step(events.NodeBorn(now, state))
            case "offline":
                self._step(events.NodeDied(now, state))
            case "lost":
                self._doubts.lost(now, state, retained=message.retain)
                self._doubted()

    def _orchestrator_seen(self, seen: OrchestratorState, message: Message) -> None:
        """Others' words are the leader watch's; ours are the mark when they are new, and not a memory."""
        if seen.incarnation != self._incarnation or seen.state != "online":
            return
        self._outbox.kept(message.topic, message.payload)
        if message.retain:
            return
        self._outbox.repeat_lost()
        self._restore.mark()

    def _node_obeys(self, term: int) -> None:
        if term > self._term:
            self._obeys(term)

    def _tell_refusals(self, report: StageReports) -> None:
        """A node that refused somebody has a leader before us to complain of, while we are heard."""
        before = self._refusals.get(report.node)
        self._refusals[report.node] = (report.incarnation, report.refused)
        if before is None or before[0] != report.incarnation or report.refused <= before[1]:
            return
        text = f"node {report.node} refused an assignment of a leader before term {report.term}"
        self._tell(events.Tell("assignment_refused", text, node=report.node))


def _same_node(levels: dict[str, str], node: str) -> None:
    if node != levels["node"]:
        raise ProtocolError(
            "one node's message on another's topic", expected=levels["node"], got=node
        )

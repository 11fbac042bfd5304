"""The thread that watches who leads: it hears and speaks for `core.leadership` on a connection of its own.

A thread, since planning may hold the event loop for seconds, and a leader that plans must not lose its lease;
that the loop turns at all is looked at with each beat (`Lease.able`). The connection has a name of this
process's own, so that it may come back whenever it likes. What it says goes out at QoS 0: a claim or a beat
that could not be sent at once must not be sent later.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from orchestrator.core import leadership as core
from orchestrator.core.leadership import Leadership, Role, Title
from orchestrator.identity import own_state
from orchestrator.lease import Lease, Tenure
from orchestrator.options import OrchestratorOptions
from orchestrator.vouching import keys_of
from shared.bus import DataBus, Message
from shared.codec import decode_json, encode_json
from shared.errors import ProtocolError
from shared.logs import get_log
from shared.messages.operation import Beat, OrchestratorState, Standby
from shared.sentences import worded
from shared.signing import Admission
from shared.topics import SPECS, Topics, check_payload

log = get_log(__name__)

ROWS = ("orchestrator_state", "orchestrator_beat", "standby")
"""What it reads; a connection for it need not take larger packets (`shared.topics.largest_packet`)."""
_TURN_S = 0.1
_LEADING_TURN_S = 0.25
"""Who leads has a beat to send, and nothing to be quick at: each turn costs CPU that jobs want."""
_KEPT_EACH = 2
"""Once a second is often enough for the disk."""
_PAUSE_S = 0.2
"""After an error of our own, so that one that comes again at once cannot eat a core."""


@dataclass(frozen=True, slots=True)
class Led:
    """We lead from now on."""

    tenure: Tenure


@dataclass(frozen=True, slots=True)
class Resigned:
    """We do not, from now on."""

    why: str


@dataclass(frozen=True, slots=True)
class Followed:
    """Another does."""

    title: Title


@dataclass(frozen=True, slots=True)
class StoodBy:
    """These would take over from us."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BeatKept:
    """The broker has this count."""

    count: int


@dataclass(frozen=True, slots=True)
class Overwritten:
    """An old leader's words have replaced ours on the broker."""


@dataclass(frozen=True, slots=True)
class Died:
    """The thread ended by itself; nobody here can lead or stand by any more."""

    error: BaseException


Notice: TypeAlias = Led | Resigned | Followed | StoodBy | BeatKept | Overwritten | Died


class LeaderWatch(threading.Thread):
    """See the module. `start` it, and in the end `stop` it.

    Args:
        bus: a clean session under a name of this process's own.
        options: the root topic, and the limits that a claim tells.
        name: this process's, in titles. On a closed cluster only titles that an orchestrator signed count;
            beats and signs are what the broker's access rules let only orchestrators say.
        notify: called in this thread.
        wall_ms: wall time in ms, where incarnations start.
    """

    def __init__(
        self,
        bus: DataBus,
        options: OrchestratorOptions,
        name: str,
        notify: Callable[[Notice], None],
        wall_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        super().__init__(name="leader watch", daemon=True)
        self._bus = bus
        self._options = options
        self._topics = Topics(options.root)
        self._notify = notify
        self._wall_ms = wall_ms
        self._core = Leadership(name)
        self._admission = Admission(options.broker.credentials)
        self._signer = keys_of(options.broker, options.root).signer
        self._incarnation = 0
        self._lease: Lease | None = None
        self._told: deque[core.Event] = deque()
        self._stopping = threading.Event()
        self._sessions = 0
        self._connected = False
        self._bad_messages = 0

    # --- from other threads

    def node_obeys(self, term: int) -> None:
        """A node said that it obeys nobody below this term."""
        self._tell(core.TermSeen(time.monotonic(), term))

    def ready(self, ready: bool) -> None:
        """Whether we have all that it takes to go on with what is served."""
        self._tell(core.ReadyChanged(time.monotonic(), ready))

    def count_known(self, count: int) -> None:
        """The broker once had this count of beats."""
        self._tell(core.CountKnown(time.monotonic(), count))

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread, without a word."""
        self._stopping.set()
        self._bus.wake()
        self.join(timeout_s)

    def _tell(self, event: core.Event) -> None:
        self._told.append(event)
        self._bus.wake()

    # --- in the thread

    def run(self) -> None:
        """Until `stop`."""
        try:
            for name in ROWS:
                self._bus.subscribe(self._topics.pattern(name), SPECS[name].qos)
            self._bus.connect()
            while not self._stopping.is_set():
                try:
                    self._turn()
                except Exception:
                    log.exception("a turn of the leader's watch failed")
                    self._stopping.wait(_PAUSE_S)
            self._bus.close()
        except BaseException as error:
            self._notify(Died(error))
            raise

    def _turn(self) -> None:
        self._bus.poll(_LEADING_TURN_S if self._core.role is Role.LEADING else _TURN_S)
        now = time.monotonic()
        if self._connected and (self._bus.sessions != self._sessions or not self._bus.connected):
            self._connected = False
            self._step(core.Disconnected(now))
        if self._bus.sessions != self._sessions:
            self._sessions = self._bus.sessions
            self._connected = True
            self._step(core.Connected(now))
        while self._told:
            self._step(self._told.popleft())
        # All that has come is read before time is looked at: a process that was frozen learns first.
        while (message := self._bus.receive()) is not None:
            self._message(message)
        self._step(core.Tick(time.monotonic(), able=self._lease is None or self._lease.able))

    def _message(self, message: Message) -> None:
        try:
            event = self._event(message)
        except ProtocolError as error:
            self._bad_messages += 1
            if self._bad_messages.bit_count() == 1:  # a flood must not flood the log
                log.warning("dropped a message", topic=message.topic, error=error)
            return
        if event is not None:
            self._step(event)

    def _event(self, message: Message) -> core.Event | None:
        name, _ = self._topics.parse(message.topic)
        now, payload = time.monotonic(), message.payload
        if not payload:
            return None  # somebody cleared it
        check_payload(name, len(payload))
        self._admission.check(name, message)
        match name:
            case "orchestrator_state":
                state = decode_json(payload, OrchestratorState)
                title = Title(state.term, state.leader or "")
                return core.LeaderSeen(now, title, state.state, message.retain)
            case "orchestrator_beat":
                beat = decode_json(payload, Beat)
                title = Title(beat.term, beat.leader or "")
                return core.BeatSeen(now, title, beat.count, message.retain)
            case "standby":
                sign = decode_json(payload, Standby)
                return core.SignSeen(now, sign.name, sign.serial, sign.ready)
            case _:
                return None

    def _step(self, event: core.Event) -> None:
        before = self._core.confirmed_at
        for action in self._core.step(event):
            self._perform(action)
        if self._lease is not None and self._core.confirmed_at != before:
            self._lease.confirm(self._core.confirmed_at)
            if isinstance(event, core.BeatSeen) and event.count % _KEPT_EACH == 0:
                self._notify(BeatKept(event.count))

    def _perform(self, action: core.Action) -> None:
        match action:
            case core.Sign(serial, ready):
                sign = Standby(name=self._core.name, serial=serial, ready=ready)
                topic = self._topics.topic("standby", standby=self._core.name)
                self._bus.publish(topic, encode_json(worded(sign)), 0)
            case core.Claim(title):
                self._claim(title)
            case core.Beat(title, count):
                beat = Beat(count=count, term=title.term, leader=title.name)
                topic = self._topics.topic("orchestrator_beat")
                self._bus.publish(topic, encode_json(beat), 0, retain=True)
            case core.Lead(title, before, beat_count):
                self._lease = Lease(self._thrown_out)
                self._lease.confirm(self._core.confirmed_at)
                tenure = Tenure(
                    title=title, incarnation=self._incarnation, before=before, beat=beat_count,
                    lease=self._lease,
                )  # fmt: skip
                self._notify(Led(tenure))
            case core.Resign(why):
                if self._lease is not None:
                    self._lease.end()
                    self._lease = None
                self._notify(Resigned(why))
            case core.Follow(title):
                self._notify(Followed(title))
            case core.StandbysChanged(names):
                self._notify(StoodBy(names))
            case _:
                assert_never(action)

    def _claim(self, title: Title) -> None:
        if self._core.role is Role.LEADING:
            self._notify(Overwritten())
            return
        self._incarnation = max(self._wall_ms(), self._incarnation + 1)
        state = own_state(self._options, "starting", title=title, incarnation=self._incarnation)
        topic = self._topics.topic("orchestrator_state")
        payload = encode_json(state)
        vouched = None if self._signer is None else self._signer.sign(topic, payload)
        self._bus.publish(topic, payload, 0, retain=True, properties=vouched)

    def _thrown_out(self) -> None:
        """Called in the thread of the connection that it happened to."""
        self._tell(core.ThrownOut(time.monotonic()))

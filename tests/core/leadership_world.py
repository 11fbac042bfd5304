"""A broker and processes that may lead, in simulated time, with what befalls them: for the leadership's test.

The broker does what MQTT does: it brings each message to every connected process in one order, keeps the
retained ones, sends the will of a leader whose place is lost, and gives a place (the fixed name of the
leader's connections) to whoever connects last. A process that is frozen or cut off reads nothing, and says
nothing; what was sent to it waits, as in its sockets.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from orchestrator.core import leadership as core
from orchestrator.core.leadership import Action, Event, Leadership, Role, State, Title

STEP_S = 0.05
CONFIRM_S = 0.15
"""As `orchestrator/lease.py` has it: what came back must have been sent so long after the loss."""
BEGINS_S = 0.1
"""From `Lead` to the first connection under the fixed name."""


@dataclass
class Process:
    """One orchestrator: its core, what waits to be read, and its hold on the leader's place."""

    core: Leadership
    inbox: deque[Event] = field(default_factory=deque)
    alive: bool = True
    frozen: bool = False
    cut: bool = False
    connected: bool = False
    leads: Title | None = None
    dials_at: float = 0.0
    lost_at: float | None = None
    """When it lost the place; None while it never had it under this title."""
    led: list[Title] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.core.name


class World:
    """Processes by name. `advance` is the only thing that lets time pass."""

    def __init__(self, *names: str) -> None:
        self.now = 100.0
        self.processes: dict[str, Process] = {}
        self.retained: tuple[Title, State] | None = None
        self.retained_beat: tuple[Title, int] | None = None
        self.holder: tuple[str, Title] | None = None
        self.broker_up = True
        self.leads: list[tuple[float, str, Title]] = []
        self.terms: list[int] = []
        """Those led under since the broker's memory was last wiped."""
        for name in names:
            self.start(name)

    # --- what befalls

    def start(self, name: str) -> None:
        """A process that was not there, or begins a new life under a new name."""
        self.processes[name] = Process(Leadership(name))

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.alive = False
        self._lose_place(name)

    def stop(self, name: str) -> None:
        """A clean end: the leader says so."""
        process = self.processes.pop(name)
        process.alive = False
        if self.holder is not None and self.holder[0] == name:
            title, self.holder = self.holder[1], None
            self._publish_state(title, "offline")

    def freeze(self, name: str) -> None:
        self.processes[name].frozen = True

    def thaw(self, name: str) -> None:
        self.processes[name].frozen = False

    def cut(self, name: str, *, noticed: bool) -> None:
        """Its network is gone; the broker notices (a reset) or not (dropped packets)."""
        process = self.processes[name]
        process.cut = True
        if noticed:
            process.connected = False
            process.inbox.append(core.Disconnected(self.now))
            self._lose_place(name)

    def heal(self, name: str) -> None:
        process = self.processes[name]
        process.cut = False
        process.connected = False  # what hung is given up, and made anew
        process.inbox.append(core.Disconnected(self.now))
        self._lose_place(name)

    def glitch(self, name: str) -> None:
        """The leader's own connection breaks, beside one to watch by that stands."""
        self._lose_place(name)

    def restart_broker(self, *, wiped: bool) -> None:
        """All connections break; the wills are kept, unless all is forgotten."""
        if self.holder is not None:
            name, title = self.holder
            self.holder = None
            self.retained = (title, "lost")
            self.processes[name].lost_at = self.now
        for process in self.processes.values():
            process.connected = False
            process.inbox.append(core.Disconnected(self.now))
        if wiped:
            self.retained = self.retained_beat = None
            self.terms.clear()

    def _lose_place(self, name: str) -> None:
        if self.holder is None or self.holder[0] != name:
            return
        title, self.holder = self.holder[1], None
        process = self.processes.get(name)
        if process is not None:
            process.lost_at = self.now
        self._publish_state(title, "lost")

    # --- the broker

    def _publish_state(self, title: Title, state: State) -> None:
        self.retained = (title, state)
        self._bring(core.LeaderSeen(self.now, title, state, retained=False))

    def _bring(self, event: Event) -> None:
        for process in self.processes.values():
            if process.connected:
                process.inbox.append(event)

    # --- time

    def advance(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            for name in list(self.processes):
                process = self.processes.get(name)
                if process is not None and not process.frozen:
                    self._turn(process)
            self.check()

    def _turn(self, process: Process) -> None:
        if not process.connected and not process.cut:
            process.connected = True
            process.inbox.append(core.Connected(self.now))
            if self.retained is not None:
                title, state = self.retained
                process.inbox.append(core.LeaderSeen(self.now, title, state, retained=True))
            if self.retained_beat is not None:
                process.inbox.append(core.BeatSeen(self.now, *self.retained_beat, retained=True))
        while process.inbox and (
            not process.cut or isinstance(process.inbox[0], core.Disconnected)
        ):
            self._perform(process, process.core.step(_at(process.inbox.popleft(), self.now)))
        self._perform(process, process.core.step(core.Tick(self.now)))
        self._dial(process)

    def _perform(self, process: Process, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case core.Lead(title):
                    assert process.leads is None, "a life begins when the one before has ended"
                    process.leads, process.lost_at = title, None
                    process.dials_at = self.now + BEGINS_S
                    process.led.append(title)
                    self.leads.append((self.now, process.name, title))
                    self.terms.append(title.term)
                case core.Resign():
                    assert process.leads is not None
                    process.leads = None
                    if self.holder is not None and self.holder[0] == process.name:
                        self.holder = None  # it disconnects without a will
                case core.Follow():
                    process.core.step(core.ReadyChanged(self.now, ready=True))
                case _ if process.cut:
                    continue  # words into the void
                case core.Claim(title):
                    leads = process.core.role is Role.LEADING
                    self._publish_state(title, "online" if leads else "starting")
                case core.Beat(title, count):
                    self.retained_beat = (title, count)
                    self._bring(core.BeatSeen(self.now, title, count, retained=False))
                case core.Sign(serial):
                    self._bring(core.SignSeen(self.now, process.name, serial))
                case core.StandbysChanged():
                    pass

    def _dial(self, process: Process) -> None:
        """Take the place when the lease lets it: `orchestrator/lease.py`."""
        title = process.leads
        if title is None or process.cut or self.now < process.dials_at:
            return
        if self.holder == (process.name, title) or not self.holds_lease(process):
            return
        if process.lost_at is not None and (
            process.core.confirmed_at < process.lost_at + CONFIRM_S
        ):
            return
        if self.holder is not None:
            loser, lost = self.holder
            assert lost < title, "a lesser leader never ends a greater one's connection"
            self.holder = None
            before = self.processes[loser]
            before.lost_at = self.now
            before.inbox.append(core.ThrownOut(self.now))
            self._publish_state(lost, "lost")
        self.holder = (process.name, title)
        self._publish_state(title, "online")

    def holds_lease(self, process: Process) -> bool:
        return self.now < process.core.confirmed_at + core.LEASE_S

    # --- what must hold

    def check(self) -> None:
        assert len(set(self.terms)) == len(self.terms), "a term is led under once"
        # Who believes in itself may work on old news; who is believed (has the place) is one.
        acting = [
            process
            for process in self.processes.values()
            if self.holder == (process.name, process.leads)
            and self.holds_lease(process)
            and not process.frozen
        ]
        assert len(acting) <= 1

    def settled(self) -> Process:
        """The one leader, known to everybody who can hear."""
        hearing = [p for p in self.processes.values() if not p.frozen and not p.cut]
        (leader,) = [p for p in hearing if p.core.role is Role.LEADING]
        assert self.holder == (leader.name, leader.leads)
        assert self.holds_lease(leader)
        assert self.retained is not None
        assert self.retained == (leader.leads, "online")
        for process in hearing:
            if process is not leader:
                assert process.core.role is Role.STANDBY
                assert process.core.leader == leader.leads
        return leader


def _at(event: Event, now: float) -> Event:
    """Events carry the time at which they are read."""
    return replace(event, now=now)

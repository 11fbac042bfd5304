"""Which of several orchestrators leads: one process's part in it, as a state machine.

::

    STANDBY --no leader, and our own sign came back--> CLAIMING --our claim came back--> LEADING
       ^                                                  |                                |
       +------- a greater claim; no answer --------------+-- a greater claim; thrown out --+

A leader has a title, (term, name), and of two titles the greater counts. Who would lead claims a term above
all that it has seen, on the retained state. A broker delivers in order, so when the claim has come back all
earlier claims have come, too; two that claim one term see each other's, the lesser name stands by, and the
greater claims the next term, so that nobody leads under a term that another may have used.

Three things end a leader's time for the others: its clean word, its last will, and no beat within `LEASE_S`.
A leader counts its own lease from when it *sent* the latest beat that came back to it, the others theirs
from when one arrived: so it stops to believe in itself before anybody else does, whatever the clocks say, as
long as they run at the same speed. What nobody can rule out in time (a will for a connection that broke
beside a process that lives) the broker does: the leader's two connections have fixed names, and the new
leader's end the old one's.

Whoever was away blames nobody: after a reconnection, or when it was itself stopped for a while, a process
listens for a whole lease first. And before it claims it has its own sign come back: its words then reach the
broker, and those of a leader that lives would have come before.

No lock-out: terms are taken from what the broker has retained, from what was heard, and from what nodes say
they obey; no clock and no disk of ours is involved. Where a broker's memory was wiped and terms begin anew,
nodes that remember a greater one say so in their births, and the leader claims a term above (at most once in
`OUTBID_PAUSE_S`, so that a node that lies cannot keep it from working).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias, assert_never

LEASE_S = 2.0
"""How long a leader is believed in without a beat."""
BEAT_S = 0.5
SIGN_S = 1.0
"""A standby says so that often."""
STANDBY_LEASE_S = 3.0
"""So long it counts as there."""
WILL_S = 0.03
"""How long a last will is held: a broker that stops sends them all, and ends our own connection next."""
TURN_S = 0.2
"""Standbys claim one after the other, by name: the next waits so long for the claim of the one before."""
UNREADY_S = 30.0
"""A standby that has not fetched yet what is served waits so much longer: under it models would be lost that
whoever has them, started anew, goes on with."""
ANSWER_S = 0.5
"""A broker that has not brought back our own word by then did not get it."""
SETTLE_S = 0.3
"""Before a leader claims again because of what a node said: a greater leader would be heard of by then."""
OUTBID_PAUSE_S = 10.0
GAP_S = 0.75
"""Ticks come ten times a second; so long without one, and it was we who stood still."""
LARGEST_TERM = 2**53 - 2
"""Nodes that say they obey more are not believed: it could not be exceeded."""


State: TypeAlias = Literal["starting", "online", "offline", "lost"]
"""What the retained state says of a leader; `starting` is a claim."""


class Role(StrEnum):
    """What this process is."""

    STANDBY = "standby"
    CLAIMING = "claiming"
    LEADING = "leading"


@dataclass(frozen=True, slots=True, order=True)
class Title:
    """A claim to lead; the greater counts. Of an orchestrator that knows no terms: 0 and no name."""

    term: int
    name: str


# --- events; `now` is a monotonic time in seconds in all of them


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection of our own stands; what is retained follows."""

    now: float


@dataclass(frozen=True, slots=True)
class Disconnected:
    """It is gone."""

    now: float


@dataclass(frozen=True, slots=True)
class LeaderSeen:
    """A claim, a birth, a clean end or a last will. `retained`: from the broker's memory."""

    now: float
    title: Title
    state: State
    retained: bool


@dataclass(frozen=True, slots=True)
class BeatSeen:
    """A leader lives, or (retained) lived once."""

    now: float
    title: Title
    count: int
    retained: bool


@dataclass(frozen=True, slots=True)
class SignSeen:
    """A standby lives; our own signs come back, too."""

    now: float
    name: str
    serial: int
    ready: bool = True


@dataclass(frozen=True, slots=True)
class ReadyChanged:
    """Whether we have all that it takes to go on with what is served."""

    now: float
    ready: bool


@dataclass(frozen=True, slots=True)
class CountKnown:
    """The broker once had this count of beats: ours go on above it."""

    now: float
    count: int


@dataclass(frozen=True, slots=True)
class TermSeen:
    """A node obeys nobody below this term."""

    now: float
    term: int


@dataclass(frozen=True, slots=True)
class ThrownOut:
    """Somebody connected under one of the leader's fixed names."""

    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed. `able`: whether what we lead with still works; a leader that hangs must not beat."""

    now: float
    able: bool = True


Event: TypeAlias = (
    Connected
    | Disconnected
    | LeaderSeen
    | BeatSeen
    | SignSeen
    | ReadyChanged
    | CountKnown
    | TermSeen
    | ThrownOut
    | Tick
)


# --- actions


@dataclass(frozen=True, slots=True)
class Sign:
    """Publish that we stand by."""

    serial: int
    ready: bool = True


@dataclass(frozen=True, slots=True)
class Claim:
    """Publish, retained, that we claim this title; of a leader that it has it: another said otherwise."""

    title: Title


@dataclass(frozen=True, slots=True)
class Beat:
    """Publish, retained, that the leader lives."""

    title: Title
    count: int


@dataclass(frozen=True, slots=True)
class Lead:
    """Begin to lead. `before` is the greatest term seen of leaders so far, `beat` the count then."""

    title: Title
    before: int
    beat: int


@dataclass(frozen=True, slots=True)
class Resign:
    """Stop to lead, at once and without a word."""

    why: str


@dataclass(frozen=True, slots=True)
class Follow:
    """Another leads now, for which we stand by."""

    title: Title


@dataclass(frozen=True, slots=True)
class StandbysChanged:
    """Those that are ready to take over from us, by name."""

    names: tuple[str, ...]


Action: TypeAlias = Sign | Claim | Beat | Lead | Resign | Follow | StandbysChanged


@dataclass(slots=True)
class Leadership:
    """See the module. `step` is the only way to change it; `name` is of this process alone."""

    name: str
    role: Role = Role.STANDBY
    title: Title | None = None
    """Ours, as long as we claim or lead."""
    leader: Title | None = None
    """The greatest seen, ours included."""
    _left: Title | None = None
    """The one that has said goodbye."""
    _term: int = 0
    """The greatest heard of, nodes' included."""
    _ready: bool = True
    """Whether we have what is served; where nobody leads there is nothing to have."""
    _connected: bool = False
    _connections: int = 0
    _ticked: float = math.inf
    _open_at: float = math.inf
    """From then on nobody leads, unless somebody is heard of before."""
    _serial: int = 0
    _signed_at: float = -math.inf
    _standbys: dict[str, SignSeen] = field(default_factory=dict)
    """The latest sign of each."""
    _told_standbys: tuple[str, ...] = ()
    _count: int = 0
    _claimed_at: float = -math.inf
    _beat_at: float = -math.inf
    _confirmed_at: float = -math.inf
    _under_way: dict[int, float] = field(default_factory=dict)
    _outbid_from: float = -math.inf

    @property
    def confirmed_at(self) -> float:
        """When the latest of our words that came back was sent; our lease runs from there."""
        return self._confirmed_at if self.role is Role.LEADING else -math.inf

    def step(self, event: Event) -> list[Action]:
        """What to do about `event`, in this order."""
        match event:
            case Connected(now):
                return self._on_connection(now)
            case Disconnected():
                self._connected = False
                return []
            case LeaderSeen():
                return self._on_leader(event)
            case BeatSeen():
                return self._on_beat(event)
            case SignSeen():
                return self._on_sign(event)
            case ReadyChanged(_, ready):
                self._ready = ready
                return []
            case CountKnown(_, count):
                self._count = max(self._count, count)
                return []
            case TermSeen(_, term):
                if term <= LARGEST_TERM:
                    self._term = max(self._term, term)
                return []
            case ThrownOut(now):
                if self.role is not Role.LEADING:
                    return []
                return self._resign("its place was taken by another", now + LEASE_S)
            case Tick():
                return self._on_tick(event)
            case _:
                assert_never(event)

    # --- what is seen

    def _on_connection(self, now: float) -> list[Action]:
        # The first one finds out what there is; a later one may have missed a leader's beats.
        self._open_at = now + LEASE_S if self._connections else now
        self._connected = True
        self._connections += 1
        self._signed_at = self._beat_at = -math.inf
        return []

    def _on_leader(self, seen: LeaderSeen) -> list[Action]:
        if seen.title == self.title:
            return self._own_word(seen)
        if self.title is not None and self.title > seen.title:
            return self._lesser(seen)
        return self._greater(seen.now, seen.title, seen.state, retained=seen.retained)

    def _own_word(self, seen: LeaderSeen) -> list[Action]:
        if self.role is not Role.CLAIMING or self.title is None or seen.state != "starting":
            return []
        self.role = Role.LEADING
        self._confirmed_at = self._claimed_at
        self._beat_at = -math.inf
        self._under_way.clear()
        self._told_standbys = ()
        before = 0 if self.leader is None else self.leader.term
        self.leader = self.title
        return [Lead(self.title, before, self._count)]

    def _lesser(self, seen: LeaderSeen) -> list[Action]:
        """Somebody who does not know of us yet; what the broker has retained must be ours again."""
        assert self.title is not None
        if seen.title.name == self.name:
            return []  # an earlier claim of ours, which the present one follows
        if seen.title.term < self.title.term:
            return [Claim(self.title)]
        resigns: list[Action] = []
        if self.role is Role.LEADING:
            resigns = self._resign(f"{seen.title.name} claimed the same term", seen.now)
        return [*resigns, *self._claim(seen.now)]

    def _greater(
        self,
        now: float,
        title: Title,
        state: State,
        *,
        retained: bool,
    ) -> list[Action]:
        if self.leader is not None and title < self.leader:
            return []  # late words of one that was replaced
        actions: list[Action] = []
        if self.role is not Role.STANDBY:
            why = f"{title.name or 'another'} leads under term {title.term}"
            actions += self._resign(why, math.inf)
        if title != self.leader and state in {"starting", "online"}:
            # What it serves may be new to us, and be it only that we do not know yet.
            self._ready = False
            actions.append(Follow(title))
        self.leader = title
        self._left = title if state == "offline" else None
        self._term = max(self._term, title.term)
        self._open_at = now + self._leaves_open_s(state, retained=retained)
        return actions

    def _leaves_open_s(self, state: State, *, retained: bool) -> float:
        match state:
            case "starting" | "online":
                return LEASE_S
            case "offline":
                return 0.0
            case "lost" if not retained:
                return WILL_S
            case "lost":
                # Found at a reconnection it may be the broker's end that it speaks of, as ours did.
                return 0.0 if self._connections <= 1 else LEASE_S
            case _:
                assert_never(state)

    def _on_beat(self, seen: BeatSeen) -> list[Action]:
        self._count = max(self._count, seen.count)
        if seen.title == self.title:
            sent_at = self._under_way.pop(seen.count, None)
            if sent_at is not None:
                self._confirmed_at = max(self._confirmed_at, sent_at)
            return []
        if seen.title == self._left:
            return []  # it beats until its process has ended
        if seen.retained or (self.title is not None and self.title > seen.title):
            return []
        return self._greater(seen.now, seen.title, "online", retained=False)

    def _on_sign(self, seen: SignSeen) -> list[Action]:
        if seen.name != self.name:
            self._standbys[seen.name] = seen
            return []
        is_open = self._signed_at > self._free_at(seen.now)
        if self.role is Role.STANDBY and seen.serial == self._serial and is_open:
            return self._claim(seen.now)
        return []

    # --- what follows in time

    def _on_tick(self, tick: Tick) -> list[Action]:
        now = tick.now
        if now - self._ticked > GAP_S and self._open_at < math.inf:
            self._open_at = max(self._open_at, now + LEASE_S)
        self._ticked = now
        self._standbys = {
            name: seen for name, seen in self._standbys.items() if now - seen.now <= STANDBY_LEASE_S
        }
        match self.role:
            case Role.STANDBY:
                return self._stand_by(now)
            case Role.CLAIMING:
                if now - self._claimed_at <= ANSWER_S:
                    return []
                self.role, self.title = Role.STANDBY, None
                self._open_at = now + SETTLE_S
                return []
            case Role.LEADING:
                return self._go_on(tick)
            case _:
                assert_never(self.role)

    def _stand_by(self, now: float) -> list[Action]:
        if not self._connected:
            return []
        free_at = self._free_at(now)
        asked = self._signed_at > free_at
        due = SIGN_S if now < free_at else ANSWER_S if asked else 0.0
        if now - self._signed_at < due:
            return []
        self._serial += 1
        self._signed_at = now
        return [Sign(self._serial, self._ready and self.leader is not None)]

    def _go_on(self, tick: Tick) -> list[Action]:
        now, title = tick.now, self.title
        assert title is not None
        if self._term > title.term and now >= self._outbid_from:
            self._outbid_from = now + OUTBID_PAUSE_S
            return self._resign(f"nodes obey term {self._term}", now + SETTLE_S)
        actions: list[Action] = []
        names = tuple(sorted(seen.name for seen in self._standbys.values() if seen.ready))
        if names != self._told_standbys:
            self._told_standbys = names
            actions.append(StandbysChanged(names))
        if self._connected and tick.able and now - self._beat_at >= BEAT_S:
            self._beat_at = now
            self._count += 1
            # Those that did not come back within a lease prove nothing any more.
            self._under_way = {n: at for n, at in self._under_way.items() if now - at < LEASE_S}
            self._under_way[self._count] = now
            actions.append(Beat(title, self._count))
        return actions

    def _free_at(self, now: float) -> float:
        """When it is our turn to claim: after those that are ready, then those of greater names."""
        rank = sum(
            (seen.ready, seen.name) > (self._ready, self.name)
            for seen in self._standbys.values()
            if now - seen.now <= STANDBY_LEASE_S
        )
        return self._open_at + TURN_S * rank + (0.0 if self._ready else UNREADY_S)

    def _claim(self, now: float) -> list[Action]:
        self._term += 1
        self.role, self.title = Role.CLAIMING, Title(self._term, self.name)
        self._claimed_at = now
        return [Claim(self.title)]

    def _resign(self, why: str, open_at: float) -> list[Action]:
        """Give up what we have or were about to have; a life that had begun ends."""
        led = self.role is Role.LEADING
        self.role, self.title = Role.STANDBY, None
        self._open_at = open_at
        return [Resign(why)] if led else []

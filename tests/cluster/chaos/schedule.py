"""Which faults come when: drawn from a seed, the same every time."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """What can be broken."""

    AGENT_KILL = "agent-kill"
    AGENT_FREEZE = "agent-freeze"
    AGENT_CUT = "agent-cut"
    AGENT_RATE = "agent-rate"
    AGENT_DELAY = "agent-delay"
    AGENT_SLOW = "agent-slow"
    DISK_FULL = "disk-full"
    MEMORY_FULL = "memory-full"
    BROKER_RESTART = "broker-restart"
    BROKER_KILL = "broker-kill"
    LEADER_KILL = "leader-kill"
    LEADER_FREEZE = "leader-freeze"
    LEADER_CUT = "leader-cut"
    ORCHESTRATORS_KILL = "orchestrators-kill"
    """The leader and its standby at once."""


HOLDS_S: dict[FaultKind, tuple[float, float]] = {
    FaultKind.AGENT_KILL: (0.5, 6),
    FaultKind.AGENT_FREEZE: (0.5, 8),
    FaultKind.AGENT_CUT: (1, 10),
    FaultKind.AGENT_RATE: (4, 10),
    FaultKind.AGENT_DELAY: (4, 10),
    FaultKind.AGENT_SLOW: (4, 10),
    FaultKind.DISK_FULL: (4, 8),
    FaultKind.MEMORY_FULL: (0.5, 4),
    FaultKind.BROKER_RESTART: (0, 0),
    FaultKind.BROKER_KILL: (0.1, 3),
    FaultKind.LEADER_KILL: (0.1, 4),
    FaultKind.LEADER_FREEZE: (0.5, 8),
    FaultKind.LEADER_CUT: (1, 8),
    FaultKind.ORCHESTRATORS_KILL: (0.1, 4),
}
"""How long each may last."""

_CENTRAL = {
    FaultKind.BROKER_RESTART: "broker",
    FaultKind.BROKER_KILL: "broker",
    FaultKind.LEADER_KILL: "leader",
    FaultKind.LEADER_FREEZE: "leader",
    FaultKind.LEADER_CUT: "leader",
    FaultKind.ORCHESTRATORS_KILL: "leader",
}
_PAUSE_S = (2.0, 6.0)
_TOGETHER_RATIO = 0.25


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what, whose, for how long."""

    kind: FaultKind
    victim: str
    hold_s: float

    def __str__(self) -> str:
        return f"{self.kind} {self.victim} {self.hold_s:.1f} s"


@dataclass(frozen=True, slots=True)
class Step:
    """Faults that begin together, `pause_s` after the cluster got over those before."""

    pause_s: float
    faults: tuple[Fault, ...]


def draw(seed: int, kinds: Sequence[FaultKind], agents: Sequence[str], far: str) -> Iterator[Step]:
    """Steps without end. In every round each kind has its turn; now and then two come together.

    Never are all agents struck at once, nor one twice.

    Args:
        seed: of everything.
        kinds: those that may come.
        agents: whom they may strike; three or more, or nothing comes together.
        far: the agent behind the relay, the only one whose packets can be delayed.
    """
    dice = random.Random(seed)
    while True:
        turn = dice.sample(list(kinds), len(kinds))
        while turn:
            first = _fault(dice, turn.pop(), agents, far)
            faults = [first]
            if turn and len(agents) > 2 and dice.random() < _TOGETHER_RATIO:
                second = _fault(dice, turn[-1], agents, far)
                if second.victim != first.victim:
                    turn.pop()
                    faults.append(second)
            yield Step(dice.uniform(*_PAUSE_S), tuple(faults))


def each_once(
    seed: int, kinds: Sequence[FaultKind], agents: Sequence[str], far: str
) -> Iterator[Step]:
    """Every kind once, alone and as short as it gets."""
    dice = random.Random(seed)
    for kind in dice.sample(list(kinds), len(kinds)):
        fault = _fault(dice, kind, agents, far)
        yield Step(0.5, (Fault(kind, fault.victim, HOLDS_S[kind][0]),))


def _fault(dice: random.Random, kind: FaultKind, agents: Sequence[str], far: str) -> Fault:
    victim = _CENTRAL.get(kind) or dice.choice(agents)
    if kind is FaultKind.AGENT_DELAY:
        victim = far
    return Fault(kind, victim, dice.uniform(*HOLDS_S[kind]))

"""Last wills that may tell of the broker's end and not of the node's.

A broker that stops sends the will of every client, and keeps them retained. So what looks like the death of
all nodes at once is none when our own connection breaks in the same moment, or was made only just now: the
nodes connect again as we do, and say so. Without this every restart of a broker would be a re-plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from shared.messages.node import NodeState

LIVE_S = 0.03
"""How long a will is held that comes in the midst of a connection: a broker that stops closes ours next."""
GRACE_S = 4.0
"""How long after a reconnection the nodes have to come back, too: their back-off is 1.5 s at most, as ours
is, and a first packet that was lost is sent again after a second."""


@dataclass(slots=True)
class Doubts:
    """Wills that are not believed yet, by node. No clock: `now` is the caller's, in seconds."""

    _held: dict[str, tuple[float, NodeState]] = field(default_factory=dict)
    _fresh_until: float = -math.inf
    _connections: int = 0

    def connected(self, now: float) -> None:
        """A connection was made."""
        self._connections += 1
        if self._connections > 1:
            self._fresh_until = now + GRACE_S
            self._hold_all(self._fresh_until)

    def lost(self, now: float, state: NodeState, *, retained: bool) -> None:
        """A will came in: from the broker's memory, or just sent."""
        until = max(self._fresh_until, now) if retained else now + LIVE_S
        self._held[state.node] = (until, state)

    def born(self, state: NodeState) -> None:
        """A node says that it lives."""
        held = self._held.get(state.node)
        if held is not None and state.incarnation >= held[1].incarnation:
            del self._held[state.node]

    def believed(self, now: float, *, connected: bool) -> list[NodeState]:
        """The deaths that are none of the broker's, each once. To be asked several times a second."""
        if not connected:
            self._hold_all(math.inf)
            return []
        due = [state for until, state in self._held.values() if until <= now]
        for state in due:
            del self._held[state.node]
        return due

    def settled(self, now: float, *, connected: bool) -> bool:
        """Whether a node's silence says something about the node."""
        return connected and now >= self._fresh_until

    def _hold_all(self, until: float) -> None:
        self._held = {node: (until, state) for node, (_, state) in self._held.items()}

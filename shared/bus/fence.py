"""Who may connect under a client id that several processes share in turn.

A broker ends the connection before when another is made with the same id. With one process that is a repair;
where two want the id, and both connect again by themselves, they throw each other out for ever. So a bus may
be given a fence: it asks before it dials, and says when it was thrown out.
"""

from __future__ import annotations

from typing import Final, Protocol

SESSION_TAKEN_OVER: Final = 0x8E
"""MQTT 5, 3.14.2.1: another connection uses this client id now."""
ASK_AGAIN_S: Final = 0.05
"""How long a bus waits for a fence that is closed before it asks again."""


class Fence(Protocol):
    """May be called from any thread, and must not block."""

    def may_connect(self, lost_at: float | None) -> bool:
        """Whether to dial now; the connection before ended at `lost_at` (monotonic), None: there was none."""

    def taken_over(self) -> None:
        """Another client connected under our id; the bus will ask before it does so again."""

"""How fast blobs may come while something more urgent uses the same link and the same CPU.

The asker sets the pace: it asks for a piece only when the ones before have had their time. While nothing
else is going on there is no limit. Pure: the time is the caller's, in seconds of a monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.messages.artifact import PIECE_BYTES

LEAST_PIECE_BYTES = 16 * 1024
PIECE_S = 0.05
"""How long a piece may occupy what it has of the link: an activation behind it waits for so long."""


@dataclass(slots=True)
class Pacer:
    """All fetches of a process together come at the rate that was given last."""

    _free_at: float = 0.0

    @staticmethod
    def piece_bytes(bytes_per_s: float | None) -> int:
        """How much to ask for at once."""
        if bytes_per_s is None:
            return PIECE_BYTES
        whole = int(bytes_per_s * PIECE_S) // LEAST_PIECE_BYTES * LEAST_PIECE_BYTES
        return min(max(whole, LEAST_PIECE_BYTES), PIECE_BYTES)

    def pause_s(self, now: float, moved_bytes: int, bytes_per_s: float | None) -> float:
        """How long to wait after `moved_bytes` have come before more is asked for."""
        if bytes_per_s is None:
            self._free_at = now
            return 0.0
        self._free_at = max(self._free_at, now) + moved_bytes / bytes_per_s
        return self._free_at - now

"""Watches what the stages do, so that blobs make way for them (`edge_agent/core/blob_pace.py`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from edge_agent.core.blob_pace import allowed_bytes_per_s
from edge_agent.core.links import counts
from edge_agent.link_probe import LinkProbe
from edge_agent.stage_thread import Traffic

_SAMPLE_S = 0.5


class BlobPace:
    """What a node's transfers go by; `run` is to be a task of its own.

    Args:
        traffic: what the stage thread has done so far.
        link: what was measured of the link where traffic does not show it.
        cpus: that the node may use.
    """

    def __init__(
        self, traffic: Callable[[], Traffic], link: Callable[[], LinkProbe], cpus: float
    ) -> None:
        self._traffic = traffic
        self._link = link
        self._cpus = cpus
        self._allowed: float | None = None

    def link_bytes_per_s(self) -> float | None:
        """The link to this node; None until it is known."""
        return counts(self._traffic().rates.down, self._link().down.rate, time.monotonic())

    def allowed_bytes_per_s(self) -> float | None:
        """What blobs may have now; None: all."""
        return self._allowed

    async def run(self) -> None:
        """Look twice a second, for ever."""
        at, before = time.monotonic(), self._traffic()
        items, received = before.items, before.bytes_received
        while True:
            await asyncio.sleep(_SAMPLE_S)
            traffic, now = self._traffic(), time.monotonic()
            self._allowed = allowed_bytes_per_s(
                items=traffic.items - items + traffic.queue,
                received_bytes_per_s=(traffic.bytes_received - received) / (now - at),
                link_bytes_per_s=self.link_bytes_per_s(),
                cpus=self._cpus,
            )
            at, items, received = now, traffic.items, traffic.bytes_received

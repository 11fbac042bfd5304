"""The small probe of the link to the broker: a payload left there as a retained message, and fetched back.

That tells the two directions apart: the broker acknowledges the publication before anybody has asked for
it, and delivers it when we subscribe. Nobody else needs to take part. It expires by itself, should we die.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable

from edge_agent.core.links import Estimate, Round, Transfer, is_fresh
from shared.bus import ControlBus, Message
from shared.bus.message import Properties
from shared.errors import BrokerError
from shared.link_rates import Rates
from shared.logs import get_log
from shared.topics import Topics

log = get_log(__name__)

INTERVAL_S = 300.0
"""Between two rounds: at most 1.7 MB, both ways together, so 6 KB/s."""
AGAIN_S = 10.0
"""After a round that surprises, and where there was no need of one."""
_QUIET_S = 0.5
_QUIET_BYTES = 16 * 1024
_ROUND_S = 20.0
_EXPIRY_S = 30
_ROUND_TRIPS = 5
_HEARTBEAT_S = 0.001


class LinkProbe:
    """Measures while nothing else moves; `take` gets the probes that come back.

    Args:
        node: whose link it is.
        control: the connection to measure.
        topics: the table.
        moved_bytes: all that the agent has sent and received so far: while it grows nothing is measured.
        shown: what traffic has shown of the link: while that is fresh in both directions none is probed.
    """

    def __init__(
        self,
        node: str,
        *,
        control: ControlBus,
        topics: Topics,
        moved_bytes: Callable[[], int],
        shown: Callable[[], Rates],
    ) -> None:
        self.up = Estimate()
        self.down = Estimate()
        self._control = control
        self._topic = topics.topic("artifact_probe", peer=node)
        self._moved_bytes = moved_bytes
        self._shown = shown
        self._payload = b""
        self._arrived: asyncio.Future[float] | None = None

    async def run(self) -> None:
        """A round soon after the start, and then now and again; for ever."""
        while True:
            await self._quiet()
            if not self._needed():
                await asyncio.sleep(AGAIN_S)
                continue
            surprised = True
            try:
                async with asyncio.timeout(_ROUND_S):
                    surprised = await self._round()
            except (TimeoutError, BrokerError) as error:
                log.info("link not measured", error=str(error) or "it took too long")
            await asyncio.sleep(AGAIN_S if surprised else INTERVAL_S)

    def take(self, message: Message) -> None:
        """A probe has come back."""
        arrived = self._arrived
        if arrived is not None and not arrived.done() and message.payload == self._payload:
            arrived.set_result(time.perf_counter())

    def _needed(self) -> bool:
        shown, now = self._shown(), time.monotonic()
        return not (is_fresh(shown.up, now) and is_fresh(shown.down, now))

    async def _quiet(self) -> None:
        """Wait until nothing moves: a probe would be slowed down by it, and slow it down."""
        moved = self._moved_bytes()
        while True:
            await asyncio.sleep(_QUIET_S)
            before, moved = moved, self._moved_bytes()
            if self._control.connected and moved - before < _QUIET_BYTES:
                return

    async def _round(self) -> bool:
        """Measure both directions once; whether the result surprises."""
        done = Round()
        trips = [await self._control.round_trip() for _ in range(_ROUND_TRIPS)]
        while (size := done.next_bytes()) is not None:
            # Random, so that nothing on the way can make it smaller.
            self._payload = os.urandom(size)
            done.take(
                await self._timed(self._send, size, min(trips)),
                await self._timed(self._fetch, size, min(trips)),
            )
            await self._control.unsubscribe(self._topic)
        await self._control.publish(self._topic, b"", retain=True)
        now = time.monotonic()
        surprised = [self.up.take(done.up(), now), self.down.take(done.down(), now)]
        (log.info if any(surprised) else log.debug)(
            "link to the broker measured",
            up_bytes_per_s=self.up.bytes_per_s,
            down_bytes_per_s=self.down.bytes_per_s,
        )
        return any(surprised)

    async def _timed(
        self, move: Callable[[], Awaitable[float]], size_bytes: int, round_trip_s: float
    ) -> Transfer:
        """One transfer, with a watch on how long our own process stood still meanwhile."""
        standstill_s = 0.0

        async def watch() -> None:
            nonlocal standstill_s
            while True:
                before = time.perf_counter()
                await asyncio.sleep(_HEARTBEAT_S)
                late_s = time.perf_counter() - before - 2 * _HEARTBEAT_S
                standstill_s = max(standstill_s, late_s)

        watching = asyncio.create_task(watch(), name="link probe: watch")
        try:
            began = time.perf_counter()
            ended = await move()
        finally:
            watching.cancel()
        return Transfer(size_bytes, ended - began, round_trip_s, standstill_s)

    async def _send(self) -> float:
        expiry = Properties(expiry_s=_EXPIRY_S)
        await self._control.publish(self._topic, self._payload, retain=True, properties=expiry)
        return time.perf_counter()

    async def _fetch(self) -> float:
        self._arrived = asyncio.get_running_loop().create_future()
        await self._control.subscribe(self._topic)
        return await self._arrived

"""How the node does, told once per interval: the reporter behind the telemetry topic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from edge_agent.core.links import counts
from edge_agent.link_probe import LinkProbe
from edge_agent.probe import Probe
from edge_agent.stage_thread import StageThread
from shared.bus import ControlBus
from shared.codec import encode_json
from shared.errors import BrokerError
from shared.logs import get_log
from shared.messages.node import Telemetry
from shared.sentences import worded
from shared.topics import Topics
from shared.transfer import Transfers

log = get_log(__name__)
_TRIP_S = 10.0
"""So often the round trip is measured: it takes CPU as well, and changes slowly."""


class Reporter:
    """Gathers one sample per interval and publishes it at QoS 0: a lost one is history.

    Args:
        node: whose telemetry it is.
        incarnation: of this life.
        interval_s: between two samples.
        control: where it goes out, and what the round trip is measured on.
        topics: the table.
        probe: measures the device.
        stage_thread: counts items, times and traffic.
        transfers: counts the traffic of blobs.
        link: measures the bandwidth where the stage thread's traffic does not show it.
        disk_free_bytes: what is left where blobs are kept; None where the disk does not say.
    """

    def __init__(
        self,
        node: str,
        incarnation: int,
        interval_s: float,
        *,
        control: ControlBus,
        topics: Topics,
        probe: Probe,
        stage_thread: StageThread,
        transfers: Transfers,
        link: LinkProbe,
        disk_free_bytes: Callable[[], int | None],
    ) -> None:
        self._node = node
        self._incarnation = incarnation
        self._interval_s = interval_s
        self._control = control
        self._topic = topics.topic("telemetry", node=node)
        self._probe = probe
        self._stage_thread = stage_thread
        self._transfers = transfers
        self._link = link
        self._disk_free_bytes = disk_free_bytes
        self._began = time.monotonic()

    async def run(self) -> None:
        """Publish for ever; while there is no connection nothing is measured for nobody."""
        due = trip_due = time.monotonic()
        trip_s: float | None = None
        while True:
            due = max(due + self._interval_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            if not self._control.connected:
                continue
            if trip_s is None or time.monotonic() >= trip_due:
                trip_s, trip_due = await self._round_trip(), time.monotonic() + _TRIP_S
            payload = encode_json(worded(self._sample(trip_s)))
            try:
                await self._control.publish(self._topic, payload, qos=0, timeout_s=self._interval_s)
            except BrokerError as error:
                log.debug("telemetry not sent", error=error)

    async def _round_trip(self) -> float | None:
        try:
            async with asyncio.timeout(self._interval_s):
                return await self._control.round_trip()
        except (TimeoutError, BrokerError):
            return None

    def _sample(self, round_trip_s: float | None) -> Telemetry:
        usage = self._probe.sample()
        traffic, moved = self._stage_thread.traffic, self._transfers.counters
        rates, link, now = traffic.rates, self._link, time.monotonic()
        return Telemetry(
            node=self._node,
            incarnation=self._incarnation,
            uptime_s=round(time.monotonic() - self._began, 1),
            cpu_percent=round(usage.cpu_percent, 1),
            memory_used_bytes=usage.memory_used_bytes,
            memory_limit_bytes=usage.memory_limit_bytes,
            # The agent's own payloads, not the machine's interfaces: several agents may share those.
            network_received_bytes=traffic.bytes_received + moved.bytes_received,
            network_sent_bytes=traffic.bytes_sent + moved.bytes_sent,
            round_trip_s=None if round_trip_s is None else round(round_trip_s, 6),
            queue=traffic.queue,
            stability=round(usage.stability, 4),
            stages=self._stage_thread.take_telemetry(),
            up_bytes_per_s=_rounded(counts(rates.up, link.up.rate, now)),
            down_bytes_per_s=_rounded(counts(rates.down, link.down.rate, now)),
            memory_available_bytes=usage.memory_available_bytes,
            cpu_others_ratio=_rounded(usage.cpu_others_ratio, 3),
            disk_free_bytes=self._disk_free_bytes(),
            temperature_c=_rounded(usage.temperature_c, 1),
            sent_at_ms=time.time_ns() // 1_000_000,
        )


def _rounded(value: float | None, digits: int = 0) -> float | None:
    return None if value is None else round(value, digits)

"""An agent that has nothing to do: CPU and resident memory before a runtime is loaded.

One agent of a cluster that serves nothing, calibrated and born: it answers the broker's keep-alive and sends
telemetry at 1 Hz. Its CPU clock is read once a second. Beside it a process that has imported the same
libraries of others, and sleeps: the floor for an agent written in Python.
"""

from __future__ import annotations

import asyncio
import time

from deploy.peer import Peer
from tests.benchmarks.clusters import calibrated
from tests.benchmarks.context import Context
from tests.benchmarks.processes import cpu_s, resident_bytes
from tests.benchmarks.report import Bar, Row

_CPU = "process CPU clock over each second"
_MEMORY = "resident pages once a second"
_SETTLE_S = 3.0


async def run(context: Context) -> list[Row]:
    """See the module."""
    seconds = context.choose(5, 25)
    percent: list[float] = []
    megabytes: list[float] = []
    async with (
        calibrated(context, "idle", agents=1, cpus=None) as cluster,
        await Peer.start("tests.benchmarks.idle_floor") as floor,
    ):
        await asyncio.sleep(_SETTLE_S)  # the calibration's child has just ended
        context.say(f"idle: {seconds} s of nothing")
        (agent,) = cluster.agents.values()
        used_s, at = cpu_s(agent.pid), time.monotonic()
        for _ in range(seconds):
            await asyncio.sleep(1.0)
            now_s, now = cpu_s(agent.pid), time.monotonic()
            percent.append(100.0 * (now_s - used_s) / (now - at))
            used_s, at = now_s, now
            megabytes.append(resident_bytes(agent.pid) / 1e6)
        least = resident_bytes(floor.pid) / 1e6
    return [
        Row.of(
            "idle", "CPU of an agent without work", "% of a core", percent, method=_CPU,
            against="1 Hz of telemetry is its work", bar=Bar(1.0),
        ),
        Row.of(
            "idle", "resident memory, no runtime loaded", "MB", megabytes, method=_MEMORY,
            against=f"Python with the same libraries: {least:.1f} MB",
            bar=Bar(60.0, of="largest"),
        ),
    ]  # fmt: skip

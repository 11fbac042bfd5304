"""Three times what a cluster can do, for a minute: what becomes of jobs, memory, and a polite client.

Three agents run MobileNetV2 in three stages. First as many jobs are kept under way as the pipeline takes,
which is what it can do; then stock clients fill the queue at once and go on with three times that, open loop,
whatever is refused; beside them one client of ours asks for one job a second. Every job is followed to its
answer.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np

from deploy.local import LocalCluster
from orchestrator.core.dispatch_settings import DispatchSettings, default_window
from shared.client import Client
from shared.errors import ErrorCode, JobError
from shared.topics import Topics
from tests.benchmarks.clusters import MODEL, THREE_STAGES, calibrated, serve
from tests.benchmarks.context import Context
from tests.benchmarks.flood import Fate, Flood
from tests.benchmarks.load import Saturation
from tests.benchmarks.overload_drawing import draw
from tests.benchmarks.payloads import jpeg_input
from tests.benchmarks.processes import cpu_s, resident_bytes
from tests.benchmarks.report import Bar, Row
from tests.benchmarks.stats import summarise

_SHARES = (0.3, 0.2, 0.1)
"""Of CPU. Small, so that the floods and the broker have a core and a half for themselves."""
_FLOODS = 3
_TIMES = 3.0
_POLITE_S = 1.0
_SAMPLE_S = 0.5
_MIB = 1 << 20
_METHOD = f"{_FLOODS} clients, {_TIMES:g} x the saturated rate in all, open loop, JPEG of 47 KB"


@dataclass(slots=True)
class Watched:
    """Samples over time: seconds since the start, MiB by process."""

    at: list[float] = field(default_factory=list)
    mib: dict[str, list[float]] = field(default_factory=dict)

    def slope_per_minute(self, name: str) -> float:
        """MiB per minute over the second half: a line through the samples."""
        half = len(self.at) // 2
        return float(np.polyfit(self.at[half:], self.mib[name][half:], 1)[0]) * 60.0


async def run(context: Context) -> list[Row]:
    """See the module."""
    seconds = context.seconds or context.choose(12.0, 60.0)
    payload = jpeg_input()
    async with (
        calibrated(context, "overload", cpus=_SHARES) as cluster,
        cluster.client() as client,
    ):
        await serve(context, cluster, THREE_STAGES)
        async with Saturation(client, MODEL, payload, 2 * default_window(len(_SHARES))) as load:
            await load.warm_up(40)
            saturated = await load.measure(context.choose(8.0, 20.0))
        context.say(f"overload: {saturated.per_s:.1f} jobs/s saturated")
        overloaded = _Overload(cluster, client, payload, _TIMES * saturated.per_s, seconds)
        await overloaded.run(context)
        again = None
        async with Saturation(client, MODEL, payload, 2 * default_window(len(_SHARES))) as load:
            await load.warm_up(40)
            again = await load.measure(context.choose(8.0, 20.0))
    if context.draw is not None:
        await asyncio.to_thread(
            draw, overloaded.rates(), saturated.per_s, overloaded.watched, overloaded.latencies(),
            context.draw,
        )  # fmt: skip
    # The machine is not the same before and after: what it can do is what it did around.
    return overloaded.rows((saturated.per_s + again.per_s) / 2.0)


class _Overload:
    """One stretch of it."""

    def __init__(
        self, cluster: LocalCluster, client: Client, payload: bytes, rate: float, seconds: float
    ) -> None:
        self.watched = Watched()
        self._cluster = cluster
        self._client = client
        self._payload = payload
        self._rate = rate
        self._seconds = seconds
        self._polite_s: list[float] = []
        self._polite_failed: list[JobError] = []
        self._began = 0.0
        self._cpu_s = 0.0
        self._offered = 0
        settings = DispatchSettings()
        most = min(settings.max_queued_items, settings.max_queued_bytes // len(payload))
        self._bound_items = most + default_window(len(_SHARES))
        url = cluster.url
        self._floods = [
            Flood(
                url, Topics(cluster.root), MODEL, payload, self._bound_items // _FLOODS + 1,
                rate / _FLOODS, seconds, patience_s=10.0 + 4.0 * self._bound_items / (rate / _TIMES),
            )
            for _ in range(_FLOODS)
        ]  # fmt: skip

    async def run(self, context: Context) -> None:
        """Flood, watch, and wait for the last answer."""
        context.say(f"overload: {self._rate:.0f} jobs/s for {self._seconds:g} s")
        assert self._cluster.orchestrator is not None
        pid = self._cluster.orchestrator.pid
        for flood in self._floods:
            flood.start()
        for flood in self._floods:
            await asyncio.to_thread(flood.began.wait)
        sent = len(self._fates())
        before_s, self._began = cpu_s(pid), time.monotonic()
        watching = asyncio.create_task(self._watch(), name="memory")
        polite = asyncio.create_task(self._ask_politely(), name="polite")
        await asyncio.sleep(self._seconds)
        self._cpu_s, self._offered = cpu_s(pid) - before_s, len(self._fates()) - sent
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        context.say("overload: waiting for the last answers")
        for flood in self._floods:
            await asyncio.to_thread(flood.join)
        await polite

    async def _watch(self) -> None:
        cluster = self._cluster
        assert cluster.orchestrator is not None
        pids = {"orchestrator": cluster.orchestrator.pid, "broker": cluster.broker.pid}
        pids |= {name: agent.pid for name, agent in cluster.agents.items()}
        while True:
            self.watched.at.append(time.monotonic() - self._began)
            for name, pid in pids.items():
                self.watched.mib.setdefault(name, []).append(resident_bytes(pid) / _MIB)
            await asyncio.sleep(_SAMPLE_S)

    async def _ask_politely(self) -> None:
        while (began := time.monotonic()) < self._began + self._seconds:
            try:
                await self._client.infer(MODEL, self._payload, timeout_s=60.0)
            except JobError as error:
                self._polite_failed.append(error)
            now = time.monotonic()
            self._polite_s.append(now - began)
            await asyncio.sleep(max(0.0, began + _POLITE_S - now))

    def _fates(self) -> list[Fate]:
        return [fate for flood in self._floods for fate in flood.fates.values()]

    def latencies(self) -> list[tuple[float, float]]:
        """(when it was sent, seconds to its result) of each accepted job."""
        return [
            (fate.sent_at - self._began, fate.latency_s)
            for flood in self._floods
            for fate in flood.answered()
        ]

    def rates(self) -> list[float]:
        """Results in each second of the flood, all clients together."""
        seconds = [0.0] * int(self._seconds)
        for fate in self._fates():
            if fate.answers and not fate.code and fate.answered_at is not None:
                second = int(fate.answered_at - self._began)
                if second < len(seconds):
                    seconds[second] += 1.0
        for second in range(len(seconds)):
            seconds[second] += 1.0 if second < len(self._polite_s) else 0.0
        return seconds

    def rows(self, saturated_per_s: float) -> list[Row]:
        """What is to be read."""
        fates, rates = self._fates(), self.rates()
        refused = [fate for fate in fates if fate.code]
        proper = [f for f in refused if f.code == ErrorCode.OVERLOADED and f.retry_after_s]
        lost = [fate for fate in fates if not fate.answers]
        settled = rates[2:]  # the first jobs are still on their way
        per_s = sum(settled) / len(settled)
        latencies = [latency for _, latency in self.latencies()]
        bound_s = self._bound_items / per_s

        def row(figure: str, unit: str, values: list[float], **more: object) -> Row:
            return Row.of("overload", figure, unit, values, method=_METHOD, **more)  # type: ignore[arg-type]

        refusal_ms = [fate.latency_s * 1e3 for fate in refused]
        rows = [
            row(
                "throughput against saturated", "x", [per_s / saturated_per_s],
                against=f"{per_s:.1f} of {saturated_per_s:.1f} jobs/s", bar=Bar(0.95, sense="at least"),
            ),
            row("jobs without an answer", "jobs", [float(len(lost))],
                against=f"{len(fates)} sent", bar=Bar(0.0, "largest")),
            row("jobs with more than one answer", "jobs",
                [float(sum(fate.answers > 1 for fate in fates))], bar=Bar(0.0, "largest")),
            row("refused otherwise than overloaded with a hint", "jobs",
                [float(len(refused) - len(proper))],
                against=f"{len(refused)} refused", bar=Bar(0.0, "largest")),
            row("latency of accepted jobs", "s", latencies,
                against=f"p99 {np.percentile(latencies, 99):.1f} s; a full queue is {bound_s:.1f} s",
                bar=Bar(1.25 * bound_s, "largest")),
            row("latency of the polite client", "s", self._polite_s,
                against=f"{len(self._polite_failed)} of {len(self._polite_s)} failed; "
                f"a window's worth is {default_window(len(_SHARES)) / per_s:.2f} s"),
            row("orchestrator's CPU per job offered", "ms", [self._cpu_s / self._offered * 1e3],
                against=f"{self._cpu_s / self._seconds:.0%} of a core", bar=Bar(1.0)),
        ]  # fmt: skip
        if refusal_ms:
            rows.append(row("time to a refusal", "ms", refusal_ms))
        for name, samples in self.watched.mib.items():
            slope = self.watched.slope_per_minute(name)
            peak = summarise(samples).largest
            rows.append(
                row(f"memory of {name}", "MiB per minute", [slope], against=f"peak {peak:.0f} MiB")
            )
        return rows

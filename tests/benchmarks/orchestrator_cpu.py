"""CPU of the orchestrator's process per job, at saturation, and when there are none.

Three agents run a model that computes next to nothing in three stages, a client keeps more jobs under way
than their pipeline takes: the orchestrator is as busy as it gets. Its process CPU clock is read after each
batch of answers. The jobs are a tensor of 602 KB and a photograph of 47 KB, in turn.
"""

from __future__ import annotations

import asyncio

from tests.benchmarks.clusters import calibrated
from tests.benchmarks.context import Context
from tests.benchmarks.load import Saturation
from tests.benchmarks.payloads import jpeg_input, tensor_input
from tests.benchmarks.processes import cpu_s
from tests.benchmarks.report import Bar, Row
from tests.benchmarks.tiny_model import NAME, serve_tiny

_METHOD = "orchestrator's process CPU over a batch / its jobs; 3 stages of a tiny model, 12 jobs under way"
_WINDOW = 12
_STAGES = 3


async def run(context: Context) -> list[Row]:
    """See the module."""
    batches, jobs = context.choose(3, 20), context.choose(40, 100)
    payloads = {"a tensor of 602 KB": tensor_input(), "a JPEG of 47 KB": jpeg_input()}
    used_ms: dict[str, list[float]] = {kind: [] for kind in payloads}
    per_s: dict[str, list[float]] = {kind: [] for kind in payloads}
    async with (
        calibrated(context, "orchestrator", cpus=None) as cluster,
        cluster.client() as client,
    ):
        assert cluster.orchestrator is not None
        pid = cluster.orchestrator.pid
        await serve_tiny(context.say, cluster, _STAGES)
        idle_percent = await _idle(pid, context.choose(3, 10))
        for kind, payload in payloads.items():
            context.say(f"orchestrator: {batches} batches of {jobs} jobs, {kind}")
            async with Saturation(client, NAME, payload, _WINDOW) as load:
                await load.warm_up(jobs)
                for _ in range(batches):
                    before = cpu_s(pid)
                    interval = await load.measure_jobs(jobs)
                    used_ms[kind].append((cpu_s(pid) - before) / jobs * 1e3)
                    per_s[kind].append(interval.per_s)
    rows = [
        Row.of(
            "orchestrator", f"CPU per job, {kind}", "ms", used_ms[kind], method=_METHOD,
            against=f"at {sum(per_s[kind]) / batches:.0f} jobs/s", bar=Bar(1.0),
        )
        for kind in payloads
    ]  # fmt: skip
    idle = Row.of(
        "orchestrator", "CPU without jobs, 3 nodes", "% of a core", idle_percent,
        method="process CPU clock over each second",
    )  # fmt: skip
    return [*rows, idle]


async def _idle(pid: int, seconds: int) -> list[float]:
    percent = []
    for _ in range(seconds):
        before = cpu_s(pid)
        await asyncio.sleep(1.0)
        percent.append(100.0 * (cpu_s(pid) - before))
    return percent

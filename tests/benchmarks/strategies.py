"""What each way of planning promises and what it gives, on one cluster: agents at 0.5, 0.3 and 0.2 CPU.

MobileNetV2, torch, JPEGs. The strategies are served in turn, each warmed up until measured stage times have
corrected the prediction, then asked with as many jobs under way as the dispatcher lets into its pipelines
(throughput) and with one (latency). Each figure stands beside what was predicted for the plan in force just
before, and beside what had been predicted when it was first served. `optimal` comes twice: free, and with the
three stages that the paper's rules make.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from deploy.local import LocalCluster
from orchestrator.core.dispatch_settings import default_window
from orchestrator.core.plan import Strategy
from shared.client import Client
from shared.messages.model import ModelState
from tests.benchmarks.clusters import CHOSEN_FREELY, MODEL, THREE_STAGES, calibrated, serve
from tests.benchmarks.context import Context
from tests.benchmarks.load import Interval, Saturation
from tests.benchmarks.report import Row
from tests.benchmarks.whole_model import INPUTS

_METHOD = "a window's worth of jobs under way, answers counted by the client"
_ALONE = "one job under way; predicted are the stages' seconds of the pipelines that answered, links left out"
_JPEG = INPUTS["jpeg"][0]
_ASKED = {
    **{str(strategy): replace(CHOSEN_FREELY, strategy=str(strategy)) for strategy in Strategy},
    "optimal, three stages": THREE_STAGES,
}
_ORDER = ("equal", "ralos", "single", "replicate", "optimal, three stages", "optimal")


@dataclass(frozen=True, slots=True)
class _Ran:
    """One strategy: its plan when it was served, the one in force later, and what was measured."""

    first: ModelState
    state: ModelState
    busy: list[Interval]
    alone: Interval


async def run(context: Context) -> list[Row]:
    """See the module."""
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(calibrated(context, "strategies"))
        client = await stack.enter_async_context(cluster.client())
        for name in _ORDER:
            context.say(f"strategies: {name}")
            await serve(context, cluster, _ASKED[name])
            rows += _rows(name, await _measure(context, cluster, client))
    return rows


async def _measure(context: Context, cluster: LocalCluster, client: Client) -> _Ran:
    first = await cluster.wait_for_model(MODEL)
    seconds = context.choose(3.0, 6.0)
    async with _load(client, _window(first)) as load:
        await load.measure(context.choose(3.0, 15.0))
    state = await cluster.wait_for_model(MODEL)
    async with _load(client, _window(state)) as load:
        await load.warm_up(3 * _window(state))
        busy = [await load.measure(seconds) for _ in range(context.choose(2, 5))]
    async with _load(client, 1) as load:
        await load.warm_up(5)
        alone = await load.measure_jobs(context.choose(20, 100))
    return _Ran(first, state, busy, alone)


def _load(client: Client, window: int) -> Saturation:
    return Saturation(client, MODEL, _JPEG(), window)


def _window(state: ModelState) -> int:
    return sum(default_window(len(pipeline.stages)) for pipeline in state.pipelines)


def _rows(name: str, ran: _Ran) -> list[Row]:
    cuts = " + ".join(
        " > ".join(f"{stage.node} {stage.blocks[0]}:{stage.blocks[1]}" for stage in pipeline.stages)
        for pipeline in ran.state.pipelines
    )
    told, first = ran.state.predicted.throughput_per_s, ran.first.predicted.throughput_per_s
    assert told is not None
    assert first is not None
    throughput = Row.of(
        "strategies", f"{name}: throughput", "images/s", [each.per_s for each in ran.busy],
        method=_METHOD,
    )  # fmt: skip
    latency = Row.of("strategies", f"{name}: latency", "ms", ran.alone.latency_ms(), method=_ALONE)
    answered = Counter(each.result.pipeline for each in ran.alone.answered)
    alone = [_alone_ms(state, answered) for state in (ran.state, ran.first)]
    return [
        replace(throughput, against=f"{_against(throughput, told, first)}; {cuts}"),
        replace(latency, against=_against(latency, *alone)),
    ]


def _alone_ms(state: ModelState, answered: Counter[str]) -> float:
    """Milliseconds that a state predicts for a job, by how often each pipeline answered."""
    seconds = {
        pipeline.pipeline: sum(stage.predicted_s for stage in pipeline.stages)
        for pipeline in state.pipelines
    }
    known = {pipeline: count for pipeline, count in answered.items() if pipeline in seconds}
    return 1e3 * sum(seconds[p] * n for p, n in known.items()) / max(sum(known.values()), 1)


def _against(row: Row, told: float, first: float) -> str:
    """Predicted, measured over predicted, and what was predicted before anything was measured."""
    ratio = f"{row.values.median / told:.2f} x" if told else "no pipeline in common"
    return f"predicted {told:.1f}: {ratio} (when served {first:.1f})"

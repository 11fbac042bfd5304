"""Three agents at 0.5, 0.3 and 0.2 CPU against the same runtime's whole model at 1.0 CPU in one process.

MobileNetV2, torch, O1, one thread. Pipeline and whole model run in turn, stretch by stretch, so that both see
the same machine; their inputs (a float32 tensor in msgpack, and a JPEG) are read by the same code. One client
keeps as many jobs under way as the dispatcher lets into its pipelines. First with three stages, as asked for,
then with whatever the planner chooses freely.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from typing import get_args

from deploy.cgroup import limit_cpu
from deploy.local import LocalCluster
from deploy.peer import Peer
from orchestrator.core.dispatch_settings import default_window
from shared.client import Client
from shared.messages.model import ModelState, PipelineRow
from tests.benchmarks.breakdown import Alone, Stretch, breakdown
from tests.benchmarks.clusters import (
    CHOSEN_FREELY,
    MODEL,
    THREE_STAGES,
    calibrated,
    serve,
)
from tests.benchmarks.context import Context
from tests.benchmarks.load import Saturation, describe
from tests.benchmarks.report import Bar, Row
from tests.benchmarks.usage import read_usage
from tests.benchmarks.watch import Watch, watching
from tests.benchmarks.whole_model import INPUTS, Ask, Kind, Ran

_METHOD = (
    "a window's worth of jobs under way, answers counted by the client; in turn with the whole"
)
_WHOLE = "a stage's code with all blocks, 1 process at 1.0 CPU (cgroup), 1 thread"
_AIM = 0.85
_HAND_MADE = "hand-made pipelines 0.70-0.76 (FACTS.md)"


async def run(context: Context) -> list[Row]:
    """See the module."""
    rows: list[Row] = []
    # A cluster per input: measured stage times correct the plan, and the plan that suits tensors has too
    # little room for reading images.
    for kind in get_args(Kind):
        async with AsyncExitStack() as stack:
            cluster = await stack.enter_async_context(calibrated(context, f"throughput-{kind}"))
            watch = await stack.enter_async_context(watching(cluster))
            client = await stack.enter_async_context(cluster.client())
            await serve(context, cluster, THREE_STAGES)
            # After serving, which has imported the model: the child finds it in the same cache.
            context.say("throughput: loading the whole model")
            limit = limit_cpu(f"amp4ec-bench-whole-{os.getpid()}", 1.0)
            whole = await stack.enter_async_context(
                await Peer.start("tests.benchmarks.whole_model", limit=limit)
            )
            bench = _Bench(context, cluster, watch, client, whole)
            rows += await bench.plan("three stages", kind, context.choose(2, 5), stages=True)
            await serve(context, cluster, CHOSEN_FREELY)
            rows += await bench.plan("free plan", kind, context.choose(1, 3), stages=False)
    return rows


class _Bench:
    """One run's cluster and what it is compared with."""

    def __init__(
        self, context: Context, cluster: LocalCluster, watch: Watch, client: Client, whole: Peer
    ) -> None:
        self._context = context
        self._cluster = cluster
        self._watch = watch
        self._client = client
        self._whole = whole
        self._seconds = context.choose(3.0, 6.0)
        self._window = 1

    async def plan(self, name: str, kind: Kind, rounds: int, *, stages: bool) -> list[Row]:
        """The figures of the plan in force, with one kind of input."""
        state = await self._cluster.wait_for_model(MODEL)
        self._window = sum(default_window(len(pipeline.stages)) for pipeline in state.pipelines)
        await self._settle(kind)
        whole: list[Ran] = []
        stretches: list[Stretch] = []
        for index in range(rounds):
            self._context.say(f"throughput: {name}, {kind}, {index + 1} of {rounds}")
            whole.append(await self._whole.ask(Ask(kind, self._seconds), Ran))
            stretches.append(await self._stretch(kind))
        state = await self._cluster.wait_for_model(MODEL)
        rows = self._rows(f"{name}, {kind}", whole, stretches, state)
        if stages:
            alone = await self._alone(kind, state)
            rows += breakdown(kind, state, stretches, whole, alone)
        return rows

    async def _settle(self, kind: Kind) -> None:
        """Some load before what counts: measured stage times may have the orchestrator cut anew."""
        self._context.say(f"throughput: warming up, {kind}")
        async with self._saturation(kind) as load:
            await load.measure(self._context.choose(2.0, 12.0))

    async def _stretch(self, kind: Kind) -> Stretch:
        async with self._saturation(kind) as load:
            await load.warm_up(3 * self._window)
            before = read_usage(self._cluster)
            interval = await load.measure(self._seconds)
            after = read_usage(self._cluster)
        telemetry = [
            (node, stage) for at, node, stage in self._watch.stages if before.at < at <= after.at
        ]
        return Stretch(interval, after.since(before), telemetry)

    def _saturation(self, kind: Kind) -> Saturation:
        return Saturation(self._client, MODEL, INPUTS[kind][0](), self._window)

    async def _alone(self, kind: Kind, state: ModelState) -> Alone:
        """CPU milliseconds per item of the runtime alone, by the blocks of each stage."""
        self._context.say(f"throughput: each stage's blocks alone, {kind}")
        found: Alone = {}
        for pipeline in state.pipelines:
            for stage in pipeline.stages:
                ask = Ask(kind, self._context.choose(0.5, 2.0), stage.blocks)
                found[stage.blocks] = (await self._whole.ask(ask, Ran)).cpu_ms
        return found

    def _rows(
        self, label: str, whole: list[Ran], stretches: list[Stretch], state: ModelState
    ) -> list[Row]:
        pairs = list(zip(stretches, whole, strict=True))
        pipeline_ms = [ms for each in stretches for ms in each.interval.latency_ms()]
        whole_ms = [ms for each in whole for ms in each.latency_ms]
        generations = {
            answer.result.generation for each in stretches for answer in each.interval.answered
        }
        cuts = "; ".join(_cuts(pipeline) for pipeline in state.pipelines)
        switched = f"; generations {sorted(generations)}" if len(generations) > 1 else ""
        against = Row.of(
            "throughput", f"whole model, {label}", "images/s", [each.per_s for each in whole],
            method=_WHOLE, against=describe(whole_ms, digits=1),
        )  # fmt: skip
        return [
            Row.of(
                "throughput", f"agents, {label}", "images/s",
                [each.interval.per_s for each in stretches], method=_METHOD,
                against=f"plan: {cuts}{switched}",
            ),
            against,
            Row.of(
                "throughput", f"agents / whole, {label}", "x",
                [each.interval.per_s / ran.per_s for each, ran in pairs], method=_METHOD,
                against=f"whole: {against.values.median:.1f}/s; {_HAND_MADE}",
                bar=Bar(_AIM, sense="at least"),
            ),
            Row.of(
                "throughput", f"latency, {label}, {self._window} under way", "ms", pipeline_ms,
                method=_METHOD, against=f"whole, 1 under way: {describe(whole_ms, digits=1)}",
            ),
        ]  # fmt: skip


def _cuts(pipeline: PipelineRow) -> str:
    return " | ".join(
        f"{stage.node} {stage.blocks[0]}:{stage.blocks[1]}" for stage in pipeline.stages
    )

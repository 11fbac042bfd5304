"""How far predicted stage times are from measured ones: models, ways to cut, CPU quotas, two runtimes.

Agents under cgroup quotas serve each model in several stages and then as a whole copy on each; a client sends
photographs, a window's worth at a time, until every stage was measured with 50 jobs. What is compared are
the orchestrator's own figures, as published in the model's state: a stage's seconds by the node's calibration
alone (first sight), those expected after what was measured, and the measured ones (CPU at the share, or wall
where that is longer). A neighbour that keeps an agent from its share is part of that, and no calibration can
know it. So first sight is compared with the CPU seconds at the share as well, from the agents' telemetry.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from deploy.operator import connect, new_transaction
from orchestrator.core.dispatch_settings import default_window
from shared.client import Client
from shared.messages.model import ModelState, StageRow
from shared.messages.operation import StopRequest
from tests.benchmarks.clusters import calibrated
from tests.benchmarks.context import Context
from tests.benchmarks.load import Saturation
from tests.benchmarks.payloads import jpeg_input
from tests.benchmarks.report import Bar, Row
from tests.benchmarks.watch import Watch, watching

MODELS = (
    "mobilenet_v2",
    "resnet18",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "googlenet",
    "densenet121",
)
JOBS = 50
_FIRST_SIGHT, _NOW = 0.30, 0.15
_MEASURE_S = 60.0
_STOP_S = 30.0
_POLL_S = 0.5
_METHOD = (
    "|predicted - measured| / measured of a stage, by the orchestrator's own figures; photographs"
)


@dataclass(frozen=True, slots=True)
class _Setting:
    """A cluster, and how models are served on it."""

    runtime: str
    cpus: tuple[float, ...]

    def ways(self) -> dict[str, ServeFlags]:
        """In as many stages as there are agents, and a whole copy on each."""
        flags = ServeFlags(weights="none", runtime=self.runtime, timeout_s=300.0)
        count = len(self.cpus)
        return {
            f"{count} stages": replace(flags, min_stages=count, max_stages=count),
            "whole": replace(flags, strategy="replicate"),
        }


SETTINGS = (_Setting("torch", (0.5, 0.3, 0.2)), _Setting("onnxruntime", (0.7, 0.3)))


@dataclass(frozen=True, slots=True)
class _Stage:
    """One stage as it was measured."""

    runtime: str
    cpu: float
    model: str
    way: str
    row: StageRow
    cpu_s: float
    """CPU seconds of an item at the node's share."""

    def cpu_error(self) -> float:
        """How far first sight is from the CPU seconds, as `error`."""
        assert self.row.first_sight_s is not None
        return (self.row.first_sight_s - self.cpu_s) / self.cpu_s

    def error(self, predicted_s: float | None) -> float:
        """How far `predicted_s` is from what was measured, with its sign, as a ratio."""
        measured_s = self.row.measured_s
        assert predicted_s is not None
        assert measured_s is not None
        return (predicted_s - measured_s) / measured_s


async def run(context: Context) -> list[Row]:
    """See the module."""
    models = MODELS[:2] if context.quick else MODELS
    stages: list[_Stage] = []
    for setting in SETTINGS[:1] if context.quick else SETTINGS:
        name = f"prediction-{setting.runtime}"
        async with (
            calibrated(context, name, cpus=setting.cpus, agents=len(setting.cpus)) as cluster,
            cluster.client() as client,
            watching(cluster) as watch,
        ):
            for model in models:
                for way, flags in setting.ways().items():
                    context.say(f"prediction: {model}, {setting.runtime}, {way}")
                    state = await _measure(cluster, client, model, flags)
                    found = _stages(setting, model, way, state, watch)
                    for stage in found:
                        context.say(_line(stage))
                    stages += found
    return _rows(stages)


async def _measure(
    cluster: LocalCluster, client: Client, model: str, flags: ServeFlags
) -> ModelState:
    """The model's state once each stage was measured with `JOBS` jobs, or the time ran out."""
    await cluster.serve(model, flags)
    state = await cluster.wait_for_model(model)
    window = sum(default_window(len(pipeline.stages)) for pipeline in state.pipelines)
    stages = sum(len(pipeline.stages) for pipeline in state.pipelines)
    deadline = asyncio.get_running_loop().time() + _MEASURE_S
    async with Saturation(client, model, jpeg_input(), window) as load:
        await load.warm_up(1)
        while asyncio.get_running_loop().time() < deadline:
            await load.measure(_POLL_S)
            status = await client.status(wait_s=0.0)
            state = status.model(model) or state
            error = state.prediction_error
            if error is not None and error.stages == stages and error.items >= JOBS:
                break
    await _stop(cluster, model)
    return state


async def _stop(cluster: LocalCluster, model: str) -> None:
    """Have a model no longer served, so that the next has the nodes to itself."""
    request = StopRequest(transaction=new_transaction(), model=model)
    async with connect(cluster.url, cluster.root) as operator:
        await operator.ask(request, _STOP_S, lambda _: None)


def _stages(
    setting: _Setting, model: str, way: str, state: ModelState, watch: Watch
) -> list[_Stage]:
    shares = {f"agent-{number}": cpu for number, cpu in enumerate(setting.cpus, start=1)}
    return [
        _Stage(
            runtime=setting.runtime,
            cpu=shares[row.node],
            model=model,
            way=way,
            row=row,
            cpu_s=_cpu_s(watch, state, pipeline.pipeline, row) / shares[row.node],
        )
        for pipeline in state.pipelines
        for row in pipeline.stages
        if row.measured_s is not None
    ]


def _cpu_s(watch: Watch, state: ModelState, pipeline: str, row: StageRow) -> float:
    """Median CPU seconds of an item over the seconds in which the stage did something."""
    wanted = (row.node, state.model, pipeline, state.generation, row.stage)
    return statistics.median(
        stage.cpu_s
        for _, node, stage in watch.stages
        if (node, stage.model, stage.pipeline, stage.generation, stage.stage) == wanted
        and stage.items > 0
    )


def _line(stage: _Stage) -> str:
    row = stage.row
    assert row.measured_s is not None
    assert row.first_sight_s is not None
    assert row.expected_s is not None
    return (
        f"{stage.runtime:<12}{stage.model:<20}{stage.way:<10}{stage.cpu:<5}"
        f"[{row.blocks[0]:>2},{row.blocks[1]:>3})  measured {row.measured_s * 1e3:7.1f} ms, first sight "
        f"{row.first_sight_s * 1e3:7.1f} ({stage.error(row.first_sight_s):+4.0%}, of CPU "
        f"{stage.cpu_error():+4.0%}), now "
        f"{row.expected_s * 1e3:7.1f} ({stage.error(row.expected_s):+4.0%})"
    )


def _rows(stages: Sequence[_Stage]) -> list[Row]:
    rows = []
    for model in dict.fromkeys(stage.model for stage in stages):
        rows += _pair(model, [stage for stage in stages if stage.model == model])
    for cpu in sorted({stage.cpu for stage in stages}):
        rows += _pair(f"at {cpu} CPU", [stage for stage in stages if stage.cpu == cpu])
    for runtime in dict.fromkeys(stage.runtime for stage in stages):
        rows += _pair(runtime, [stage for stage in stages if stage.runtime == runtime])
    return rows + _pair("all", stages, bars=True)


def _pair(what: str, stages: Sequence[_Stage], *, bars: bool = False) -> list[Row]:
    """The mean absolute error at first sight and after the jobs; the spread is over the stages."""
    found = []
    for label, limit, errors in (
        ("first sight", _FIRST_SIGHT, [abs(s.error(s.row.first_sight_s)) for s in stages]),
        ("first sight, CPU", _FIRST_SIGHT, [abs(s.cpu_error()) for s in stages]),
        (f"after {JOBS} jobs", _NOW, [abs(s.error(s.row.expected_s)) for s in stages]),
    ):
        found.append(
            Row.of(
                "prediction", f"{what}, {label}", "ratio", errors, method=_METHOD,
                against=f"mean {statistics.fmean(errors):.3f}",
                bar=Bar(limit, of="mean") if bars else None,
            )
        )  # fmt: skip
    return found

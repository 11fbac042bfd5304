"""What planning a job and watching a device cost: CPU of the scheduler's decisions, and of idle agents."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial

from deploy.experiments.case import Case, Experiment, Lab, Measured, Settings
from deploy.experiments.site import MODEL, SERVE_S, START_S, flags, site
from deploy.experiments.watch import watching
from orchestrator.core.dispatch import Dispatcher
from orchestrator.core.dispatch_events import (
    Dispatch,
    InputItem,
    ModelServed,
    Output,
    PipelineActivated,
    RequestArrived,
    ResultArrived,
)

_DECIDING_S = 3.0
_WATCHING_S = 60.0
"""At least, whatever was asked for: the kernel counts CPU in hundredths of a second."""


# --- scheduling overhead


def _overhead(settings: Settings) -> Sequence[Case]:
    del settings
    return [
        Case(
            name=f"{count} node{'s' if count > 1 else ''}",
            seconds=_DECIDING_S + 1.0,
            measure=partial(_schedule, count),
            parameters={"nodes": count},
        )
        for count in (1, 2, 3, 4, 8, 16, 32, 64)
    ]


async def _schedule(count: int, lab: Lab) -> Measured:
    return await asyncio.to_thread(decide, count, min(lab.settings.seconds, _DECIDING_S))


def decide(nodes: int, seconds: float) -> Measured:
    """CPU of the dispatcher's own decisions per job, from arrival to answer, with a copy on each node."""
    machine = Dispatcher()
    machine.step(ModelServed(0.0, "m"))
    for index in range(nodes):
        machine.step(
            PipelineActivated(
                now=0.0, model="m", pipeline=f"p{index}", generation=1, num_stages=1,
                throughput_per_s=10.0 + index, latency_s=0.1,
            )
        )  # fmt: skip
    under_way: list[Dispatch] = []
    jobs, now = 0, 0.0
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        now += 0.01
        jobs += 1
        actions = machine.step(
            RequestArrived(
                now=now, request_id=f"r{jobs}", model="m", reply_to="result/x",
                items=(InputItem(None, 1000),), handle=None,
            )
        )  # fmt: skip
        under_way += [action for action in actions if isinstance(action, Dispatch)]
        if len(under_way) > 2 * nodes:
            sent = under_way.pop(0)
            machine.step(
                ResultArrived(
                    now=now, request_id=sent.request_id, item_index=0, attempt=1,
                    pipeline=sent.pipeline, generation=1, outcome=Output(None),
                )
            )  # fmt: skip
    spent_s = time.thread_time() - began
    return Measured(figures={"decision_ms": 1e3 * spent_s / jobs, "jobs": float(jobs)})


OVERHEAD = Experiment(
    name="table-2-overhead",
    title="Scheduling overhead against the number of nodes",
    text="The dispatcher's state machine alone, in one process, with a copy of the model on each node: what "
    "a decision costs. What the orchestrator spends on a job in all, messages included, is in Table I.",
    cases=_overhead,
    figures={"decision_ms": "CPU milliseconds per job, from its arrival to its answer."},
    draw="decision_ms",
)


# --- monitoring

_UNWATCHED = ("--telemetry-interval", "1h")


def _monitoring(settings: Settings) -> Sequence[Case]:
    watched_s = SERVE_S + settings.warm_up_s + max(settings.seconds, _WATCHING_S)
    return [
        Case(
            name="three idle devices",
            seconds=START_S + 2 * watched_s,
            measure=_idle,
            parameters={"model": MODEL, "beside": " ".join(_UNWATCHED)},
        )
    ]


async def _idle(lab: Lab) -> Measured:
    cores, percent = await _idle_percent(lab, ())
    _, without = await _idle_percent(lab, _UNWATCHED)
    telemetry = {name: percent[name] - without[name] for name in percent}
    return Measured(
        figures={
            "telemetry_cpu_percent": max(telemetry.values()),
            "worst_cpu_percent": max(percent.values()),
            "mean_cpu_percent": sum(percent.values()) / len(percent),
            "orchestrator_cpu_percent": 100.0 * cores,
        },
        notes={
            "by node": ", ".join(
                f"{name} {percent[name]:.2f} %, {telemetry[name]:.2f} % of it telemetry"
                for name in percent
            )
        },
    )


async def _idle_percent(lab: Lab, agent_arguments: Sequence[str]) -> tuple[float, dict[str, float]]:
    """What the orchestrator uses, in cores, and each node, in percent of its CPU."""
    async with site(lab, agent_arguments=agent_arguments) as here:
        await here.serve(MODEL, flags(runtime="onnxruntime"))
        async with here.load(MODEL, 2) as load:
            await load.stretch(lab.settings.warm_up_s)
        parts = here.parts()
        async with watching(parts) as watch:
            await asyncio.sleep(max(lab.settings.seconds, _WATCHING_S))
        return watch.cpu_s("orchestrator") / watch.seconds, {
            name: 100.0 * watch.cpu_s(name) / watch.seconds / parts[name].cpus
            for name in here.agents
        }


MONITORING = Experiment(
    name="monitoring",
    title="What monitoring costs",
    text="MobileNetV2 is served and nobody asks: what the agents use then is telemetry once a second, and "
    "their connections. The same again with telemetry once an hour; what is left then is the connections. "
    "In percent of the CPU that each device may use.",
    cases=_monitoring,
    figures={
        "telemetry_cpu_percent": "Telemetry alone: the difference, of the device where it is most.",
        "worst_cpu_percent": "All that an idle device uses, where it is most.",
        "mean_cpu_percent": "The same, the mean of the devices.",
        "orchestrator_cpu_percent": "The orchestrator's, of one core.",
    },
)

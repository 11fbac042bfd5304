"""The paper's Table II and what belongs to it: profiles, adaptability, partitions, overhead, monitoring."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from deploy.experiments.baseline import PAPER, STRICT, Whole, timed
from deploy.experiments.baseline import case as whole_case
from deploy.experiments.case import Case, Experiment, Lab, Measured, Settings
from deploy.experiments.site import (
    FRESH_S,
    MODEL,
    PROFILE,
    START_S,
    flags,
    measure,
    memory_bytes,
    notes,
    site,
)
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
from orchestrator.core.paper_rules import capabilities, leaf_counts, shares
from shared.profile import NodeProfile

NAMES = {1.0: "High", 0.6: "Medium", 0.4: "Low"}
CLUSTERS = {2: PROFILE[:2], 3: PROFILE, 4: (*PROFILE, 0.6)}
"""The paper's scale-down, standard and scale-up, as `deploy/profiles` has them."""
REQUESTS = {2: 50, 3: 100, 4: 150}


# --- the three profiles


def _profiles(settings: Settings) -> Sequence[Case]:
    seconds = FRESH_S + 1.2 * (settings.warm_up_s + settings.seconds)
    eager = Whole(name="eager PyTorch", batch=1)
    cases = []
    for share, name in NAMES.items():
        cases += [
            Case(
                name=f"{name}, AMP4EC on this device",
                seconds=seconds,
                measure=partial(_profile, share),
                parameters={"cpus": share},
            ),
            *(
                replace(
                    timed(whole_case(whole, MODEL, (share,)), settings),
                    name=f"{name}, {whole.name}",
                    parameters={"cpus": share},
                )
                for whole in (eager, STRICT["onnxruntime"])
            ),
        ]
    return cases


async def _profile(share: float, lab: Lab) -> Measured:
    async with site(lab, (share,)) as here:
        await here.serve(MODEL, flags())
        return await measure(here, MODEL)


PROFILES = Experiment(
    name="table-2-profiles",
    title="Table II: one device of each profile",
    text="One image at a time on a device of 1.0, 0.6 or 0.4 CPU (scaled). Process and thread are one; "
    "memory limits are set by containers only.",
    cases=_profiles,
    figures={
        "latency_ms": "Milliseconds from sending an image to its answer, one under way; median.",
        "latency_p95_ms": "The same, 95th percentile.",
        "throughput_per_s": "Images per second, saturated.",
        "memory_mb": "Largest resident memory of the device's process.",
    },
    draw="latency_ms",
)


# --- adaptability


def _adaptability(settings: Settings) -> Sequence[Case]:
    cases = []
    for count, shares_ in CLUSTERS.items():
        for whole in (PAPER, STRICT["onnxruntime"]):
            made = timed(whole_case(whole, MODEL, shares_), settings)
            cases.append(replace(made, name=f"{whole.name}, CPU of {count} nodes"))
        cases += [
            Case(
                name=f"{count} nodes, {requests} requests at once",
                seconds=START_S + settings.warm_up_s + settings.seconds,
                measure=partial(_burst, count, requests),
                parameters={"nodes": count, "requests": requests},
            )
            for requests in sorted(REQUESTS.values())
        ]
    return cases


async def _burst(count: int, requests: int, lab: Lab) -> Measured:
    settings = lab.settings
    async with site(lab, CLUSTERS[count]) as here:
        state = await here.serve(MODEL, flags())
        async with here.load(MODEL, 1, here.window(state)) as load:
            await load.stretch(settings.warm_up_s)
        took: list[float] = []
        latencies: list[float] = []
        until = time.monotonic() + settings.seconds
        while time.monotonic() < until or not took:
            began = time.monotonic()
            jobs = [
                here.client.infer(MODEL, image, timeout_s=120.0) for image in here.pool(requests)
            ]
            results = await asyncio.gather(*jobs)
            took.append(time.monotonic() - began)
            latencies += [result.latency_s for result in results]
        state = await here.cluster.wait_for_model(MODEL)
    burst_s = sum(took) / len(took)
    return Measured(
        figures={
            "burst_s": burst_s,
            "throughput_per_s": requests / burst_s,
            "mean_latency_ms": 1e3 * sum(latencies) / len(latencies),
            "bursts": float(len(took)),
        },
        notes=notes(state),
    )


ADAPTABILITY = Experiment(
    name="table-2-adaptability",
    title="Adaptability: 2, 3 and 4 nodes; 50, 100 and 150 requests at once",
    text="The paper's scale-down, standard and scale-up clusters. All requests of a burst are sent at once, "
    "and the next burst when the last is answered.",
    cases=_adaptability,
    figures={
        "burst_s": "Seconds from the first sending to the last answer; mean of the bursts.",
        "throughput_per_s": "Images per second within a burst; of one process, all the time.",
        "mean_latency_ms": "Mean milliseconds from an image's receipt to its answer, queueing included.",
    },
    draw="throughput_per_s",
)


# --- partition sizes


def _partitions(settings: Settings) -> Sequence[Case]:
    del settings
    return [
        Case(
            name=f"{rule}, {count} parts",
            seconds=3.0,
            measure=partial(_partition, rule, count),
            parameters={"rule": rule, "parts": count},
        )
        for rule in ("equal", "ralos")
        for count in CLUSTERS
    ]


async def _partition(rule: str, count: int, lab: Lab) -> Measured:
    del lab
    costs = await asyncio.to_thread(_leaf_costs)
    wanted = [1.0 / count] * count
    if rule == "ralos":
        wanted = shares(capabilities([_node(cpus) for cpus in CLUSTERS[count]]))
    counts = leaf_counts(costs, wanted)
    begins = [sum(counts[:index]) for index in range(len(counts) + 1)]
    work = [sum(costs[a:b]) / sum(costs) for a, b in itertools.pairwise(begins)]
    return Measured(
        figures={
            "leaves": float(len(costs)),
            "largest_share_percent": 100.0 * max(work),
            "ideal_share_percent": 100.0 * max(wanted),
        },
        notes={
            "leaves": str(counts),
            "share of the cost": ", ".join(f"{each:.1%}" for each in work),
        },
    )


def _leaf_costs() -> list[int]:
    from deploy.library import ModelLibrary
    from orchestrator.models.source import parse_source

    library = ModelLibrary()
    try:
        source = parse_source(MODEL, weights="none", inputs=(), name=None)
        prepared = library.prepare(source, lambda _: None)
        return [leaf.cost for leaf in prepared.package.profile("torch").leaves]
    finally:
        library.close()


def _node(cpus: float) -> NodeProfile:
    """A device of the paper's; its links and speed do not count for these rules."""
    return NodeProfile(
        name="node", cpu=cpus, speed=1.0, memory_bytes=memory_bytes(cpus), up_bytes_per_s=1e9,
        down_bytes_per_s=1e9, message_s=0.0,
    )  # fmt: skip


PARTITIONS = Experiment(
    name="table-2-partitions",
    title="Partition sizes by the paper's rules",
    text="MobileNetV2's 141 leaf modules, cut by the paper's cost; nothing is run. What that cost leaves out "
    "(it charges depthwise convolutions too much) is in `amp4ec profile` and in ALGORITHMS.md.",
    cases=_partitions,
    figures={
        "leaves": "Leaf modules in all.",
        "largest_share_percent": "The largest part's share of the paper's cost.",
        "ideal_share_percent": "What the rule wanted that part to have at most.",
    },
)


# --- scheduling overhead


def _overhead(settings: Settings) -> Sequence[Case]:
    del settings
    return [
        Case(
            name=f"{count} nodes",
            seconds=8.0,
            measure=partial(_schedule, count),
            parameters={"nodes": count},
        )
        for count in (1, 2, 3, 4, 8, 16, 32, 64)
    ]


async def _schedule(count: int, lab: Lab) -> Measured:
    return await asyncio.to_thread(decide, count, min(lab.settings.seconds, 5.0))


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


def _monitoring(settings: Settings) -> Sequence[Case]:
    return [
        Case(
            name="three idle devices",
            seconds=FRESH_S + settings.warm_up_s + settings.seconds,
            measure=_idle,
            parameters={"model": MODEL},
        )
    ]


async def _idle(lab: Lab) -> Measured:
    async with site(lab) as here:
        await here.serve(MODEL, flags())
        async with here.load(MODEL, 1, 2) as load:
            await load.stretch(lab.settings.warm_up_s)
        parts = here.parts()
        async with watching(parts) as watch:
            await asyncio.sleep(lab.settings.seconds)
        percent = {
            name: 100.0 * watch.cpu_s(name) / watch.seconds / parts[name].cpus
            for name in here.agents
        }
        return Measured(
            figures={
                "worst_cpu_percent": max(percent.values()),
                "mean_cpu_percent": sum(percent.values()) / len(percent),
                "orchestrator_cpu_percent": 100.0 * watch.cpu_s("orchestrator") / watch.seconds,
            },
            notes={"by node": ", ".join(f"{n} {p:.2f} %" for n, p in percent.items())},
        )


MONITORING = Experiment(
    name="monitoring",
    title="What monitoring costs",
    text="MobileNetV2 is served and nobody asks: what the agents use then is telemetry once a second, and "
    "their connections. In percent of the CPU that each device may use.",
    cases=_monitoring,
    figures={
        "worst_cpu_percent": "The device where it is most.",
        "mean_cpu_percent": "The mean of the devices.",
        "orchestrator_cpu_percent": "The orchestrator's, of one core.",
    },
)

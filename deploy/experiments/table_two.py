"""What belongs to the paper's Table II: clusters of 2, 3 and 4 devices, and the sizes of their partitions."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from functools import partial

from deploy.experiments.baseline import PAPER, STRICT, baseline
from deploy.experiments.case import Case, Experiment, Lab, Measured, Settings
from deploy.experiments.site import (
    MODEL,
    PROFILE,
    SERVE_S,
    START_S,
    flags,
    memory_bytes,
    notes,
    site,
)
from orchestrator.core.paper_rules import capabilities, leaf_counts, shares
from shared.profile import NodeProfile

CLUSTERS = {2: PROFILE[:2], 3: PROFILE, 4: (*PROFILE, 0.6)}
"""The paper's scale-down, standard and scale-up, as `deploy/profiles` has them."""
REQUESTS = (50, 100, 150)


# --- adaptability


def _adaptability(settings: Settings) -> Sequence[Case]:
    return [
        Case(
            name=f"{count} nodes",
            seconds=START_S + SERVE_S + settings.warm_up_s + settings.seconds,
            measure=partial(_bursts, count),
            parameters={"nodes": count},
            paper=baseline(
                PAPER, settings, shares=shares_, shown=f"{PAPER.name}, CPU of {count} nodes"
            ),
            strict=baseline(
                STRICT["onnxruntime"],
                settings,
                shares=shares_,
                shown=f"{STRICT['onnxruntime'].name}, CPU of {count} nodes",
            ),
        )
        for count, shares_ in CLUSTERS.items()
    ]


async def _bursts(count: int, lab: Lab) -> Measured:
    settings = lab.settings
    took: dict[int, list[float]] = {requests: [] for requests in REQUESTS}
    latencies: list[float] = []
    async with site(lab, CLUSTERS[count]) as here:
        state = await here.serve(MODEL, flags(runtime="onnxruntime"))
        async with here.load(MODEL, here.window(state)) as load:
            await load.stretch(settings.warm_up_s)
        began = time.monotonic()
        # In turn, so that what changes over the minute changes all three alike.
        for requests in itertools.cycle(REQUESTS):
            sent = time.monotonic()
            if sent > began + settings.seconds and all(took.values()):
                break
            jobs = [
                here.client.infer(MODEL, image, timeout_s=120.0) for image in here.pool(requests)
            ]
            results = await asyncio.gather(*jobs)
            took[requests].append(time.monotonic() - sent)
            latencies += [result.latency_s for result in results]
        state = await here.cluster.wait_for_model(MODEL)
    mean_s = {requests: sum(each) / len(each) for requests, each in took.items()}
    return Measured(
        figures={
            **{f"burst_{requests}_s": seconds for requests, seconds in mean_s.items()},
            "throughput_per_s": sum(REQUESTS) / sum(mean_s.values()),
            "mean_latency_ms": 1e3 * sum(latencies) / len(latencies),
            "bursts": float(sum(map(len, took.values()))),
        },
        notes=notes(state),
    )


ADAPTABILITY = Experiment(
    name="table-2-adaptability",
    title="Adaptability: 2, 3 and 4 nodes; 50, 100 and 150 requests at once",
    text="The paper's scale-down, standard and scale-up clusters. All requests of a burst are sent at once, "
    "and the next burst, of another size, when the last is answered. One process has the CPU of as many "
    "nodes.",
    cases=_adaptability,
    figures={
        "throughput_per_s": "Images per second within the bursts; of one process, all the time.",
        **{
            f"burst_{requests}_s": f"Seconds from the first sending of {requests} requests to the last "
            "answer; mean of the bursts."
            for requests in REQUESTS
        },
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
            seconds=1.0,
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

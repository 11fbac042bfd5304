"""The paper's Table I: one process against the cluster, without and with its cache, at batches of 32.

Beside it what else the same question can be asked of: other runtimes, int8, and the baseline's own variants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from deploy.experiments.baseline import (
    PAPER,
    SINGLE,
    STRICT,
    STRICT_INT8,
    TUNED,
    Whole,
    baseline,
    calibration,
)
from deploy.experiments.case import Case, Experiment, Lab, Measured, Settings
from deploy.experiments.site import (
    BATCH,
    CACHE_BYTES,
    IMAGES,
    MODEL,
    SERVE_S,
    START_S,
    TORCH_START_S,
    flags,
    measure,
    site,
)

FIGURES = {
    "throughput_per_s": "Images answered per second, with four batches of 32 under way (one process: one).",
    "latency_ms": "Milliseconds from sending a batch of 32 to its answer, one under way; median.",
    "latency_p95_ms": "The same, 95th percentile.",
    "communication_ms": "Milliseconds of an image by itself, from its receipt to its answer, that no stage "
    "computed or had in its queue: the ways between orchestrator, broker and nodes. It cannot be negative.",
    "cpu_percent": "CPU that the devices used, of the CPU that they may use.",
    "memory_mb": "Largest resident memory of each device's process, added up.",
    "network_kb_per_image": "Kilobytes that the broker received per image: inputs, activations and answers.",
    "stability": "1 minus the mean change of CPU and memory use from second to second (the paper gives no "
    "formula); mean of the devices.",
    "scheduling_ms": "CPU milliseconds of the orchestrator per image, all that it does included.",
}


def _cases(settings: Settings) -> Sequence[Case]:
    return [
        _ours("AMP4EC", settings, STRICT["onnxruntime"], start_s=START_S),
        _ours("AMP4EC + cache", settings, STRICT["onnxruntime"], cached=True),
    ]


def _systems(settings: Settings) -> Sequence[Case]:
    return [
        *(baseline(whole, settings) for whole in (PAPER, TUNED, SINGLE)),
        TABLE_ONE.lent(settings, "AMP4EC"),
        _ours("AMP4EC, int8", settings, STRICT_INT8, level="O2"),
        _ours("AMP4EC, torch", settings, STRICT["torch"], runtime="torch", start_s=TORCH_START_S),
    ]


def _ours(
    name: str,
    settings: Settings,
    strict: Whole,
    *,
    runtime: str = "onnxruntime",
    level: str = "O1",
    cached: bool = False,
    start_s: float = 0.0,
) -> Case:
    return Case(
        name=name,
        seconds=start_s
        + SERVE_S
        + 1.1 * settings.warm_up_s
        + settings.seconds
        + 1.3 * settings.alone_s,
        measure=partial(_cluster, runtime, level, cached),
        parameters={"model": MODEL, "batch": BATCH},
        paper=baseline(PAPER, settings),
        strict=baseline(strict, settings),
    )


async def _cluster(runtime: str, level: str, cached: bool, lab: Lab) -> Measured:
    more: dict[str, object] = {"runtime": runtime, "level": level}
    if level == "O2":
        more |= {"calibrate": (await asyncio.to_thread(calibration, lab),), "min_agreement": 0.0}
    if cached:
        more["cache_bytes"] = CACHE_BYTES
    async with site(lab, runtime=runtime) as here:
        await here.serve(MODEL, flags(**more))
        # The paper does not say how often its inputs were equal; a Zipf-distributed stream is what caches
        # are judged by (Breslau et al., "Web caching and Zipf-like distributions", 1999).
        choose = here.drawn(BATCH, IMAGES, 1.0) if cached else None
        return await measure(here, MODEL, batch=BATCH, choose=choose)


TABLE_ONE = Experiment(
    name="table-1",
    title="Table I: one process, AMP4EC, AMP4EC with its cache",
    text="MobileNetV2, random weights, photographs of 256 x 256 pixels in batches of 32. The cluster has the "
    "paper's three devices (1.0, 0.6 and 0.4 CPU, scaled), one process their CPU together. With the cache, "
    "the photographs are drawn from 1,024 by Zipf's law (exponent 1); without it 256 are sent in turn.",
    cases=_cases,
    figures=FIGURES,
    draw="throughput_per_s",
)
SYSTEMS = Experiment(
    name="table-1-systems",
    title="The same question of other systems",
    text="Batches of 32 as in Table I: AMP4EC with another runtime and at int8, and the paper's baseline "
    "with glibc's allocator told to keep its buffers, and image by image.",
    cases=_systems,
    figures={**FIGURES, "exact_ratio": "The share of the answers that are exact."},
    draw="throughput_per_s",
)

"""The paper's Table I: one process against the cluster, without and with its cache, at batches of 32."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np

from deploy.experiments import baseline
from deploy.experiments.baseline import ALL, Whole, calibration, timed
from deploy.experiments.case import Case, Experiment, Lab, Measured, Settings
from deploy.experiments.load import Load
from deploy.experiments.site import (
    BATCH,
    FRESH_S,
    MODEL,
    POOL,
    flags,
    measure,
    notes,
    saturated,
    site,
)
from deploy.experiments.watch import watching

FIGURES = {
    "throughput_per_s": "Images answered per second, with two batches of 32 under way (one process: one).",
    "latency_ms": "Milliseconds from sending a batch of 32 to its answer, one under way; median.",
    "latency_p95_ms": "The same, 95th percentile.",
    "communication_ms": "Milliseconds per image that no stage computed or had in its queue: the ways "
    "between client, broker and nodes. It cannot be negative.",
    "cpu_percent": "CPU that the devices used, of the CPU that they may use.",
    "memory_mb": "Largest resident memory of each device's process, added up.",
    "network_kb_per_image": "Kilobytes that the broker received per image: inputs, activations and answers.",
    "stability": "1 minus the mean change of CPU and memory use from second to second (the paper gives no "
    "formula); mean of the devices.",
    "scheduling_ms": "CPU milliseconds of the orchestrator per image, all that it does included.",
}


def _cases(settings: Settings) -> Sequence[Case]:
    int8 = Whole(name="one process, onnxruntime, int8", runtime="onnxruntime", batch=1, level="O2")
    seconds = FRESH_S + 1.2 * (settings.warm_up_s + settings.seconds)
    ours = [
        Case(
            name=name,
            seconds=seconds,
            measure=partial(_cluster, runtime, level, cached),
            parameters={"model": MODEL, "batch": BATCH},
        )
        for name, runtime, level, cached in (
            ("AMP4EC, torch", "torch", "O1", False),
            ("AMP4EC", "onnxruntime", "O1", False),
            ("AMP4EC + cache", "onnxruntime", "O1", True),
            ("AMP4EC, int8", "onnxruntime", "O2", False),
        )
    ]
    return [*(timed(baseline.case(whole), settings) for whole in (*ALL, int8)), *ours]


async def _cluster(runtime: str, level: str, cached: bool, lab: Lab) -> Measured:
    more: dict[str, object] = {"runtime": runtime, "level": level}
    if level == "O2":
        more |= {"calibrate": (await asyncio.to_thread(calibration, lab),), "min_agreement": 0.0}
    if cached:
        more["cache_bytes"] = 64 * 1024 * 1024
    async with site(lab, runtime=runtime, fresh=True) as here:
        state = await here.serve(MODEL, flags(**more))
        if not cached:
            return await measure(here, MODEL, batch=BATCH)
        # The paper does not say how often its inputs were equal; a Zipf-distributed stream is what caches
        # are judged by (Breslau et al., "Web caching and Zipf-like distributions", 1999).
        pool, random = here.pool(4 * POOL), np.random.default_rng(lab.settings.seed)
        chances = zipf(len(pool), 1.0)

        def choose() -> list[bytes]:
            return [pool[index] for index in random.choice(len(pool), BATCH, p=chances)]

        settings = lab.settings
        async with Load(here.client, MODEL, choose, 2) as load:
            await load.stretch(settings.warm_up_s)
            async with watching(here.parts()) as watch:
                busy = await load.stretch(settings.seconds)
        figures = saturated(here, busy, watch)
        async with Load(here.client, MODEL, choose, 1) as load:
            single = await load.stretch(max(settings.seconds / 5, 1.0))
        figures["latency_ms"] = single.latency_ms()
        figures["latency_p95_ms"] = single.latency_ms(0.95)
        return Measured(figures=figures, notes=notes(state))


def zipf(count: int, exponent: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The chance of each of `count` inputs: proportional to 1 / rank ** exponent."""
    weights = 1.0 / np.arange(1, count + 1) ** exponent
    chances: np.ndarray[tuple[int], np.dtype[np.float64]] = weights / weights.sum()
    return chances


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

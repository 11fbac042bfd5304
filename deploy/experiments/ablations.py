"""What each part is worth: strategies, schedulers, the cache, compression, runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from deploy.experiments.baseline import PAPER, STRICT, Whole, timed
from deploy.experiments.baseline import case as whole_case
from deploy.experiments.case import Case, Experiment, Lab, Measured, Settings
from deploy.experiments.load import Load
from deploy.experiments.site import (
    FRESH_S,
    MODEL,
    START_S,
    flags,
    measure,
    notes,
    saturated,
    site,
)
from deploy.experiments.table_one import zipf
from deploy.experiments.watch import watching
from orchestrator.core.plan import Strategy
from orchestrator.core.scheduler_settings import Scheduler

_USUAL = {
    "throughput_per_s": "Images per second, saturated with single images.",
    "predicted_per_s": "What the plan in force promised when the measurement began.",
    "latency_ms": "Milliseconds from sending an image to its answer, one under way; median.",
    "busy_latency_p95_ms": "95th percentile of the same while saturated.",
    "network_kb_per_image": "Kilobytes that the broker received per image.",
}
_SLOW_BYTES_PER_S = 10e6 / 8
"""10 Mbit/s in each direction."""
_SETTLE_S = 25.0
_IMAGES = 1024


def _seconds(settings: Settings) -> float:
    return START_S + 1.2 * (settings.warm_up_s + settings.seconds)


async def _served(
    how: dict[str, object], arguments: Sequence[str], lab: Lab, *, runtime: str = "onnxruntime"
) -> Measured:
    async with site(lab, orchestrator_arguments=arguments, runtime=runtime) as here:
        await here.serve(MODEL, flags(runtime=runtime, **how))
        return await measure(here, MODEL)


def _strategies(settings: Settings) -> Sequence[Case]:
    asked: dict[str, dict[str, object]] = {
        **{str(strategy): {"strategy": str(strategy)} for strategy in Strategy},
        "optimal, three stages": {"min_stages": 3, "max_stages": 3},
    }
    return [
        *(timed(whole_case(whole), settings) for whole in (PAPER, STRICT["onnxruntime"])),
        *(
            Case(
                name=name,
                seconds=_seconds(settings),
                measure=partial(_served, how, ()),
                parameters={"strategy": name},
            )
            for name, how in asked.items()
        ),
    ]


STRATEGIES = Experiment(
    name="ablation-strategies",
    title="Strategies",
    text="Where the cuts are and what runs where: the paper's rules (equal, ralos), the whole model on the "
    "best device, a copy on each, and the planner's choice, free and with three stages. onnxruntime. "
    "One process has the CPU of all devices together.",
    cases=_strategies,
    figures=_USUAL,
    draw="throughput_per_s",
)


def _schedulers(settings: Settings) -> Sequence[Case]:
    rules: dict[str, tuple[str, ...]] = {
        str(rule): (f"--scheduler={rule}",) for rule in Scheduler if rule is not Scheduler.NSA
    }
    rules["nsa, normalised"] = ("--scheduler=nsa", "--scheduler-form=normalised")
    rules["nsa, literal"] = ("--scheduler=nsa", "--scheduler-form=literal")
    how: dict[str, object] = {"strategy": "replicate"}
    return [
        Case(
            name=name,
            seconds=_seconds(settings),
            measure=partial(_served, how, arguments),
            parameters={"scheduler": name},
        )
        for name, arguments in rules.items()
    ]


SCHEDULERS = Experiment(
    name="ablation-schedulers",
    title="Node selection: the paper's NSA against others",
    text="A copy of the model on each of the three devices, so that every image is a choice. The paper's "
    "score as it stands (literal), with its terms made comparable (normalised), and two other rules.",
    cases=_schedulers,
    figures=_USUAL,
    draw="throughput_per_s",
)


def _caches(settings: Settings) -> Sequence[Case]:
    return [
        Case(
            name=f"exponent {exponent:g}, {'cache' if cached else 'no cache'}",
            seconds=START_S + settings.warm_up_s + settings.seconds,
            measure=partial(_cache, exponent, 64 * 1024 * 1024 if cached else 0),
            parameters={"exponent": exponent, "cache": cached},
        )
        for exponent in (0.6, 1.0, 1.4)
        for cached in (False, True)
    ]


async def _cache(exponent: float, cache_bytes: int, lab: Lab) -> Measured:
    settings = lab.settings
    async with site(lab) as here:
        how = flags(runtime="onnxruntime", cache_bytes=cache_bytes)
        state = await here.serve(MODEL, how)
        pool, random = here.pool(_IMAGES), np.random.default_rng(settings.seed)
        chances = zipf(_IMAGES, exponent)

        def choose() -> list[bytes]:
            return [pool[random.choice(_IMAGES, p=chances)]]

        async with Load(here.client, MODEL, choose, here.window(state)) as load:
            await load.stretch(settings.warm_up_s)
            async with watching(here.parts()) as watch:
                busy = await load.stretch(settings.seconds)
    return Measured(figures=saturated(here, busy, watch), notes=notes(state))


CACHE = Experiment(
    name="ablation-cache",
    title="The result cache, by how often images come again",
    text="Single images drawn from 1,024 by Zipf's law; the larger the exponent, the more often the same "
    "ones. The cache begins empty and fills while it is measured.",
    cases=_caches,
    figures={
        "throughput_per_s": _USUAL["throughput_per_s"],
        "cached_ratio": "The share of the answers that came from an equal image.",
        "busy_latency_ms": "Milliseconds from sending to answer while saturated; median.",
        "scheduling_ms": "CPU milliseconds of the orchestrator per image.",
    },
    draw="throughput_per_s",
)


def _compressions(settings: Settings) -> Sequence[Case]:
    ways: dict[str, dict[str, object]] = {
        "none": {"compression": "none"},
        "auto, lossless": {"compression": "auto"},
        "auto, error up to 0.02": {"compression": "auto", "max_error": 0.02},
    }
    return [
        Case(
            name=name,
            seconds=_seconds(settings) + _SETTLE_S,
            measure=partial(_slow_links, how),
            parameters={"compression": name, "link_bytes_per_s": _SLOW_BYTES_PER_S},
        )
        for name, how in ways.items()
    ]


async def _slow_links(how: dict[str, object], lab: Lab) -> Measured:
    async with site(lab, isolated=True) as here:
        for name in here.agents:
            here.cluster.network.rate(name, _SLOW_BYTES_PER_S)
        stages = {"min_stages": 3, "max_stages": 3, "runtime": "onnxruntime"}
        state = await here.serve(MODEL, flags(**stages, **how))
        # Links are measured by what travels, and the cuts follow.
        async with here.load(MODEL, 1, here.window(state)) as load:
            await load.stretch(_SETTLE_S)
        return await measure(here, MODEL)


COMPRESSION = Experiment(
    name="ablation-compression",
    title="Compressed activations over links of 10 Mbit/s",
    text="Three stages; each device has a network of its own that lets 10 Mbit/s through in each direction.",
    cases=_compressions,
    figures={
        **_USUAL,
        "exact_ratio": "The share of the answers that are exact.",
    },
    draw="throughput_per_s",
)


def _runtimes(settings: Settings) -> Sequence[Case]:
    three: dict[str, object] = {"min_stages": 3, "max_stages": 3}
    cases = [
        Case(
            name=f"{runtime}, {name}",
            seconds=_seconds(settings) + FRESH_S / 2,
            measure=partial(_served, how, (), runtime=runtime),
            parameters={"runtime": runtime, "plan": name},
        )
        for runtime in STRICT
        for name, how in (("three stages", three), ("chosen freely", dict[str, object]()))
    ]
    alone = (*STRICT.values(), Whole(name="one process, eager, batch 1", batch=1))
    return [*cases, *(timed(whole_case(whole), settings) for whole in alone)]


RUNTIMES = Experiment(
    name="ablation-runtimes",
    title="Runtimes",
    text="torch and onnxruntime in three stages and as the planner chooses, beside one process with the same "
    "runtime and the same CPU in all.",
    cases=_runtimes,
    figures={**_USUAL, "memory_mb": "Largest resident memory of the devices' processes, added up."},
    draw="throughput_per_s",
)

"""What each part is worth: strategies, schedulers, the cache, compression, runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from deploy.experiments.baseline import SINGLE, baseline, compared
from deploy.experiments.case import Case, Experiment, Lab, Measured, Settings
from deploy.experiments.site import (
    CACHE_BYTES,
    IMAGES,
    MODEL,
    SERVE_S,
    START_S,
    flags,
    measure,
    site,
)
from orchestrator.core.plan import Strategy
from orchestrator.core.scheduler_settings import Form, Scheduler

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
_UNCOMPRESSED = "none"


def _seconds(settings: Settings) -> float:
    return SERVE_S + 1.1 * settings.warm_up_s + settings.seconds + settings.alone_s


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
        compared(
            Case(
                name=name,
                seconds=_seconds(settings) + (START_S if name == Strategy.OPTIMAL else 0.0),
                measure=partial(_served, how, ()),
                parameters={"strategy": name},
            ),
            settings,
        )
        for name, how in asked.items()
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
    rules = {
        str(Scheduler.LEAST_OUTSTANDING): (f"--scheduler={Scheduler.LEAST_OUTSTANDING}",),
        **{
            f"nsa, {form}": (f"--scheduler={Scheduler.NSA}", f"--scheduler-form={form}")
            for form in Form
        },
    }
    how: dict[str, object] = {"strategy": "replicate"}
    return [
        # The default rule's copies are a strategy's as well.
        STRATEGIES.lent(settings, "replicate", str(Scheduler.SHORTEST_COMPLETION)),
        *(
            compared(
                Case(
                    name=name,
                    seconds=START_S + _seconds(settings),
                    measure=partial(_served, how, arguments),
                    parameters={"scheduler": name},
                ),
                settings,
            )
            for name, arguments in rules.items()
        ),
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
        # Without a cache it does not count which images come again.
        STRATEGIES.lent(settings, "optimal", "no cache"),
        *(
            compared(
                Case(
                    name=f"cache, exponent {exponent:g}",
                    seconds=SERVE_S + settings.warm_up_s + settings.seconds,
                    measure=partial(_cache, exponent),
                    parameters={"exponent": exponent},
                ),
                settings,
            )
            for exponent in (0.6, 1.0, 1.4)
        ),
    ]


async def _cache(exponent: float, lab: Lab) -> Measured:
    async with site(lab) as here:
        await here.serve(MODEL, flags(runtime="onnxruntime", cache_bytes=CACHE_BYTES))
        return await measure(here, MODEL, choose=here.drawn(1, IMAGES, exponent))


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
        _UNCOMPRESSED: {"compression": "none"},
        "auto, lossless": {"compression": "auto"},
        "auto, error up to 0.02": {"compression": "auto", "max_error": 0.02},
    }
    return [
        compared(
            Case(
                name=name,
                seconds=_seconds(settings)
                + (START_S + _SETTLE_S if name == _UNCOMPRESSED else 0.0),
                measure=partial(_slow_links, how),
                parameters={"compression": name, "link_bytes_per_s": _SLOW_BYTES_PER_S},
            ),
            settings,
        )
        for name, how in ways.items()
    ]


async def _slow_links(how: dict[str, object], lab: Lab) -> Measured:
    async with site(lab, isolated=True) as here:
        for name in here.agents:
            here.cluster.network.rate(name, _SLOW_BYTES_PER_S)
        stages = {"min_stages": 3, "max_stages": 3, "runtime": "onnxruntime"}
        state = await here.serve(MODEL, flags(**stages, **how))
        if here.new:
            # Links are measured by what travels, and the cuts follow.
            async with here.load(MODEL, here.window(state)) as load:
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
    asked: dict[str, dict[str, object]] = {
        "three stages": {"min_stages": 3, "max_stages": 3},
        "chosen freely": {},
    }
    return [
        STRATEGIES.lent(settings, "optimal, three stages", "onnxruntime, three stages"),
        STRATEGIES.lent(settings, "optimal", "onnxruntime, chosen freely"),
        *(
            compared(
                Case(
                    name=f"torch, {name}",
                    seconds=START_S / len(asked) + _seconds(settings),
                    measure=partial(_served, how, (), runtime="torch"),
                    parameters={"runtime": "torch", "plan": name},
                ),
                settings,
                "torch",
            )
            for name, how in asked.items()
        ),
        baseline(SINGLE, settings),
    ]


RUNTIMES = Experiment(
    name="ablation-runtimes",
    title="Runtimes",
    text="torch and onnxruntime in three stages and as the planner chooses, beside one process with the same "
    "runtime and the same CPU in all.",
    cases=_runtimes,
    figures={**_USUAL, "memory_mb": "Largest resident memory of the devices' processes, added up."},
    draw="throughput_per_s",
)

"""What each part is worth: strategies, schedulers, the cache, compression, runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from deploy.cluster import Cluster
from deploy.experiments.baseline import SINGLE, baseline, compared
from deploy.experiments.case import Case, Experiment, Lab, Measured, Settings
from deploy.experiments.site import (
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
from orchestrator.core.plan import Strategy
from orchestrator.core.scheduler_settings import Form, Scheduler
from shared.client import ClusterStatus

_USUAL = {
    "throughput_per_s": "Images per second, saturated with single images.",
    "predicted_per_s": "What the plan in force promised when the measurement began.",
    "latency_ms": "Milliseconds from sending an image to its answer, one under way; median.",
    "busy_latency_p95_ms": "95th percentile of the same while saturated.",
    "network_kb_per_image": "Kilobytes that the broker received per image.",
}
_SLOW_BYTES_PER_S = 10e6 / 8
"""10 Mbit/s in each direction."""
_SETTLE_S = 10.0
_PROBED_S = 90.0
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
        **{
            str(rule): (f"--scheduler={rule}",)
            for rule in (Scheduler.SHORTEST_COMPLETION, Scheduler.LEAST_OUTSTANDING)
        },
        **{
            f"nsa, {form}": (f"--scheduler={Scheduler.NSA}", f"--scheduler-form={form}")
            for form in Form
        },
    }
    how: dict[str, object] = {"strategy": "replicate"}
    # The default is a case of its own, though strategies have the same: rules differ by less than hours do.
    return [
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
                + (3 * START_S + _SETTLE_S if name == _UNCOMPRESSED else 0.0),
                measure=partial(_slow_links, how),
                parameters={"compression": name, "link_bytes_per_s": _SLOW_BYTES_PER_S},
            ),
            settings,
        )
        for name, how in ways.items()
    ]


async def _slow_links(how: dict[str, object], lab: Lab) -> Measured:
    async with site(lab, isolated=True) as here:
        if here.new:
            await _slow_down(here.cluster)
        stages = {"min_stages": 3, "max_stages": 3, "runtime": "onnxruntime"}
        state = await here.serve(MODEL, flags(**stages, **how))
        if here.new:
            # Plans go by the size of the jobs once some have come.
            async with here.load(MODEL, here.window(state)) as load:
                await load.stretch(_SETTLE_S)
        return await measure(here, MODEL)


async def _slow_down(cluster: Cluster) -> None:
    """Every node's link, and the nodes started anew: they probe their links when they begin.

    Nodes go by their traffic afterwards, and small messages say nothing of a link.
    """
    for name in cluster.agents:
        cluster.network.rate(name, _SLOW_BYTES_PER_S)
    for name in list(cluster.agents):
        await cluster.stop_agent(name)
        await cluster.restart_agent(name)

    def measured(status: ClusterStatus) -> bool:
        rates = [
            rate
            for node in status.online
            for rate in (
                node.telemetry and node.telemetry.up_bytes_per_s,
                node.telemetry and node.telemetry.down_bytes_per_s,
            )
        ]
        wanted = 2 * len(cluster.agents)
        return len(rates) == wanted and all(rate and rate < 2 * _SLOW_BYTES_PER_S for rate in rates)

    await cluster.wait_for("links that are known to be slow", measured, _PROBED_S)


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
                    seconds=TORCH_START_S / len(asked) + _seconds(settings),
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

"""AMP4EC beside its peers: each system is started, loaded, robbed of its middle stage, and ended.

`python -m deploy.experiments peers`. An environment is made for each peer the first time (`environments`);
the model is exported once a run to files that all read, and cut for the peers where it suits them
(`drivers.export`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from deploy.cgroup import CpuLimit, limit_cpu
from deploy.experiments.case import Case, Engine, Experiment, Lab, Measured, Say, Settings
from deploy.experiments.peers.driver import Ask, Driver, Loading
from deploy.experiments.peers.environments import default_cache
from deploy.experiments.peers.outcome import count, recovery_s, silence_s, steady
from deploy.experiments.peers.systems import MODEL, PAPER_SHARES, SYSTEMS, Bench, System
from deploy.experiments.peers.usage import Usage, cpus, read_usage
from deploy.supervisor import child_environment
from edge_agent.cgroup import Cgroups
from orchestrator.core.dispatch_settings import default_window
from shared.codec import decode_json, encode_json
from shared.errors import ConfigurationError, ModelError

WINDOW = default_window(len(PAPER_SHARES))
WATCH_S = 30.0
"""How long after the kill a system may come back; at 0.3 CPU a process needs 10 s to import torch alone."""
_KILL_RATE_PER_S = 20.0
_KILL_SHARE = 0.4
"""Items come at this share of the throughput that was measured, so that a system has room to catch up."""
_BEFORE_KILL_S = 3.0
_AFTER_RECOVERY_S = 3.0
_START_AND_STOP_S = 40.0


def _cases(settings: Settings) -> Sequence[Case]:
    return [
        Case(
            name=system.name,
            seconds=_START_AND_STOP_S + settings.warm_up_s + settings.seconds + WATCH_S / 2,
            measure=partial(_measure, system),
            parameters={"model": MODEL, "window": WINDOW},
        )
        for system in SYSTEMS
    ]


@dataclass(frozen=True, slots=True)
class Stages:
    """At which of AMP4EC's blocks a model is cut, and the CPUs of each stage in turn."""

    cuts: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """What AMP4EC's own driver tells of its plan."""
        return cls(tuple(map(int, facts["cuts"])), tuple(map(float, facts["shares"])))

    def given_to(self, system: System, bench: Bench) -> Bench:
        """The bench of a system whose stages are told their CPUs: these, stage by stage.

        AMP4EC's agents have theirs before there is a plan.
        """
        return replace(bench, shares=self.shares) if system.limits == "stages" else bench

    def notes(self) -> dict[str, str]:
        """For the record."""
        return {
            "cuts": ", ".join(map(str, self.cuts)),
            "CPUs of the stages": ", ".join(f"{share:g}" for share in self.shares),
        }


async def _measure(system: System, lab: Lab) -> Measured:
    """One round of one system.

    Raises:
        ConfigurationError: it was to run in containers, which the peers' environments are not made for.
        DriverEndedError: the system did not start, or ended.
        EnvironmentMissingError: what it needs cannot be installed.
    """
    if lab.settings.engine is not Engine.LOCAL:
        raise ConfigurationError(
            "peers run as processes", expected="--engine local", got=str(lab.settings.engine)
        )
    await lab.clear()  # nothing of another experiment counts as this system's
    bench = Bench(
        directory=lab.kept / "peers",
        shares=tuple(lab.settings.cpus(PAPER_SHARES)),
        window=WINDOW,
    )
    given = await prepare(bench, lab.say)
    bench = given.given_to(system, bench)
    python = await _python(system, lab.say)
    began = time.monotonic()
    async with _started(system, bench, python) as driver:
        figures: dict[str, float | None] = {"start_s": time.monotonic() - began}
        figures |= await _steady(bench, driver, lab.settings)
        facts = driver.facts  # as it was measured; the kill moves the cuts
        figures |= await _kill(driver, float(figures["throughput_per_s"] or 0.0))
    notes = {"used as": system.way}
    if system.limits == "own":
        notes |= Stages.of(facts).notes()
    else:
        notes |= {name: str(value) for name, value in facts.items()}
        notes |= given.notes() if system.staged else {}
    return Measured(figures=figures, notes=notes)


async def prepare(bench: Bench, say: Say) -> Stages:
    """Export the model, once for a directory, in stages that suit the peers; those stages.

    Raises:
        ModelError: the model cannot be exported.
    """
    kept = bench.files / "stages.json"
    if not kept.is_file():
        say(f"writing {MODEL} to files, and timing it to cut it for the peers")
        given = {
            "files": str(bench.files),
            "model": MODEL,
            "shares": bench.shares,
            "stages": str(kept),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", f"{__package__}.drivers.export", encode_json(given).decode(),
            stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr, env=child_environment(),
        )  # fmt: skip
        if await process.wait() != 0:
            raise ModelError(f"{MODEL} cannot be exported for the peers; the reason stands above")
    return decode_json(kept.read_bytes(), Stages)


async def _python(system: System, say: Say) -> Path:
    return await asyncio.to_thread(system.environment.python, default_cache(), say)


@asynccontextmanager
async def _started(system: System, bench: Bench, python: Path) -> AsyncIterator[Driver]:
    limits: list[CpuLimit] = []
    try:
        for index, share in enumerate(system.shares(bench)):
            limits.append(await asyncio.to_thread(limit_cpu, f"{system.name}-{index}", share))
        driver = await Driver.start(
            python,
            system.module,
            files=bench.files,
            limits=limits,
            options=system.options(bench),
            environment=system.variables,
            log=bench.directory / "logs" / f"{system.name}.log",
        )
        async with driver:
            yield driver
    finally:
        for limit in limits:
            await asyncio.to_thread(limit.remove)


async def _steady(bench: Bench, driver: Driver, settings: Settings) -> dict[str, float | None]:
    """Throughput, latency and what it takes, with a window of items under way all the time."""
    load = await driver.load(
        Ask(seconds=settings.warm_up_s + settings.seconds, window=bench.window)
    )
    before = await _usage_at(load, driver, load.began + settings.warm_up_s)
    stages = frozenset(driver.stages)
    begin = time.monotonic()
    after = await _usage_at(load, driver, begin + settings.seconds)
    end = time.monotonic()
    quotas = await asyncio.to_thread(_quotas, stages)
    load.enough()
    items = await load.finish()
    found, counts = steady(items, begin, end), count(items)
    busy = cpus(before, after, end - begin)
    in_stages = cpus(before, after, end - begin, stages)
    return {
        "throughput_per_s": found.per_s,
        "latency_p50_ms": found.p50_ms,
        "latency_p95_ms": found.p95_ms,
        "memory_mb": after.pss_bytes / 1e6,
        "memory_apart_mb": after.rss_bytes / 1e6,
        "processes": float(after.processes),
        "stage_cpu": in_stages,
        "bottleneck_cpu_percent": max(
            (
                100.0 * cpus(before, after, end - begin, frozenset([pid])) / quota
                for pid, quota in quotas.items()
            ),
            default=None,
        ),
        "items_per_stage_cpu_s": found.per_s / in_stages if in_stages else None,
        "other_cpu": busy - in_stages,
        "sent": float(counts.sent),
        "answered": float(counts.answered),
        "wrong": float(counts.wrong),
        "not_answered": float(counts.refused + counts.lost),
    }


def _quotas(stages: Iterable[int]) -> dict[int, float]:
    """The CPUs that each stage may use, of those that are limited."""
    found = {pid: Cgroups(pid=str(pid)).cpu_quota() for pid in stages}
    return {pid: quota.cpus for pid, quota in found.items() if quota is not None}


async def _usage_at(load: Loading, driver: Driver, moment: float) -> Usage:
    while not load.over and time.monotonic() < moment:
        await load.advance()
    return await asyncio.to_thread(read_usage, driver.pid)


async def _kill(driver: Driver, throughput_per_s: float) -> dict[str, float | None]:
    """SIGKILL to the middle stage under a steady trickle, until answers come again or `WATCH_S` is over."""
    rate = max(min(_KILL_RATE_PER_S, _KILL_SHARE * throughput_per_s), 0.5)
    load = await driver.load(
        Ask(
            seconds=_BEFORE_KILL_S + WATCH_S,
            rate_per_s=rate,
            item_timeout_s=WATCH_S,
        )
    )
    middle = driver.stages[len(driver.stages) // 2]
    while not load.over and time.monotonic() < load.began + _BEFORE_KILL_S:
        await load.advance()
    killed_at = time.monotonic()
    os.kill(middle, signal.SIGKILL)
    while not load.over:
        await load.advance()
        back = recovery_s(load.items, killed_at)
        if back is not None and time.monotonic() > killed_at + back + _AFTER_RECOVERY_S:
            load.enough()
    items = await load.finish()
    counts = count(items)
    return {
        "came_back": float(recovery_s(items, killed_at) is not None),
        "recovery_s": recovery_s(items, killed_at),
        "silence_s": silence_s(items, killed_at),
        "kill_rate_per_s": rate,
        "kill_sent": float(counts.sent),
        "kill_answered": float(counts.answered),
        "kill_wrong": float(counts.wrong),
        "kill_refused": float(counts.refused),
        "kill_lost": float(counts.lost),
    }


PEERS = Experiment(
    name="peers",
    title="Beside its peers",
    text="What somebody would take instead, on the same cores: the same MobileNetV2 (for the peers with "
    "BatchNorm folded and channels-last), in three stages with the same CPU quotas (`alone`: their sum), one "
    f"thread each, {WINDOW} images under way. AMP4EC cuts as its planner does, live; the peers are given the "
    "cuts and the order of devices that balance their own modules best, by timing them beforehand. Every "
    "answer is compared with the original model's. Then SIGKILL to the middle stage under a steady load; "
    "nobody starts it again but the system itself. (What torchrun or an init system would do, starting "
    "everything again, takes `start_s` and loses what was under way.)",
    cases=_cases,
    figures={
        "throughput_per_s": "Right answers per second.",
        "items_per_stage_cpu_s": "Right answers per second of CPU that the stages really got: what can "
        "still be compared where other work on the machine kept some of them from their quotas.",
        "stage_cpu": "CPUs that the stages got; on a quiet machine near the sum of their quotas.",
        "bottleneck_cpu_percent": "Of its quota, what the stage used that used most of it. Near 100 on a "
        "quiet machine; with much less the throughput says nothing about the system.",
        "latency_p50_ms": "From asking to the answer, in milliseconds, half of them.",
        "latency_p95_ms": "The same, 95 % of them.",
        "memory_mb": "Of all processes, brokers and daemons included; pages that several share count once.",
        "memory_apart_mb": "The same on devices of their own: shared pages count for each process.",
        "other_cpu": "CPUs that everything beside the stages used, without the program that asks.",
        "start_s": "From nothing to ready, with the first answers.",
        "came_back": "1 when images that were sent after the kill were answered, 0 when none was.",
        "recovery_s": "From the kill to the first right answer to an image that was sent after it.",
        "kill_sent": "Images sent in the part with the kill.",
        "kill_answered": "Of these answered right.",
        "kill_wrong": "Of these answered wrong.",
        "kill_refused": "Of these ended with an error.",
        "kill_lost": f"Of these without any end in {WATCH_S:g} s.",
    },
    draw="throughput_per_s",
)

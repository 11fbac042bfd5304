"""A run: rounds in which each system is started, loaded, robbed of its middle stage, and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.cgroup import CpuLimit, limit_cpu
from deploy.experiments.peers.driver import Ask, Driver, DriverEndedError, Loading
from deploy.experiments.peers.environments import EnvironmentMissingError, default_cache
from deploy.experiments.peers.outcome import count, recovery_s, silence_s, steady
from deploy.experiments.peers.systems import MODEL, SYSTEMS, Bench, System
from deploy.experiments.peers.usage import Usage, cpus, read_usage
from deploy.experiments.records import Parameter, Record, RecordFile
from deploy.machine import this_machine
from deploy.supervisor import child_environment
from shared.codec import decode_json, encode_json
from shared.errors import ModelError

EXPERIMENT = "peers"
_KILL_RATE_PER_S = 20.0
_KILL_SHARE = 0.4
"""Items come at this share of the throughput that was measured, so that a system has room to catch up."""
_BEFORE_KILL_S = 3.0
_AFTER_RECOVERY_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long each part of a round takes.

    `settle_s` of load come before the `seconds` that count; `watch_s`: how long after the kill a system may
    come back; `rounds` of all systems.
    """

    seconds: float
    settle_s: float
    watch_s: float
    rounds: int

    def parameters(self, bench: Bench, cuts: Sequence[int]) -> dict[str, Parameter]:
        """What a record is found by."""
        return {
            "model": MODEL,
            "shares": "/".join(f"{share:g}" for share in bench.shares),
            "window": bench.window,
            "seconds": self.seconds,
            "settle_s": self.settle_s,
            "watch_s": self.watch_s,
            "cuts": ",".join(map(str, cuts)),
        }

    def total_s(self, systems: int) -> float:
        """About how long it takes, with half a minute to start and end each system."""
        return systems * self.rounds * (30.0 + self.settle_s + self.seconds + self.watch_s / 2)


async def run(
    plan: Plan,
    bench: Bench,
    systems: Sequence[System],
    records: RecordFile,
    say: Callable[[str], None],
) -> Sequence[str]:
    """Measure what `records` does not have yet; the reasons of what could not be measured.

    Raises:
        ModelError: the model cannot be exported.
        ConfigurationError: this process may not limit CPU.
    """
    cuts = await prepare(plan, bench, say)
    parameters = plan.parameters(bench, cuts)
    failed: list[str] = []
    for round_ in range(plan.rounds):
        # Each round begins with another system: what a machine does over time hits all alike.
        turn = round_ % len(systems)
        for system in (*systems[turn:], *systems[:turn]):
            if records.find(EXPERIMENT, system.name, round_, parameters) is not None:
                say(f"round {round_ + 1}, {system.name}: measured already")
                continue
            try:
                record = await _measure(
                    plan, bench, system, round_=round_, parameters=parameters, say=say
                )
            except (DriverEndedError, EnvironmentMissingError) as error:
                failed.append(f"round {round_ + 1}, {error}")
                say(failed[-1])
                continue
            records.append(record)
    return failed


async def prepare(plan: Plan, bench: Bench, say: Callable[[str], None]) -> list[int]:
    """Export the model, once for a directory, cut where AMP4EC's plan has it; the cuts.

    The plan is the one that it keeps after some load, as measured stage times may have moved the cuts.
    """
    kept = bench.files / "cuts.json"
    if kept.is_file():
        return decode_json(kept.read_bytes(), list[int])
    say(f"writing {MODEL} to {bench.files}")
    await _export(bench, [])
    say("asking AMP4EC where to cut")
    async with _started(SYSTEMS[0], bench, await _python(SYSTEMS[0], say)) as driver:
        load = await driver.load(Ask(seconds=plan.settle_s, window=bench.window))
        await load.finish()
        cuts = [int(cut) for cut in driver.facts["cuts"]]
    await _export(bench, cuts)
    kept.write_bytes(encode_json(cuts))
    return cuts


async def _export(bench: Bench, cuts: Sequence[int]) -> None:
    given = encode_json({"files": str(bench.files), "model": MODEL, "cuts": cuts}).decode()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"{__package__}.drivers.export", given,
        stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr, env=child_environment(),
    )  # fmt: skip
    if await process.wait() != 0:
        raise ModelError(f"{MODEL} cannot be exported for the peers; the reason stands above")


async def _python(system: System, say: Callable[[str], None]) -> Path:
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


async def _measure(
    plan: Plan,
    bench: Bench,
    system: System,
    *,
    round_: int,
    parameters: dict[str, Parameter],
    say: Callable[[str], None],
) -> Record:
    python = await _python(system, say)
    machine, began = this_machine(), time.monotonic()
    say(f"round {round_ + 1}, {system.name}: starting")
    async with _started(system, bench, python) as driver:
        figures: dict[str, float | None] = {"start_s": time.monotonic() - began}
        say(f"round {round_ + 1}, {system.name}: under load")
        figures |= await _steady(plan, bench, driver)
        say(f"round {round_ + 1}, {system.name}: {figures['throughput_per_s']:.1f} items/s")
        figures |= await _kill(plan, driver, float(figures["throughput_per_s"] or 0.0))
        back = figures["recovery_s"]
        after = "no more" if back is None else f"again after {back:.2f} s"
        say(f"round {round_ + 1}, {system.name}: middle stage killed, answers {after}")
        facts = {key: str(value) for key, value in driver.facts.items()}
    return Record(
        experiment=EXPERIMENT,
        case=system.name,
        round=round_,
        parameters=parameters,
        figures=figures,
        notes={"way": system.way, **facts},
        seconds=time.monotonic() - began,
        machine=machine,
    )


async def _steady(plan: Plan, bench: Bench, driver: Driver) -> dict[str, float | None]:
    """Throughput, latency and what it takes, with a window of items under way all the time."""
    load = await driver.load(Ask(seconds=plan.settle_s + plan.seconds, window=bench.window))
    before = await _usage_at(load, driver, load.began + plan.settle_s)
    stages = frozenset(driver.stages)
    begin = time.monotonic()
    after = await _usage_at(load, driver, begin + plan.seconds)
    end = time.monotonic()
    load.enough()
    items = await load.finish()
    found, counts = steady(items, begin, end), count(items)
    busy = cpus(before, after, end - begin)
    in_stages = cpus(before, after, end - begin, stages)
    return {
        "throughput_per_s": found.per_s,
        "latency_p50_ms": found.p50_ms,
        "latency_p95_ms": found.p95_ms,
        "memory_pss_bytes": float(after.pss_bytes),
        "memory_rss_bytes": float(after.rss_bytes),
        "processes": float(after.processes),
        "cpu_stages": in_stages,
        "items_per_stage_cpu_s": found.per_s / in_stages if in_stages else None,
        "cpu_others": busy - in_stages,
        "sent": float(counts.sent),
        "answered": float(counts.answered),
        "wrong": float(counts.wrong),
        "not_answered": float(counts.refused + counts.lost),
    }


async def _usage_at(load: Loading, driver: Driver, moment: float) -> Usage:
    while not load.over and time.monotonic() < moment:
        await load.advance()
    return await asyncio.to_thread(read_usage, driver.pid)


async def _kill(plan: Plan, driver: Driver, throughput_per_s: float) -> dict[str, float | None]:
    """SIGKILL to the middle stage under a steady trickle, until answers come again or `watch_s` is over."""
    rate = max(min(_KILL_RATE_PER_S, _KILL_SHARE * throughput_per_s), 0.5)
    load = await driver.load(
        Ask(
            seconds=_BEFORE_KILL_S + plan.watch_s,
            rate_per_s=rate,
            item_timeout_s=plan.watch_s,
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
        "recovery_s": recovery_s(items, killed_at),
        "silence_s": silence_s(items, killed_at),
        "kill_rate_per_s": rate,
        "kill_sent": float(counts.sent),
        "kill_answered": float(counts.answered),
        "kill_wrong": float(counts.wrong),
        "kill_refused": float(counts.refused),
        "kill_lost": float(counts.lost),
    }

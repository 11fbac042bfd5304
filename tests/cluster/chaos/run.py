"""One run: a plant, load on it, faults as the schedule says, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import Amp4ecError
from tests.benchmarks.report import say
from tests.cluster.chaos.checks import RECOVERY_S, Check, Struck, check, measure
from tests.cluster.chaos.faults import broken
from tests.cluster.chaos.ledger import Ledger, Outcome
from tests.cluster.chaos.load import Load
from tests.cluster.chaos.plant import AGENTS, FAR, MODEL, Plant, plant
from tests.cluster.chaos.retained import Expected, expected_topics, retained_topics
from tests.cluster.chaos.samples import make_samples
from tests.cluster.chaos.schedule import Fault, FaultKind, Step, draw, each_once
from tests.cluster.chaos.usage import Usage

_PROGRESS_S = 5.0
_DRAIN_S = 170.0
"""Longer than a client waits for its answer."""
_SETTLE_S = 60.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for. `quick`: each kind of fault once, and as short as it gets."""

    seed: int
    minutes: float
    kinds: tuple[FaultKind, ...]
    runtime: str
    per_s: float
    quick: bool = False


@dataclass(slots=True)
class Outcomes:
    """Everything that a run found; times are monotonic."""

    began_at: float
    ended_at: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    struck: list[Struck] = field(default_factory=list)
    usage: Usage | None = None
    ended: dict[str, str] = field(default_factory=dict)
    """Processes that ended by themselves, with the end of their logs."""
    checks: list[Check] = field(default_factory=list)


async def run(directory: Path, options: Options) -> Outcomes:
    """Run, and check.

    Raises:
        Amp4ecError: the cluster could not even be started.
    """
    say(f"seed {options.seed}: preparing {MODEL} and what it answers")
    samples = await asyncio.to_thread(make_samples, MODEL, options.seed)
    async with plant(directory, options.runtime) as made:
        load = Load(made.cluster, MODEL, samples, options.per_s)
        outcomes = Outcomes(time.monotonic(), ledger=load.ledger, usage=Usage(made.cluster))
        assert outcomes.usage is not None
        async with load.running(), outcomes.usage.watched():
            progress = asyncio.create_task(_progress(outcomes), name="progress")
            try:
                await _answered_after(outcomes.ledger, time.monotonic())
                await _strike_all(made, outcomes, options)
                say("no more faults; waiting for what is open")
                await load.drain(_DRAIN_S)
            finally:
                progress.cancel()
                await asyncio.gather(progress, return_exceptions=True)
            outcomes.ended_at = time.monotonic()
        expected = expected_topics(made.cluster.root, AGENTS, [MODEL])
        retained = await _settled(made, expected)
        measure(outcomes.struck, outcomes.ledger)
        outcomes.checks = check(
            ledger=outcomes.ledger,
            struck=outcomes.struck,
            usage=outcomes.usage,
            retained=retained,
            expected=expected,
            ended=outcomes.ended or made.ended(),
        )
    return outcomes


def _steps(options: Options) -> Iterator[Step]:
    if options.quick:
        return each_once(options.seed, options.kinds, AGENTS, FAR)
    return draw(options.seed, options.kinds, AGENTS, FAR)


async def _strike_all(made: Plant, outcomes: Outcomes, options: Options) -> None:
    deadline = time.monotonic() + options.minutes * 60
    for step in _steps(options):
        await asyncio.sleep(step.pause_s)
        if not options.quick and time.monotonic() >= deadline:
            return
        outcomes.ended = made.ended()
        if outcomes.ended:
            say(f"{', '.join(outcomes.ended)} ended without being struck: ended early")
            return
        say(" and ".join(map(str, step.faults)))
        async with asyncio.TaskGroup() as group:
            for fault in step.faults:
                group.create_task(_strike(made, outcomes.struck, fault), name=str(fault))
        # The next one strikes a cluster that works: what follows from what stays readable.
        if not await _answered_after(outcomes.ledger, time.monotonic()):
            say(f"no answer within {RECOVERY_S:g} s: ended early")
            return


async def _strike(made: Plant, struck: list[Struck], fault: Fault) -> None:
    entry = Struck(fault, time.monotonic())
    entry.broken_at = entry.mended_at = entry.began_at
    struck.append(entry)
    try:
        async with broken(made, fault):
            entry.broken_at = time.monotonic()
            await asyncio.sleep(fault.hold_s)
    except (Amp4ecError, OSError) as error:  # OSError: what was to be struck is not there
        entry.failure = str(error) or type(error).__name__
        say(f"{fault}: {error}")
    entry.mended_at = time.monotonic()


async def _answered_after(ledger: Ledger, moment: float) -> bool:
    """Wait until a job that was sent after `moment` is answered rightly; False when the time runs out."""

    def found() -> bool:
        # From the end: what was sent lately stands there.
        for job in reversed(ledger.jobs):
            if job.sent_at < moment:
                return False
            if job.outcome is Outcome.RIGHT:
                return True
        return False

    deadline = time.monotonic() + RECOVERY_S
    while not found():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


async def _settled(made: Plant, expected: Expected) -> frozenset[str]:
    """What is retained once it is as expected, or when the time for that is over."""
    with contextlib.suppress(Amp4ecError):  # the checks say it, with what was found instead
        await made.cluster.wait_for_nodes(len(AGENTS), _SETTLE_S)
    deadline = time.monotonic() + _SETTLE_S
    while True:
        url, root = made.cluster.url, made.cluster.root
        found = await asyncio.to_thread(retained_topics, url, root)
        if expected.fits(found) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(1.0)


async def _progress(outcomes: Outcomes) -> None:
    ledger, before = outcomes.ledger, 0
    while True:
        await asyncio.sleep(_PROGRESS_S)
        done = len(ledger.jobs) - ledger.open
        now = time.monotonic()
        active = [s.fault.kind for s in outcomes.struck if s.mended_at <= s.broken_at]
        say(
            f"{now - outcomes.began_at:5.0f} s  {done} answered, {(done - before) / _PROGRESS_S:.0f}/s,"
            f" {ledger.open} open  {_names(active)}"
        )
        before = done


def _names(kinds: Sequence[FaultKind]) -> str:
    return ", ".join(kinds)

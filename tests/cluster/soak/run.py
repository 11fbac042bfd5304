"""One soak: half load, a guest that joins and leaves every minute, and a look at everything once a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shared.client import Client
from tests.benchmarks.report import say
from tests.cluster.chaos.ledger import Ledger, Outcome
from tests.cluster.chaos.load import Load
from tests.cluster.chaos.plant import AGENTS, MODEL, Plant, plant
from tests.cluster.chaos.retained import retained_topics
from tests.cluster.chaos.samples import make_samples
from tests.cluster.chaos.usage import Usage
from tests.cluster.soak.trend import Trend, trend

_GUEST_S = 60.0
_LOOK_S = 2.0
_DRAIN_S = 60.0
_PROGRESS_S = 15.0
_FORGET_S = 120.0
"""After a sixth of it a guest that left is forgotten, and so is what was retained of it."""
_LEAST_POINTS = 20
_START_S = 5.0
_REMEMBERED_S = 630.0
"""An orchestrator remembers answers for 10 minutes: until then it fills, and so may what stands beside it."""
_ARTIFACTS = 64.0
"""What plans that move may have an orchestrator keep, which has a bound; an agent has those of its stages."""
_AGENT_MB, _OTHERS_MB = 32.0, 4.0
"""What may be more after half the time. Guests change the plan, and so how much of the model an agent has."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen from outside the processes, at a moment (monotonic)."""

    at: float
    retained: int
    queued: int
    """Jobs that wait in the orchestrator, and in the agents."""


@dataclass(slots=True)
class Soak:
    """Everything that a soak found."""

    began_at: float
    usage: Usage
    ledger: Ledger
    looks: list[Look] = field(default_factory=list)
    guests: int = 0
    ended_at: float = 0.0
    ended: dict[str, str] = field(default_factory=dict)

    def trends(self) -> list[Trend]:
        """Every series' trend; processes that lived the whole time only."""
        return list(self._trends())

    @property
    def unanswered(self) -> int:
        """Jobs that did not get the right answer."""
        return sum(job.outcome is not Outcome.RIGHT for job in self.ledger.jobs)

    def _trends(self) -> Iterator[Trend]:
        full_at = self.began_at + _REMEMBERED_S
        for name, life in self.usage.lives():
            if life[0].at > self.began_at + _START_S or len(life) < _LEAST_POINTS:
                continue
            agent = name in AGENTS
            steady = life if agent else [held for held in life if held.at >= full_at]
            if len(steady) >= _LEAST_POINTS:
                times = [held.at for held in steady]
                memory = [held.resident_bytes / 1e6 for held in steady]
                allowed = _AGENT_MB if agent else _OTHERS_MB
                yield trend(f"{name} memory", "MB", times, memory, allowed=allowed)
            times = [held.at for held in life]
            files = [float(held.files) for held in life]
            yield trend(f"{name} files", "open", times, files, allowed=1.0)
            artifacts = [float(held.artifacts) for held in life]
            yield trend(f"{name} artifacts", "open", times, artifacts, allowed=_ARTIFACTS)
            threads = [float(held.threads) for held in life]
            yield trend(f"{name} threads", "running", times, threads, allowed=1.0)
        times = [look.at for look in self.looks]
        if len(times) >= _LEAST_POINTS:
            retained = [float(look.retained) for look in self.looks]
            yield trend("retained topics", "kept", times, retained, allowed=1.0)
            queued = [float(look.queued) for look in self.looks]
            yield trend("queues", "jobs", times, queued, allowed=2.0)


async def run(directory: Path, minutes: float, seed: int, per_s: float, runtime: str) -> Soak:
    """Soak a cluster for `minutes`.

    Raises:
        Amp4ecError: the cluster could not be started.
    """
    say(f"preparing {MODEL} and what it answers")
    samples = await asyncio.to_thread(make_samples, MODEL, seed)
    forget = (f"--forget-after={_FORGET_S:g}s",)
    async with plant(directory, runtime, orchestrator_arguments=forget) as made:
        load = Load(made.cluster, MODEL, samples, per_s)
        soak = Soak(time.monotonic(), Usage(made.cluster), load.ledger)
        async with load.running(), soak.usage.watched(), made.cluster.client() as client:
            tasks = [
                asyncio.create_task(_guests(made, soak), name="guests"),
                asyncio.create_task(_look(made, client, soak), name="look"),
                asyncio.create_task(_progress(soak), name="progress"),
            ]
            over = asyncio.create_task(asyncio.sleep(minutes * 60), name="over")
            try:
                await asyncio.wait([*tasks, over], return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()
            finally:
                for task in (*tasks, over):
                    task.cancel()
                await asyncio.gather(*tasks, over, return_exceptions=True)
            soak.ended_at = time.monotonic()
            await load.drain(_DRAIN_S)
        soak.ended = {
            name: tail for name, tail in made.ended().items() if not name.startswith("guest")
        }
    return soak


async def _guests(made: Plant, soak: Soak) -> None:
    """Each a node of its own, as people's laptops are: none comes back."""
    while True:
        await asyncio.sleep(_GUEST_S / 2)
        soak.guests += 1
        name = f"guest-{soak.guests}"
        await made.start_agent(name)
        await asyncio.sleep(_GUEST_S / 2)
        await made.cluster.stop_agent(name)
        made.cluster.agents.pop(name)
        await asyncio.to_thread(made.cluster.network.remove, name)


async def _look(made: Plant, client: Client, soak: Soak) -> None:
    while True:
        await asyncio.sleep(_LOOK_S)
        url, root = made.cluster.url, made.cluster.root
        retained = await asyncio.to_thread(retained_topics, url, root)
        status = await client.status(wait_s=0.0)
        queued = sum(node.telemetry.queue for node in status.nodes if node.telemetry is not None)
        if status.metrics is not None:
            queued += sum(model.queued for model in status.metrics.models.values())
        soak.looks.append(Look(time.monotonic(), len(retained), queued))


async def _progress(soak: Soak) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_S)
        ledger = soak.ledger
        now = time.monotonic()
        memory = ", ".join(
            f"{name} {life[-1].resident_bytes / 1e6:.0f}"
            for name, life in soak.usage.lives()
            if life[-1].at > now - _LOOK_S  # the others have ended
        )
        last = soak.looks[-1] if soak.looks else Look(0.0, 0, 0)
        say(
            f"{now - soak.began_at:5.0f} s  {len(ledger.jobs) - ledger.open} answered,"
            f" {ledger.open} open, {last.retained} retained, {last.queued} queued; MB: {memory}"
        )

"""Jobs of one client: a window of them under way, or one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shared.client import Client

_JOB_S = 120.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time under load: answers per second, and the CPU seconds that were used per answer."""

    per_s: float
    cpu_s: float


@dataclass(slots=True)
class Load:
    """Jobs for one model."""

    client: Client
    model: str
    payload: bytes
    _answered: list[float] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def saturate(
        self, window: int, seconds: float, items: int, cpu_s: Callable[[], float]
    ) -> Stretch:
        """Keep `window` jobs under way; what counts begins when as many were answered: pipelines are full.

        In the end nobody waits for what is under way; see `drained`.

        Args:
            window: how many.
            seconds: how long to measure.
            items: and for how many answers at least.
            cpu_s: tells what the nodes have used so far.

        Raises:
            JobError: a job failed.
        """
        self._answered.clear()
        try:
            async with asyncio.TaskGroup() as group:
                lanes = [group.create_task(self._lane()) for _ in range(window)]
                found = await self._stretch(window, seconds, items, cpu_s)
                for lane in lanes:
                    lane.cancel()
        except ExceptionGroup as failed:
            # One reason ends all lanes, and whoever measures catches errors, not groups of them.
            raise failed.exceptions[0] from failed
        return found

    async def _stretch(
        self, window: int, seconds: float, items: int, cpu_s: Callable[[], float]
    ) -> Stretch:
        await self._reach(window)
        first, began, used_s = len(self._answered), time.monotonic(), cpu_s()
        await self._reach(first + items)
        await asyncio.sleep(began + seconds - time.monotonic())
        await self._reach(len(self._answered) + 1)  # from an answer to an answer
        count, used_s = len(self._answered) - first, cpu_s() - used_s
        lasted_s = self._answered[first + count - 1] - self._answered[first - 1]
        return Stretch(count / lasted_s, used_s / count)

    async def drained(self) -> None:
        """Wait for what a stretch left under way: a job that is sent now comes behind it.

        Raises:
            JobError: a job failed.
        """
        await self._ask()

    async def one_at_a_time(self, seconds: float, items: int) -> list[float]:
        """Milliseconds from sending to the answer, job after job, for so long and so many at least.

        Raises:
            JobError: a job failed.
        """
        latency_ms: list[float] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(latency_ms) < items:
            began = time.monotonic()
            await self._ask()
            latency_ms.append((time.monotonic() - began) * 1e3)
        return latency_ms

    async def _ask(self) -> None:
        await self.client.infer(self.model, self.payload, timeout_s=_JOB_S)

    async def _lane(self) -> None:
        while True:
            await self._ask()
            self._answered.append(time.monotonic())
            self._changed.set()

    async def _reach(self, count: int) -> None:
        while len(self._answered) < count:
            self._changed.clear()
            await self._changed.wait()

"""Jobs by the client: as many as a window allows, or a steady trickle; who asked, when answered, by what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from shared.client import Client, Result
from shared.errors import Amp4ecError, JobError
from tests.benchmarks.stats import summarise
from tests.benchmarks.watch import NotSeenError

_JOB_S = 60.0


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer: when it came (monotonic), after how long, and the result with its trace."""

    at: float
    latency_s: float
    result: Result

    @property
    def sent_at(self) -> float:
        """When the job was handed over."""
        return self.at - self.latency_s


@dataclass(frozen=True, slots=True)
class Interval:
    """What was answered within `seconds`."""

    seconds: float
    answered: tuple[Answered, ...]

    @property
    def per_s(self) -> float:
        """Answers per second."""
        return len(self.answered) / self.seconds

    def latency_ms(self) -> list[float]:
        """From the client's sending to its receipt of the answer."""
        return [each.latency_s * 1e3 for each in self.answered]


class Saturation:
    """Keeps `window` jobs under way. Use with `async with`; `measure` looks at a stretch of it."""

    def __init__(self, client: Client, model: str, payload: bytes, window: int) -> None:
        self.failed: list[JobError] = []
        self._client = client
        self._model = model
        self._payload = payload
        self._window = window
        self._answered: list[Answered] = []
        self._lanes: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    async def warm_up(self, jobs: int) -> None:
        """Wait until `jobs` more were answered: pipes are full, caches are warm."""
        await self._reach(len(self._answered) + jobs)

    async def measure(self, seconds: float) -> Interval:
        """What is answered within the next `seconds`."""
        first, began = len(self._answered), time.monotonic()
        await asyncio.sleep(seconds)
        self._check()
        return Interval(time.monotonic() - began, tuple(self._answered[first:]))

    async def measure_jobs(self, jobs: int) -> Interval:
        """The next `jobs` answers, and how long they took."""
        first, began = len(self._answered), time.monotonic()
        await self._reach(first + jobs)
        return Interval(time.monotonic() - began, tuple(self._answered[first : first + jobs]))

    async def __aenter__(self) -> Self:
        """Begin to ask."""
        self._lanes = [
            asyncio.create_task(self._lane(), name=f"load {index}") for index in range(self._window)
        ]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ask no more, and wait for what is under way."""
        self._window = 0
        await asyncio.gather(*self._lanes, return_exceptions=True)

    async def _lane(self) -> None:
        try:
            while self._window:
                began = time.monotonic()
                try:
                    result = await self._client.infer(self._model, self._payload, timeout_s=_JOB_S)
                except JobError as error:
                    self.failed.append(error)
                    continue
                now = time.monotonic()
                self._answered.append(Answered(now, now - began, result))
                self._changed.set()
        finally:
            self._changed.set()

    async def _reach(self, count: int) -> None:
        while len(self._answered) < count:
            self._check()
            self._changed.clear()
            await self._changed.wait()

    def _check(self) -> None:
        """A lane ends early only by an error that no later job would survive either."""
        for lane in self._lanes:
            if lane.done():
                lane.result()
        if self.failed:
            raise self.failed[0]


@dataclass(slots=True)
class Trickle:
    """A job every `period_s`, whatever became of those before. Use with `async with`."""

    client: Client
    model: str
    payload: bytes
    period_s: float
    sent: int = 0
    answered: list[Answered] = field(default_factory=list)
    failed: list[Amp4ecError] = field(default_factory=list)
    _jobs: dict[asyncio.Task[None], float] = field(default_factory=dict)
    """Those under way, with when they were sent."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _pump: asyncio.Task[None] | None = None

    async def newer_than(self, generation: int, timeout_s: float) -> Answered:
        """The first answer by a generation above `generation`, come or to come.

        Raises:
            NotSeenError: there was none in time.
        """
        return await self.first(
            f"of a generation above {generation}",
            lambda answer: answer.result.generation > generation,
            timeout_s,
        )

    async def first(
        self, what: str, holds: Callable[[Answered], bool], timeout_s: float
    ) -> Answered:
        """The first answer of which `holds` says so, come or to come.

        Raises:
            NotSeenError: there was none in time.
        """
        looked = 0
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    while looked < len(self.answered):
                        answer = self.answered[looked]
                        if holds(answer):
                            return answer
                        looked += 1
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            last = f"; the last error: {self.failed[-1]}" if self.failed else ""
            raise NotSeenError(
                f"no answer {what} within {timeout_s:g} s",
                got=f"{len(self.answered)} answers to {self.sent} jobs{last}",
            ) from None

    async def answers_until(self, moment: float, timeout_s: float) -> None:
        """Wait until every job that was sent by then has ended.

        Raises:
            NotSeenError: one has not in time.
        """
        waiting = [job for job, sent_at in self._jobs.items() if sent_at <= moment]
        if waiting and (await asyncio.wait(waiting, timeout=timeout_s))[1]:
            raise NotSeenError(f"no answer to a job for {timeout_s:g} s", got="silence")

    def latencies_ms(self) -> list[float]:
        """Of all that were answered."""
        return [each.latency_s * 1e3 for each in self.answered]

    async def __aenter__(self) -> Self:
        """Begin to ask."""
        self._pump = asyncio.create_task(self._send(), name="trickle")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ask no more, and wait for every answer."""
        assert self._pump is not None
        self._pump.cancel()
        await asyncio.gather(self._pump, *self._jobs, return_exceptions=True)

    async def _send(self) -> None:
        due = time.monotonic()
        while True:
            job = asyncio.create_task(self._ask(), name=f"trickle {self.sent}")
            self.sent += 1
            self._jobs[job] = time.monotonic()
            job.add_done_callback(self._jobs.pop)
            due += self.period_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _ask(self) -> None:
        began = time.monotonic()
        try:
            result = await self.client.infer(self.model, self.payload, timeout_s=_JOB_S)
        except Amp4ecError as error:
            self.failed.append(error)
            return
        now = time.monotonic()
        self.answered.append(Answered(now, now - began, result))
        self._changed.set()


def describe(values_ms: list[float], digits: int = 0) -> str:
    """Median and 95th percentile, for the column of what a figure is compared with."""
    summary = summarise(values_ms)
    high = summary.spread.rpartition("..")[2]
    return f"p50 {summary.median:.{digits}f}, {high} {summary.high:.{digits}f} ms"

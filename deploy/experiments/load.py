"""A client that keeps requests under way, and what became of them."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np

from shared.client import Client, Result
from shared.errors import Amp4ecError, JobError

REQUEST_S = 120.0
"""How long a request may take: a model may be loaded anew meanwhile."""


Choose: TypeAlias = Callable[[], Sequence[bytes]]
"""Gives the images of the next request."""


@dataclass(frozen=True, slots=True)
class Done:
    """A request that was answered: when (monotonic), after how long, and its images' results."""

    at: float
    latency_s: float
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """What came within `seconds`, from `began` on."""

    began: float
    seconds: float
    done: tuple[Done, ...]
    failed: int

    @property
    def images(self) -> int:
        """How many were answered."""
        return sum(len(each.results) for each in self.done)

    @property
    def per_s(self) -> float:
        """Images answered per second."""
        return self.images / self.seconds

    def latency_ms(self, share: float = 0.5) -> float | None:
        """A quantile of the requests' latencies, as the client sees them."""
        if not self.done:
            return None
        return float(np.quantile([each.latency_s for each in self.done], share)) * 1e3

    def transit_ms(self) -> float | None:
        """Mean milliseconds per image that no stage computed or had in its queue: the way between."""
        sums = [
            sum(entry.transit_s for entry in result.trace)
            for each in self.done
            for result in each.results
            if not result.cached
        ]
        return statistics.fmean(sums) * 1e3 if sums else None

    def cached_ratio(self) -> float:
        """The share of the images that an equal one was answered for."""
        cached = sum(result.cached for each in self.done for result in each.results)
        return cached / self.images if self.images else 0.0

    def exact_ratio(self) -> float:
        """The share of the answers that say that they are exact."""
        exact = sum(result.exact for each in self.done for result in each.results)
        return exact / self.images if self.images else 0.0

    def per_second(self) -> list[float]:
        """Images answered in each second from `began` on."""
        counts = [0.0] * max(int(self.seconds), 1)
        for each in self.done:
            second = int(each.at - self.began)
            if 0 <= second < len(counts):
                counts[second] += len(each.results)
        return counts


@dataclass(slots=True)
class Load:
    """Keeps `under_way` requests of `batch` images under way. Use with `async with`.

    `choose` gives the images of the next request. A request that fails is counted; the next one follows.
    """

    client: Client
    model: str
    choose: Choose
    under_way: int
    done: list[Done] = field(default_factory=list)
    failed: list[Amp4ecError] = field(default_factory=list)
    _lanes: list[asyncio.Task[None]] = field(default_factory=list)
    _over: bool = False

    async def stretch(self, seconds: float) -> Stretch:
        """What is answered within the next `seconds`.

        Raises:
            Amp4ecError: nothing was, and why the latest failed.
        """
        first, failed, began = len(self.done), len(self.failed), time.monotonic()
        await asyncio.sleep(seconds)
        for lane in self._lanes:
            if lane.done():
                lane.result()
        took = Stretch(
            began, time.monotonic() - began, tuple(self.done[first:]), len(self.failed) - failed
        )
        if not took.done and took.failed:
            raise self.failed[-1]
        return took

    async def __aenter__(self) -> Self:
        """Begin to ask."""
        self._lanes = [
            asyncio.create_task(self._lane(), name=f"load {index}")
            for index in range(self.under_way)
        ]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ask no more, and wait for what is under way."""
        self._over = True
        await asyncio.gather(*self._lanes, return_exceptions=True)

    async def _lane(self) -> None:
        while not self._over:
            began = time.monotonic()
            try:
                results = await ask(self.client, self.model, self.choose())
            except Amp4ecError as error:
                self.failed.append(error)
                await asyncio.sleep(0.05)
                continue
            now = time.monotonic()
            self.done.append(Done(now, now - began, results))


async def ask(client: Client, model: str, images: Sequence[bytes]) -> tuple[Result, ...]:
    """The answers of one request: an image, or a batch.

    Raises:
        JobError: it failed, or one of its images did.
        BrokerUnreachableError: the broker went away.
    """
    if len(images) == 1:
        return (await client.infer(model, images[0], timeout_s=REQUEST_S),)
    answers = await client.infer_batch(model, images, timeout_s=REQUEST_S)
    results = []
    for answer in answers:
        if isinstance(answer, JobError):
            raise answer
        results.append(answer)
    return tuple(results)


def drawn(pool: Sequence[bytes], batch: int, exponent: float, seed: int) -> Choose:
    """Images of `pool` by Zipf's law, `batch` in a request: the first comes most often."""
    random, chances = np.random.default_rng(seed), zipf(len(pool), exponent)
    return lambda: [pool[index] for index in random.choice(len(pool), batch, p=chances)]


def zipf(count: int, exponent: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The chance of each of `count` inputs: proportional to 1 / rank ** exponent."""
    weights = 1.0 / np.arange(1, count + 1) ** exponent
    chances: np.ndarray[tuple[int], np.dtype[np.float64]] = weights / weights.sum()
    return chances

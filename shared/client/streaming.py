"""A stream of jobs: inputs in, what became of each out, in order; so many under way and no more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from shared.client.iterating import Iterating
from shared.client.results import Result
from shared.errors import Amp4ecError, ErrorCode, JobError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed(Generic[T]):
    """An input of a stream, and what became of it.

    Attributes:
        index: the input's number in the source, from 0. With `latest` the numbers that are left out are those
            of the inputs that gave way to newer ones.
        input: as the source gave it.
        outcome: the `result`, or the `error` that there is instead.
    """

    index: int
    input: T = field(repr=False, compare=False)  # arrays compare by item
    outcome: Result | Amp4ecError

    @property
    def result(self) -> Result:
        """The result.

        Raises:
            Amp4ecError: the job has none; this is why, as `Client.infer` would have raised it.
        """
        if isinstance(self.outcome, Amp4ecError):
            raise self.outcome
        return self.outcome

    @property
    def error(self) -> Amp4ecError | None:
        """Why there is no result; None where there is one."""
        return self.outcome if isinstance(self.outcome, Amp4ecError) else None


async def in_order(
    source: Iterable[T] | AsyncIterable[T],
    ask: Callable[[T], Awaitable[Result]],
    *,
    window: int,
    latest: bool,
    raise_errors: bool,
) -> AsyncGenerator[Streamed[T]]:
    """What `Client.stream` promises, of any way to ask.

    Nothing outlives it: closed, cancelled or ended by an error it cancels what is under way.
    """
    flow = _Flow(ask, window=window, latest=latest)
    feeding = asyncio.create_task(flow.feed(source), name="stream: read the source")
    try:
        while (item := await flow.next()) is not None:
            if raise_errors and item.error is not None:
                raise item.error
            yield item
        await feeding  # raises what the source did
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, *flow.cancel(), return_exceptions=True)


@dataclass(slots=True)
class _Asked(Generic[T]):
    index: int
    input: T
    answer: asyncio.Task[Result]


class _Flow(Generic[T]):
    """What is between the source and who takes the answers.

    An answer that nobody has taken counts as under way: who takes slowly is given slowly.
    """

    def __init__(self, ask: Callable[[T], Awaitable[Result]], *, window: int, latest: bool) -> None:
        self._ask = ask
        self._window = window
        self._latest = latest
        self._under_way: deque[_Asked[T]] = deque()
        self._newest: tuple[int, T] | None = None
        """With `latest`: what goes as soon as there is room, unless something newer comes."""
        self._ended = False
        self._changed = asyncio.Event()

    async def feed(self, source: Iterable[T] | AsyncIterable[T]) -> None:
        """Read the source to its end: as far as there is room or, with `latest`, as fast as it gives."""
        try:
            async with aclosing(Iterating(source)) as inputs:
                index = 0
                await self._room()
                async for given in inputs:
                    self._take(index, given)
                    index += 1
                    await self._room()
        finally:
            self._ended = True
            self._changed.set()

    async def next(self) -> Streamed[T] | None:
        """The next in order with its outcome, once it is known; None at the end of the source."""
        while True:
            await self._until(lambda: bool(self._under_way) or self._ended)
            if not self._under_way:
                return None
            first = self._under_way[0]
            await asyncio.wait([first.answer])
            self._under_way.popleft()
            if self._newest is not None:
                self._send(*self._newest)
                self._newest = None
            self._changed.set()
            outcome = _outcome(first.answer)
            if self._latest and _superseded(outcome):
                continue
            return Streamed(index=first.index, input=first.input, outcome=outcome)

    def cancel(self) -> list[asyncio.Task[Result]]:
        """Cancel what is under way; await what is returned to see it end."""
        answers = [asked.answer for asked in self._under_way]
        for answer in answers:
            answer.cancel()
        return answers

    def _take(self, index: int, given: T) -> None:
        if len(self._under_way) < self._window:
            self._send(index, given)
        else:
            self._newest = (index, given)

    def _send(self, index: int, given: T) -> None:
        answer = asyncio.ensure_future(self._asked(given))
        self._under_way.append(_Asked(index, given, answer))
        self._changed.set()

    async def _asked(self, given: T) -> Result:
        return await self._ask(given)

    async def _room(self) -> None:
        if self._latest:
            await asyncio.sleep(0)  # a source that never waits must not keep the loop
        else:
            await self._until(lambda: len(self._under_way) < self._window)

    async def _until(self, holds: Callable[[], bool]) -> None:
        # Two wait here, the feeder and who takes: each looks again whenever anything changed.
        while not holds():
            self._changed.clear()
            await self._changed.wait()


def _outcome(answer: asyncio.Task[Result]) -> Result | Amp4ecError:
    if not answer.cancelled():
        error = answer.exception()
        if isinstance(error, Amp4ecError):
            return error
    return answer.result()


def _superseded(outcome: Result | Amp4ecError) -> bool:
    return isinstance(outcome, JobError) and outcome.code is ErrorCode.SUPERSEDED

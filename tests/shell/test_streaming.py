"""A stream's order, bounds and ends, with answers that the test gives when it likes."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.client.results import Result, read_answer
from shared.client.streaming import in_order
from shared.codec import encode_json
from shared.errors import ErrorCode, JobError
from shared.messages.job import Answer


def result(number: int) -> Result:
    answer = Answer(
        job=str(number), model="m", top=[], pipeline="m-0", generation=1, nodes=[], latency_ms=1,
        trace=[], weights="none",
    )  # fmt: skip
    read = read_answer(encode_json(answer))
    assert isinstance(read, Result)
    return read


@dataclass
class Cluster:
    """Answers when it is told to; knows how much was asked of it at once."""

    waiting: dict[int, asyncio.Future[Result]] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    most: int = 0

    async def ask(self, number: int) -> Result:
        answer = self.waiting[number] = asyncio.get_running_loop().create_future()
        self.asked.append(number)
        self.most = max(self.most, len(self.waiting))
        try:
            return await answer
        finally:
            del self.waiting[number]

    async def until(self, *numbers: int) -> None:
        """These are waiting."""
        async with asyncio.timeout(10):
            while not set(numbers) <= self.waiting.keys():  # noqa: ASYNC110 (polled with a deadline)
                await asyncio.sleep(0)

    def answer(self, number: int) -> None:
        self.waiting[number].set_result(result(number))

    def fail(self, number: int, code: ErrorCode) -> None:
        self.waiting[number].set_exception(JobError(code, "no"))


async def echo(number: int) -> Result:
    return result(number)


async def give(numbers: int, given: list[int] | None = None) -> AsyncIterator[int]:
    for number in range(numbers):
        if given is not None:
            given.append(number)
        yield number


@given(st.integers(0, 20), st.integers(1, 6), st.permutations(range(20)))
def test_each_once_in_order_and_never_too_many_at_once(
    count: int, window: int, turns: list[int]
) -> None:
    """Whatever the order in which the answers come."""

    async def run() -> tuple[list[int], Cluster]:
        cluster = Cluster()

        async def answer() -> None:
            while True:
                open_ = [number for number, job in cluster.waiting.items() if not job.done()]
                if open_:
                    cluster.answer(min(open_, key=turns.index))
                await asyncio.sleep(0)

        answering = asyncio.create_task(answer())
        stream = in_order(give(count), cluster.ask, window=window, latest=False, raise_errors=False)
        taken = [int(item.result.job) async for item in stream]
        answering.cancel()
        return taken, cluster

    taken, cluster = asyncio.run(run())
    assert taken == list(range(count))
    assert cluster.most <= window
    assert cluster.waiting == {}


async def test_who_takes_slowly_is_given_slowly() -> None:
    given_out: list[int] = []
    stream = in_order(give(100, given_out), echo, window=3, latest=False, raise_errors=False)
    async with aclosing(stream):
        assert (await anext(stream)).index == 0
        for _ in range(100):
            await asyncio.sleep(0)
        # One is taken, three are answered and wait; the source was asked for no more.
        assert given_out == [0, 1, 2, 3]


async def test_latest_keeps_the_newest_of_what_waits() -> None:
    cluster = Cluster()
    all_given = asyncio.Event()

    async def camera() -> AsyncIterator[int]:
        for number in range(10):
            yield number
        all_given.set()

    stream = in_order(camera(), cluster.ask, window=2, latest=True, raise_errors=False)
    first = asyncio.ensure_future(anext(stream))
    await all_given.wait()
    assert cluster.asked == [0, 1]
    cluster.answer(0)
    assert (await first).index == 0
    await cluster.until(1, 9)
    cluster.answer(9)
    cluster.answer(1)
    assert [item.index async for item in stream] == [1, 9]
    assert cluster.asked == [0, 1, 9]


async def test_what_the_cluster_gave_up_for_a_newer_one_is_left_out() -> None:
    cluster = Cluster()
    stream = in_order(give(3), cluster.ask, window=3, latest=True, raise_errors=True)
    taking = asyncio.ensure_future(anext(stream))
    await cluster.until(0, 1, 2)
    cluster.fail(0, ErrorCode.SUPERSEDED)
    cluster.fail(1, ErrorCode.SUPERSEDED)
    cluster.answer(2)
    assert (await taking).index == 2
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_source_that_never_waits_does_not_keep_the_loop() -> None:
    async def endless() -> AsyncIterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    stream = in_order(endless(), echo, window=1, latest=True, raise_errors=False)
    async with asyncio.timeout(10), aclosing(stream):
        indices = [(await anext(stream)).index for _ in range(5)]
    assert indices == sorted(set(indices))


async def failing(number: int) -> Result:
    if number % 2:
        raise JobError(ErrorCode.BAD_INPUT, "odd")
    return result(number)


async def test_one_that_fails_does_not_end_it() -> None:
    stream = in_order(give(4), failing, window=2, latest=False, raise_errors=False)
    items = [item async for item in stream]
    assert [item.error is None for item in items] == [True, False, True, False]
    with pytest.raises(JobError, match="odd"):
        _ = items[1].result


async def test_unless_it_is_asked_to() -> None:
    cluster = Cluster()

    async def ask(number: int) -> Result:
        return await (failing(number) if number == 1 else cluster.ask(number))

    taken = []
    stream = in_order(give(9), ask, window=3, latest=False, raise_errors=True)

    async def take() -> None:
        async for item in stream:
            taken.append(item.index)  # noqa: PERF401 (what came before the error counts)

    taking = asyncio.create_task(take())
    await cluster.until(0, 2)
    cluster.answer(0)
    with pytest.raises(JobError, match="odd"):
        await taking
    assert taken == [0]
    assert cluster.waiting == {}


@pytest.mark.parametrize("plain", [True, False])
async def test_what_the_source_raises_comes_after_the_answers(plain: bool) -> None:
    def broken() -> Iterator[int]:
        yield 0
        yield 1
        raise OSError("the camera is gone")

    async def broken_too() -> AsyncIterator[int]:
        for number in broken():
            yield number

    source = broken() if plain else broken_too()
    stream = in_order(source, echo, window=8, latest=False, raise_errors=False)
    assert [(await anext(stream)).index, (await anext(stream)).index] == [0, 1]
    with pytest.raises(OSError, match="camera"):
        await anext(stream)


async def test_what_is_no_source_says_so() -> None:
    with pytest.raises(TypeError, match="iterable"):
        async for _ in in_order(3, echo, window=8, latest=False, raise_errors=False):  # type: ignore[arg-type]
            pass


async def test_a_fault_in_what_asks_ends_it() -> None:
    async def ask(number: int) -> Result:
        raise ZeroDivisionError(number)

    with pytest.raises(ZeroDivisionError):
        async for _ in in_order(give(3), ask, window=8, latest=False, raise_errors=False):
            pass


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_ends_all_of_it(plain: bool, how: str) -> None:
    """What is under way is cancelled, a generator's `finally` has run, and no task is left."""
    cluster, closed = Cluster(), threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.set()

    async def async_source() -> AsyncIterator[int]:
        try:
            for number in range(100):
                yield number
        finally:
            closed.set()

    stream = in_order(
        source() if plain else async_source(),
        cluster.ask,
        window=3,
        latest=False,
        raise_errors=False,
    )
    taking = asyncio.ensure_future(anext(stream))
    await cluster.until(0, 1, 2)
    if how == "cancel":
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
    else:
        cluster.answer(0)
        await taking
        await cluster.until(1, 2, 3)
        await stream.aclose()
    assert cluster.waiting == {}
    assert closed.is_set()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_leaving_the_loop_is_enough() -> None:
    cluster = Cluster()

    async def ask(number: int) -> Result:
        return await (cluster.ask(number) if number else echo(number))

    async for item in in_order(give(9), ask, window=3, latest=False, raise_errors=False):
        assert item.index == 0
        await cluster.until(1, 2, 3)
        break
    async with asyncio.timeout(10):
        while cluster.waiting:  # noqa: ASYNC110 (the loop closes it soon)
            await asyncio.sleep(0)


async def test_a_plain_source_may_block_in_its_one_thread() -> None:
    threads: list[threading.Thread] = []
    gate = threading.Event()

    def source() -> Iterator[int]:
        for number in range(3):
            threads.append(threading.current_thread())
            yield number
            assert gate.wait(10)

    stream = in_order(source(), echo, window=8, latest=False, raise_errors=False)
    # It blocks after its first item, and the loop goes on: the answer to that comes.
    assert (await anext(stream)).index == 0
    gate.set()
    assert [item.index async for item in stream] == [1, 2]
    assert len(set(threads)) == 1
    assert threads[0] is not threading.main_thread()


async def test_one_that_blocks_for_ever_does_not_keep_the_end() -> None:
    gate, closed = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        try:
            yield 0
            gate.wait()
        finally:
            closed.set()

    stream = in_order(source(), echo, window=8, latest=False, raise_errors=False)
    assert (await anext(stream)).index == 0
    async with asyncio.timeout(10):
        await stream.aclose()
    assert not closed.is_set()
    gate.set()
    assert await asyncio.to_thread(closed.wait, 10)


async def test_a_queue_as_a_source() -> None:
    """Anything with `__iter__`, also what is no generator and has nothing to close."""
    stream = in_order(deque([4, 5]), echo, window=8, latest=False, raise_errors=False)
    assert [item.input async for item in stream] == [4, 5]

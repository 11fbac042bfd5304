"""Any iterable as an async iterator: a plain one is asked in a thread of its own, since it may block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
)
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

_END: Final = object()
"""A future cannot hold a StopIteration."""


class Iterating(Generic[T]):
    """The items of `source`. Close it with `aclose`: a generator is closed then, too.

    A plain iterable is asked for all its items by one thread, a daemon: one that blocks for ever keeps
    neither the event loop nor the interpreter's end.
    """

    def __init__(self, source: Iterable[T] | AsyncIterable[T]) -> None:
        self._items: AsyncIterator[T] = (
            aiter(source) if isinstance(source, AsyncIterable) else _Threaded(source)
        )

    def __aiter__(self) -> AsyncIterator[T]:
        """The items, once."""
        return self._items

    async def aclose(self) -> None:
        """End: a generator's `finally` has run then, unless it is blocked in its thread."""
        if isinstance(self._items, AsyncGenerator | _Threaded):
            await self._items.aclose()


class _Threaded(Generic[T]):
    def __init__(self, source: Iterable[T]) -> None:
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._work: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = (
            SimpleQueue()
        )
        self._busy = False
        self._items: Any = None
        self._thread = threading.Thread(target=self._run, name="stream: source", daemon=True)
        self._thread.start()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        item: T = await self._do(self._next)
        if item is _END:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        blocked = self._busy
        closed = self._do(self._close)
        self._work.put(None)
        if not blocked:
            await closed

    def _do(self, what: Callable[[], Any]) -> asyncio.Future[Any]:
        done = self._loop.create_future()
        self._busy = True
        self._work.put((what, done))
        return done

    def _settle(self, done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._busy = False
        if done.done():  # cancelled meanwhile
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            what, done = work
            result, error = None, None
            try:
                result = what()
            except BaseException as raised:  # noqa: BLE001 - it is raised where the items are awaited
                error = raised
            try:
                self._loop.call_soon_threadsafe(self._settle, done, result, error)
            except RuntimeError:  # the loop has ended while the source was blocked
                self._close()
                return

    def _next(self) -> Any:
        if self._items is None:
            self._items = iter(self._source)
        return next(self._items, _END)

    def _close(self) -> None:
        if isinstance(self._items, Generator):
            self._items.close()

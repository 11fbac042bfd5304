"""The client for programs without asyncio: the async one, run by a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

from shared.bus import BrokerUrl
from shared.client.client import WINDOW, Client
from shared.client.inputs import Input
from shared.client.results import Result
from shared.client.status import ClusterStatus
from shared.client.streaming import Streamed
from shared.errors import ConfigurationError, ErrorCode, JobError
from shared.job_options import DEFAULT_PRIORITY
from shared.topics import DEFAULT_ROOT

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def _as(method: Callable[..., Any]) -> Callable[[F], F]:
    """Give a function the documentation of the async client's."""

    def documented(function: F) -> F:
        function.__doc__ = method.__doc__
        return function

    return documented


class SyncClient:
    """Sends inference jobs to a cluster; the twin of `Client` for programs without asyncio.

    ::

        with SyncClient("mqtt://localhost:1883") as client:
            result = client.infer("mobilenet_v2", "cat.jpg")
            print(result.best, result.latency_s)

            for item in client.stream("mobilenet_v2", camera()):
                print(item.index, item.result.best)

    Or, in a notebook: `client = SyncClient(url).open()`, and `client.close()` at the end. It may be used by
    several threads at once. Methods, arguments, results and errors are those of `Client`; Ctrl-C ends a wait
    and cancels what it waited for.
    """

    def __init__(
        self, broker: str | BrokerUrl, *, root: str = DEFAULT_ROOT, connect_timeout_s: float = 10.0
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            broker: `mqtt://[user:password@]host[:port]`, `mqtts://...`, `host:port`, or a token: its text,
                or `@` and the name of its file.
            root: the root topic of the cluster.
            connect_timeout_s: how long connecting may wait for the broker.

        Raises:
            ConfigurationError: the address or the root topic makes no sense.
        """
        self._client = Client(broker, root=root, connect_timeout_s=connect_timeout_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> BrokerUrl:
        """The broker's address."""
        return self._client.url

    @property
    def name(self) -> str:
        """What the cluster knows this client by: its answers come below `result/{name}/`."""
        return self._client.name

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the broker now; a lost one is made again by itself."""
        return self._client.connected

    def open(self) -> Self:
        """Connect; `with` does.

        Raises:
            BrokerUnreachableError: nobody answers at the broker's address, or the login is refused.
            ConfigurationError: this client was connected before: make a new one.
        """
        with self._lock:
            if self._thread is not None:
                raise ConfigurationError("a client connects once", expected="a new SyncClient")
            started = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(started,), name=self.name, daemon=True
            )
            self._thread.start()
            started.wait()
        try:
            self._call(self._client.__aenter__())
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Disconnect. What other threads still wait for ends as a `JobError`, `unavailable`."""
        with self._lock:
            loop, self._loop = self._loop, None
            thread = self._thread
        if loop is None or thread is None:
            return
        closing = asyncio.run_coroutine_threadsafe(self._client.__aexit__(None, None, None), loop)
        try:
            closing.result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def __enter__(self) -> Self:
        """Connect, as `open`, where that has not been done."""
        return self if self._loop is not None else self.open()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect."""
        self.close()

    @_as(Client.infer)
    def infer(
        self,
        model: str,
        image: Input,
        *,
        timeout_s: float = 60.0,
        deadline_s: float | None = None,
        tensors: bool = False,
        priority: int = DEFAULT_PRIORITY,
        latest: bool = False,
        retry: bool = True,
    ) -> Result:
        return self._call(
            self._client.infer(
                model,
                image,
                timeout_s=timeout_s,
                deadline_s=deadline_s,
                tensors=tensors,
                priority=priority,
                latest=latest,
                retry=retry,
            )
        )

    @_as(Client.infer_batch)
    def infer_batch(
        self,
        model: str,
        images: Iterable[Input],
        *,
        timeout_s: float = 120.0,
        deadline_s: float | None = None,
        tensors: bool = False,
        priority: int = DEFAULT_PRIORITY,
        retry: bool = True,
    ) -> list[Result | JobError]:
        return self._call(
            self._client.infer_batch(
                model,
                images,
                timeout_s=timeout_s,
                deadline_s=deadline_s,
                tensors=tensors,
                priority=priority,
                retry=retry,
            )
        )

    def stream(
        self,
        model: str,
        source: Iterable[T] | AsyncIterable[T],
        *,
        image: Callable[[T], Input] | None = None,
        window: int = WINDOW,
        timeout_s: float = 60.0,
        deadline_s: float | None = None,
        tensors: bool = False,
        priority: int = DEFAULT_PRIORITY,
        latest: bool = False,
        retry: bool = True,
        raise_errors: bool = False,
    ) -> Generator[Streamed[T]]:
        items = self._client.stream(
            model,
            source,
            image=image,
            window=window,
            timeout_s=timeout_s,
            deadline_s=deadline_s,
            tensors=tensors,
            priority=priority,
            latest=latest,
            retry=retry,
            raise_errors=raise_errors,
        )
        return self._taken(items)

    stream.__doc__ = (
        (Client.stream.__doc__ or "").replace("async for", "for").replace("aclose()", "close()")
    )

    @_as(Client.status)
    def status(self, *, wait_s: float = 1.5) -> ClusterStatus:
        return self._call(self._client.status(wait_s=wait_s))

    def _run(self, started: threading.Event) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            started.set()
            self._loop.run_forever()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with self._lock:  # what comes before the end of the loop ends with it
            if self._loop is None:
                coroutine.close()
                raise ConfigurationError(
                    "this client is not connected",
                    expected="use within `with SyncClient(url) as client:`, or after `open()`",
                )
            answer = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return answer.result()
        except concurrent.futures.CancelledError:
            raise JobError(
                ErrorCode.UNAVAILABLE, "the client was closed before the answer came"
            ) from None
        finally:
            answer.cancel()  # Ctrl-C: nobody waits for it any more

    def _taken(self, items: AsyncGenerator[Streamed[T]]) -> Generator[Streamed[T]]:
        async def following() -> Streamed[T] | None:
            return await anext(items, None)

        try:
            while (item := self._call(following())) is not None:
                yield item
        finally:
            # Collected in the loop's own thread it must not wait for that, which closes it by itself; nor at
            # the interpreter's end, where that thread runs no more.
            here = threading.current_thread() is self._thread or sys.is_finalizing()
            if self._loop is not None and not here:
                self._call(items.aclose())

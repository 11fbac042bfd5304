"""The async client: inputs in, typed results out; `sync.py` has its twin for programs without asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from shared.bus import BrokerUrl, ControlBus
from shared.client.conversation import Conversation
from shared.client.inputs import Input, Payload, PilImage, encode_batch, encode_input
from shared.client.pending import Wishes
from shared.client.results import Result
from shared.client.status import ClusterStatus
from shared.client.streaming import Streamed, in_order
from shared.errors import ConfigurationError, JobError, ProtocolError
from shared.ids import check_name
from shared.job_options import DEFAULT_PRIORITY, Policy
from shared.topics import DEFAULT_ROOT, Topics

T = TypeVar("T")

WINDOW = 8
"""Inputs of a stream under way: enough to keep a pipeline's stages busy, little beside other clients."""
_TELEMETRY_S = 1.5
"""How long a status waits for the telemetry of nodes that are online; they send at 1 Hz."""


class Client:
    """Sends inference jobs to a cluster. Use with `async with`; one client serves any number of jobs at once.

    ::

        async with Client("mqtt://localhost:1883") as client:
            result = await client.infer("mobilenet_v2", "cat.jpg")
            print(result.best, result.latency_s)

            async for item in client.stream("mobilenet_v2", frames()):
                print(item.index, item.result.best)

    An input is a path, a file's bytes, a PIL image, a NumPy array (or what NumPy makes one of), or several
    arrays by name: see `infer`. For programs without asyncio there is `SyncClient`, with the same methods.

    While a job waits, the connection to the broker may be lost and come back, the broker or the orchestrator
    may be restarted, nodes may come and go: the job is published again under its own identity until it is
    answered or its `timeout_s` has passed, and is run once. Cancelling the task that awaits it ends the wait.

    What is raised on purpose is an `Amp4ecError`: `JobError` with a `code` (an `ErrorCode`) where the cluster
    refused or failed a job, and two that are `TimeoutError`, too, and name in `waited_for` what did not come:
    `JobTimeoutError` ("answer" or "orchestrator") and `BrokerTimeoutError` ("broker").
    """

    def __init__(
        self,
        broker: str | BrokerUrl,
        *,
        root: str = DEFAULT_ROOT,
        connect_timeout_s: float = 10.0,
        bus: ControlBus | None = None,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            broker: `mqtt://[user:password@]host[:port]`, `mqtts://...`, `host:port`, or a token: its text,
                or `@` and the name of its file.
            root: the root topic of the cluster.
            connect_timeout_s: how long entering may wait for the broker.
            bus: a bus to use instead of a connection of the client's own.

        Raises:
            ConfigurationError: the address or the root topic makes no sense.
        """
        self.url = BrokerUrl.parse(broker) if isinstance(broker, str) else broker
        self._conversation = Conversation(self.url, root, connect_timeout_s, bus)

    @property
    def name(self) -> str:
        """What the cluster knows this client by: its answers come below `result/{name}/`."""
        return self._conversation.name

    @property
    def topics(self) -> Topics:
        """The cluster's topics, below its root."""
        return self._conversation.topics

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the broker now; a lost one is made again by itself."""
        return self._conversation.bus.connected

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            BrokerUnreachableError: nobody answers at the broker's address, or the login is refused.
            ConfigurationError: this client was connected before: make a new one.
        """
        await self._conversation.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect. Jobs that still wait end with `asyncio.CancelledError`."""
        await self._conversation.close()

    async def infer(
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
        """Run `model` on one input.

        ::

            result = await client.infer("mobilenet_v2", "cat.jpg", deadline_s=2.0)
            print(result.best.label, result.best.probability, result.latency_s, result.nodes)

        Args:
            model: the name under which the model is served; `status` lists them.
            image: a path, a file's bytes (JPEG, PNG, WebP or .npy), a PIL image, a uint8 array
                [height, width] or [height, width, 1, 3 or 4] (a photograph), any other array (a tensor,
                taken as it is), or a mapping of arrays by the names of the model's inputs.
            timeout_s: how long to wait here.
            deadline_s: how long the cluster may take; beyond it the answer is an error, `deadline`. None
                lets it take its time.
            tensors: whether to return the model's raw outputs, too (`Result.tensors`).
            priority: 0 to 9; of what waits, the highest goes first.
            latest: for a camera's frames: while this one waits in the queue, a newer one that this client
                sends for the same model with `latest` takes its place, and here it ends as `superseded`.
            retry: whether a job that is refused as `overloaded` is sent again after the time that the
                refusal names, and longer each time, as long as `timeout_s` and `deadline_s` allow; never
                with `latest`, where a newer frame is worth more.

        Returns:
            The answer, a `Result`: `best` and `top` (labels), `latency_s`, `nodes`, `trace`, `exact`,
            `cached`, `tensors` (see `help(amp4ec.Result)`).

        Raises:
            JobError: the job ended in an error; `code`, `message`, `expected`, `got`, `retry_after_s`.
            JobTimeoutError: no answer in time; a `TimeoutError`, too.
            BrokerTimeoutError: the broker went away and did not come back in time; a `TimeoutError`, too.
            ConfigurationError: a path that cannot be read, a model's name, a time or a priority that
                cannot be one, or a client that is not connected.
        """
        wishes = _wishes(timeout_s, deadline_s, tensors, priority, latest=latest, retry=retry)
        return await self._one(model, lambda: encode_input(image), wishes)

    async def infer_batch(
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
        """Run `model` on several photographs, or tensors, in one job; results in order, errors in place.

        Tensors (or several by name) are of one item each, axis 0 being 1 long. What is refused as
        `overloaded` is sent again, as `infer` does it; the other arguments are those of `infer`, too.

        Raises:
            JobError: the whole job ended in an error, or photographs and tensors are mixed.
            JobTimeoutError, BrokerTimeoutError: as `infer`.
            ConfigurationError: as `infer`.
        """
        wishes = _wishes(timeout_s, deadline_s, tensors, priority, latest=False, retry=retry)
        inputs = list(_several(images))
        if not inputs:
            return []
        batch = await asyncio.to_thread(encode_batch, inputs)
        reply = await self._conversation.ask(model, batch, wishes)
        if isinstance(reply, JobError):
            raise reply
        results: list[Result | JobError] = reply if isinstance(reply, list) else [reply]
        if len(results) != len(inputs):
            raise ProtocolError(
                "a batch's answer", expected=f"{len(inputs)} results", got=str(len(results))
            )
        return results

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
    ) -> AsyncGenerator[Streamed[T]]:
        """Run `model` on each input of `source`, several at a time, and give what became of each, in order.

        ::

            async for item in client.stream("mobilenet_v2", Path("photos").glob("*.jpg")):
                if item.error is None:
                    print(item.input, item.result.best)

        One that fails does not end the stream: it is given with its `error`, and raises it where its
        `result` is asked for. What the source itself raises ends the stream, after the answers to what it
        had given before.

        The source is read only as far as there is room: at most `window` inputs are under way or answered
        and not yet taken. With `latest`, for cameras, it is read as fast as it gives: of the inputs that
        wait for room only the newest is kept, and the numbers (`item.index`) of those that gave way to
        newer ones are left out.

        Leaving the loop, cancelling the task or `aclose()` cancels what is under way; a source that is a
        generator is closed, too.

        Args:
            model: the name under which the model is served.
            source: an iterable or async iterable. One that is not async is read in a thread of its own,
                always the same, so it may block: a camera, a generator that reads files.
            image: makes of an item of the source what `infer` takes, in a thread; without it the item
                is that. With `latest` it is called for those that are sent only.
            window: how many at once.
            timeout_s: how long to wait for each.
            deadline_s: how long the cluster may take for each, as in `infer`.
            tensors: whether to return the model's raw outputs, too.
            priority: 0 to 9, as in `infer`.
            latest: for cameras, see above; each is sent with `infer`'s `latest`, too.
            retry: whether what is refused as `overloaded` is sent again, as in `infer`.
            raise_errors: whether an error of one job ends the stream, by being raised.

        Raises:
            Amp4ecError: with `raise_errors`, the first error of a job.
            ConfigurationError: an option that makes no sense, or a client that is not connected.
        """
        wishes = _wishes(timeout_s, deadline_s, tensors, priority, latest=latest, retry=retry)
        check_name("model", model)
        self._conversation.check_open()
        if window < 1:
            raise ConfigurationError(
                "a stream's window cannot be used", expected="1 or more", got=repr(window)
            )

        async def ask(given: Any) -> Result:
            return await self._one(
                model, lambda: encode_input(given if image is None else image(given)), wishes
            )

        return in_order(
            _several(source), ask, window=window, latest=latest, raise_errors=raise_errors
        )

    async def status(self, *, wait_s: float = _TELEMETRY_S) -> ClusterStatus:
        """The orchestrator, nodes and models as their retained topics say.

        ::

            status = await client.status()
            print([model.model for model in status.models if model.state == "serving"])
            print([view.state.node for view in status.online])

        Args:
            wait_s: how long to wait for what is not retained: the telemetry of nodes that are online,
                and what the orchestrator says of those that are not.

        Raises:
            ConfigurationError: a client that is not connected.
        """
        talk = self._conversation
        await talk.watch()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while talk.overview.incomplete() and (left := deadline - loop.time()) > 0:
            talk.changed.clear()
            try:
                await asyncio.wait_for(talk.changed.wait(), left)
            except TimeoutError:
                break
        return talk.overview.snapshot()

    async def _one(self, model: str, encode: Callable[[], Payload], wishes: Wishes) -> Result:
        reply = await self._conversation.ask(model, await asyncio.to_thread(encode), wishes)
        if isinstance(reply, list):
            raise ProtocolError("one job, several answers", expected="one", got=str(len(reply)))
        if isinstance(reply, JobError):
            raise reply
        return reply


def _wishes(
    timeout_s: float,
    deadline_s: float | None,
    tensors: bool,
    priority: int,
    *,
    latest: bool,
    retry: bool,
) -> Wishes:
    return Wishes(
        timeout_s=timeout_s,
        deadline_s=deadline_s,
        tensors=tensors,
        priority=priority,
        policy=Policy.LATEST if latest else Policy.LOSSLESS,
        retry=retry and not latest,
    )


S = TypeVar("S")


def _several(given: S) -> S:
    """`given`, unless it is one input, whose characters, bytes or names were hardly meant."""
    if isinstance(given, str | bytes | bytearray | memoryview | os.PathLike | PilImage | Mapping):
        raise ConfigurationError(
            "one input, where several are taken",
            expected="a list, a generator, or another iterable of inputs",
            got=type(given).__name__,
        )
    return given

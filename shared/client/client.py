"""The async client: publishes jobs, repeats them until they are answered, hands out typed results.

A job carries an identity of its own, and the orchestrator answers one identity once. So the client may
publish the same job again whenever an answer may have been lost (a reconnection, an orchestrator that came
back, a long silence) without it running twice.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from shared.bus import BrokerUrl, ControlBus, Message, MqttControlBus
from shared.client.inputs import Image, Payload, encode_batch, encode_input
from shared.client.pending import Pending, Refusals, Reply, first_of
from shared.client.results import Result, read_answer
from shared.client.status import WATCHED, ClusterStatus, Overview
from shared.errors import (
    BrokerError,
    BrokerUnreachableError,
    ErrorCode,
    JobError,
    ProtocolError,
)
from shared.ids import check_name
from shared.job_options import DEFAULT_PRIORITY, Policy, check_priority
from shared.logs import get_log
from shared.tensor import Array
from shared.topics import DEFAULT_ROOT, Topics

log = get_log(__name__)

REPEAT_FIRST_S = 3.0
"""Silence after which a job is published again; it doubles up to `REPEAT_LIMIT_S`."""
REPEAT_LIMIT_S = 20.0
_ECHO_S = 2.0
_TELEMETRY_S = 1.5
"""How long a status waits for the telemetry of nodes that are online; they send at 1 Hz."""


class Client:
    """Sends inference jobs to a cluster. Use with `async with`; one client serves any number of jobs at once.

    ::

        async with Client("mqtt://localhost:1883") as client:
            result = await client.infer("mobilenet_v2", "cat.jpg")
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
            broker: `mqtt://[user:password@]host[:port]`, `mqtts://...` or `host:port`.
            root: the root topic of the cluster.
            connect_timeout_s: how long entering may wait for the broker.
            bus: a bus to use instead of a connection of the client's own.

        Raises:
            ConfigurationError: the address or the root topic makes no sense.
        """
        self.url = BrokerUrl.parse(broker) if isinstance(broker, str) else broker
        self.topics = Topics(root)
        life = uuid.uuid4().hex[:12]
        # A closed broker lets a client speak in its login's name only, several programs alike.
        own = self.url.username if self.url.own_login else None
        self.name = own or f"client-{life}"
        self._job_topic = "infer" if own is None else "infer_311"
        self._bus: ControlBus = bus or MqttControlBus(
            self.url,
            client_id=f"amp4ec-{own}-{life}" if own else f"amp4ec-{self.name}",
            first_connect_timeout_s=connect_timeout_s,
        )
        self._stack = AsyncExitStack()
        self._overview = Overview()
        self._malformed = 0
        self._changed = asyncio.Event()
        self._pending: dict[str, Pending] = {}
        self._echoes: dict[str, asyncio.Event] = {}
        self._pump: asyncio.Task[None] | None = None
        self._watching = False
        self._watch_lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            BrokerUnreachableError: nobody answers at the broker's address.
        """
        self._bus.on_connect(self._connected)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._bus)
            self._pump = asyncio.create_task(self._receive(), name=f"{self.name}-receive")
            stack.push_async_callback(self._end_pump)
            await self._bus.subscribe(self.topics.pattern("result", client=self.name))
            await self._bus.subscribe(self.topics.pattern("orchestrator_state"))
            await self._settle()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect. Jobs that still wait end with `asyncio.CancelledError`."""
        await self._stack.aclose()

    async def infer(
        self,
        model: str,
        image: Image | Mapping[str, Array],
        *,
        timeout_s: float = 60.0,
        deadline_s: float | None = None,
        tensors: bool = False,
        priority: int = DEFAULT_PRIORITY,
        latest: bool = False,
        retry: bool = True,
    ) -> Result:
        """Run `model` on one input.

        Args:
            model: the name under which the model is served.
            image: a path, a file's bytes, a PIL image, a uint8 array [height, width, 3] (a photograph),
                or any other array (a tensor, taken as it is), or several of these by name.
            timeout_s: how long to wait here.
            deadline_s: how long the cluster may take; beyond it the answer is an error, `deadline`.
            tensors: whether to return the model's raw outputs, too.
            priority: 0 to 9; of what waits, the highest goes first.
            latest: for a camera's frames: while this one waits in the queue, a newer one that this client
                sends for the same model with `latest` takes its place, and here it ends as `superseded`.
            retry: whether a job that is refused as `overloaded` is sent again after the time that the
                refusal names, and longer each time, as long as `timeout_s` and `deadline_s` allow; never
                with `latest`, where a newer frame is worth more.

        Raises:
            JobError: the job ended in an error; `code`, `message`, `expected`, `got`, `retry_after_s`.
            BrokerUnreachableError: the broker went away and did not come back in time.
            ConfigurationError: a path that cannot be read, or a model's name or a priority that cannot
                be one.
        """
        payload = await asyncio.to_thread(encode_input, image)
        self._check_size(payload)
        policy = Policy.LATEST if latest else Policy.LOSSLESS
        reply = await self._ask(
            model,
            payload,
            timeout_s,
            deadline_s,
            tensors=tensors,
            priority=priority,
            policy=policy,
            retry=retry and not latest,
        )
        if isinstance(reply, list):
            raise ProtocolError("one job, several answers", expected="one", got=str(len(reply)))
        if isinstance(reply, JobError):
            raise reply
        return reply

    async def infer_batch(
        self,
        model: str,
        images: Iterable[Image | Mapping[str, Array]],
        *,
        timeout_s: float = 120.0,
        deadline_s: float | None = None,
        tensors: bool = False,
        priority: int = DEFAULT_PRIORITY,
        retry: bool = True,
    ) -> list[Result | JobError]:
        """Run `model` on several photographs, or tensors, in one job; results in order, errors in place.

        Tensors (or several by name) are of one item each, axis 0 being 1 long.

        What is refused as `overloaded` is sent again, as `infer` does it.

        Raises:
            JobError: the whole job ended in an error, or photographs and tensors are mixed.
            BrokerUnreachableError: the broker went away and did not come back in time.
            ConfigurationError: a path that cannot be read, or a priority that cannot be one.
        """
        inputs = list(images)
        if not inputs:
            return []
        batch = await asyncio.to_thread(encode_batch, inputs)
        self._check_size(batch)
        reply = await self._ask(
            model, batch, timeout_s, deadline_s, tensors=tensors, priority=priority, retry=retry
        )
        if isinstance(reply, JobError):
            raise reply
        results: list[Result | JobError] = reply if isinstance(reply, list) else [reply]
        if len(results) != len(inputs):
            raise ProtocolError(
                "a batch's answer", expected=f"{len(inputs)} results", got=str(len(results))
            )
        return results

    async def status(self, *, wait_s: float = _TELEMETRY_S) -> ClusterStatus:
        """The orchestrator, nodes and models as their retained topics say.

        Args:
            wait_s: how long to wait for what is not retained: the telemetry of nodes that are online,
                and what the orchestrator says of those that are not.
        """
        async with self._watch_lock:
            if not self._watching:
                for name in WATCHED:
                    await self._bus.subscribe(self.topics.pattern(name))
                await self._settle()
                self._watching = True
        deadline = _now() + wait_s
        while self._overview.incomplete() and (left := deadline - _now()) > 0:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                break
        return self._overview.snapshot()

    async def _ask(
        self,
        model: str,
        payload: Payload,
        timeout_s: float,
        deadline_s: float | None,
        *,
        tensors: bool,
        priority: int,
        retry: bool,
        policy: Policy = Policy.LOSSLESS,
    ) -> Reply:
        check_name("model", model)
        check_priority(priority)
        if self._overview.orchestrator is None:
            raise JobError(
                ErrorCode.UNAVAILABLE,
                f"no orchestrator has announced itself at {self.url} below {self.topics.root!r}; "
                "start one with `amp4ec orchestrator`",
            )
        pending = Pending(
            job=uuid.uuid4().hex,
            model=model,
            payload=payload,
            started=_now(),
            timeout_s=timeout_s,
            deadline_s=deadline_s,
            tensors=tensors,
            priority=priority,
            policy=policy,
            answer=asyncio.get_running_loop().create_future(),
        )
        self._pending[pending.job] = pending
        refusals = Refusals()
        try:
            repeat_s = REPEAT_FIRST_S
            while pending.left() > 0:
                pending.again.clear()
                await self._publish(pending)
                silence_s, repeat_s = repeat_s, min(2 * repeat_s, REPEAT_LIMIT_S)
                while await pending.answered_within(min(silence_s, max(pending.left(), 0.0))):
                    reply = pending.answer.result()
                    again_s = refusals.wait_s(reply) if retry else None
                    if again_s is None or again_s >= pending.left_to_run():
                        return reply
                    pending.refused()
                    silence_s, repeat_s = again_s, REPEAT_FIRST_S
            raise self._timed_out(pending)
        finally:
            del self._pending[pending.job]

    async def _publish(self, pending: Pending) -> None:
        # The answer may overtake the broker's acknowledgement of the request: then that is not waited for.
        publish = asyncio.ensure_future(
            self._bus.publish(
                self.topics.topic(
                    self._job_topic, model=pending.model, client=self.name, job=pending.job
                ),
                pending.payload.data,
                qos=1,
                properties=pending.properties(self.topics, self.name),
                timeout_s=pending.left(),
            )
        )
        try:
            await first_of(publish, pending.answer)
            if publish.done():
                publish.result()
        finally:
            if not publish.done():
                publish.cancel()
                await asyncio.gather(publish, return_exceptions=True)

    def _check_size(self, payload: Payload) -> None:
        """Refuse here what the orchestrator would refuse after megabytes on the wire."""
        state = self._overview.orchestrator
        if state is None or state.limits is None:
            return
        limit = state.limits.max_item_bytes
        if len(payload.data) > limit:
            raise JobError(
                ErrorCode.TOO_LARGE,
                "the input is larger than a job may be",
                expected=f"at most {limit} bytes",
                got=f"{len(payload.data)} bytes",
            )

    def _timed_out(self, pending: Pending) -> Exception:
        timeout_s = pending.timeout_s
        if not self._bus.connected:
            return BrokerUnreachableError(
                f"no answer within {timeout_s:g} s: the connection to the broker at {self.url} is gone"
            )
        state = self._overview.orchestrator
        if state is None or state.state != "online":
            how = "gone" if state is None else state.state
            return JobError(
                ErrorCode.UNAVAILABLE,
                f"no answer within {timeout_s:g} s: the orchestrator is {how}",
            )
        return JobError(
            ErrorCode.DEADLINE,
            f"no answer from {pending.model!r} within {timeout_s:g} s, though the orchestrator is online",
        )

    async def _settle(self) -> None:
        """Wait until every retained message of the subscriptions made so far has come.

        A broker delivers in order, so our own message to ourselves comes after them. A closed broker does not
        let us write there and says so: then its word on one subscription more comes after them, too. One that
        says nothing costs `_ECHO_S`.
        """
        word = uuid.uuid4().hex
        echo = self._echoes[word] = asyncio.Event()
        topic = self.topics.topic("result", client=self.name, job=word)
        try:
            async with asyncio.timeout(_ECHO_S):
                await self._bus.publish(topic, b"", qos=1)
                await echo.wait()
        except TimeoutError:
            log.debug("no echo in time", topic=topic, waited_s=_ECHO_S)
        except BrokerError:
            await self._bus.subscribe(self.topics.pattern("orchestrator_state"))
        finally:
            del self._echoes[word]

    async def _connected(self) -> None:
        """Answers sent while we were away are lost: ask again."""
        for pending in self._pending.values():
            pending.again.set()

    async def _receive(self) -> None:
        async for message in self._bus.messages():
            try:
                self._take(message)
            except ProtocolError as error:
                self._malformed += 1
                if self._malformed.bit_count() == 1:  # a flood must not flood the caller's log
                    log.warning("dropped a message", topic=message.topic, error=error)

    def _take(self, message: Message) -> None:
        name, levels = self.topics.accept(message.topic, len(message.payload))
        if name == "result":
            self._take_result(levels["job"], message.payload)
            return
        before = self._overview.orchestrator
        self._overview.take(name, levels, message)
        self._changed.set()
        after = self._overview.orchestrator
        if before and after and after.state == "online" and after.incarnation != before.incarnation:
            for pending in self._pending.values():
                pending.again.set()

    def _take_result(self, job: str, payload: bytes | bytearray) -> None:
        echo = self._echoes.get(job)
        if echo is not None:
            echo.set()
            return
        pending = self._pending.get(job)
        if pending is None or pending.answer.done():
            log.debug("an answer that nobody waits for", job=job)
            return
        try:
            pending.answer.set_result(read_answer(payload))
        except ProtocolError as error:
            pending.answer.set_exception(error)

    async def _end_pump(self) -> None:
        assert self._pump is not None
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        for pending in self._pending.values():
            pending.answer.cancel()


def _now() -> float:
    return asyncio.get_running_loop().time()

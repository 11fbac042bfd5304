"""What the client says and hears: jobs are published, and again until they are answered.

A job carries an identity of its own, and the orchestrator answers one identity once. So the same job may be
published again whenever an answer may have been lost (a reconnection, an orchestrator that came back, a long
silence) without it running twice.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack

from shared.bus import BrokerUrl, ControlBus, Message, MqttControlBus
from shared.client.inputs import Payload
from shared.client.pending import Pending, Refusals, Reply, Wishes, first_of
from shared.client.results import read_answer
from shared.client.status import WATCHED, Overview
from shared.errors import (
    BrokerError,
    BrokerTimeoutError,
    BrokerUnreachableError,
    ConfigurationError,
    ErrorCode,
    JobError,
    JobTimeoutError,
    NotPermittedError,
    ProtocolError,
)
from shared.ids import check_name
from shared.logs import get_log
from shared.topics import Topics

log = get_log(__name__)

REPEAT_FIRST_S = 3.0
"""Silence after which a job is published again; it doubles up to `REPEAT_LIMIT_S`."""
REPEAT_LIMIT_S = 20.0
_ECHO_S = 2.0


class Conversation:
    """A client's connection, the jobs that wait on it, and what it has heard of the cluster."""

    def __init__(
        self, url: BrokerUrl, root: str, connect_timeout_s: float, bus: ControlBus | None
    ) -> None:
        self.url = url
        self.topics = Topics(root)
        self.overview = Overview()
        self.changed = asyncio.Event()
        """Set with each message about the cluster."""
        life = uuid.uuid4().hex[:12]
        # A closed broker lets a client speak in its login's name only, several programs alike.
        own = url.username if url.own_login else None
        self.name = own or f"client-{life}"
        self._job_topic = "infer" if own is None else "infer_311"
        self.bus: ControlBus = bus or MqttControlBus(
            url,
            client_id=f"amp4ec-{own}-{life}" if own else f"amp4ec-{self.name}",
            first_connect_timeout_s=connect_timeout_s,
        )
        self.pending: dict[str, Pending] = {}
        self._stack = AsyncExitStack()
        self._state = "not connected yet"
        self._malformed = 0
        self._echoes: dict[str, asyncio.Event] = {}
        self._pump: asyncio.Task[None] | None = None
        self._watching = False
        self._watch_lock = asyncio.Lock()

    async def open(self) -> None:
        """Connect.

        Raises:
            BrokerUnreachableError: nobody answers at the broker's address.
            ConfigurationError: it was opened before.
        """
        if self._state != "not connected yet":
            raise ConfigurationError(
                "a client connects once", expected="a new Client", got=f"one that is {self._state}"
            )
        self._state = "connecting"
        self.bus.on_connect(self._connected)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.bus)
            self._pump = asyncio.create_task(self._receive(), name=f"{self.name}-receive")
            stack.push_async_callback(self._end_pump)
            await self.bus.subscribe(self.topics.pattern("result", client=self.name))
            await self.bus.subscribe(self.topics.pattern("orchestrator_state"))
            await self._settle()
            self._stack = stack.pop_all()
        self._state = "connected"

    async def close(self) -> None:
        """Disconnect; jobs that still wait are cancelled."""
        self._state = "closed"
        await self._stack.aclose()

    async def watch(self) -> None:
        """Hear of nodes and models, too; what is retained has been heard when this returns."""
        self.check_open()
        async with self._watch_lock:
            if not self._watching:
                for name in WATCHED:
                    await self.bus.subscribe(self.topics.pattern(name))
                await self._settle()
                self._watching = True

    def check_open(self) -> None:
        """Raises ConfigurationError where there is no connection to speak of."""
        if self._state != "connected":
            raise ConfigurationError(
                f"this client is {self._state}",
                expected="use within `async with Client(url) as client:`, "
                "or `with SyncClient(url) as client:`",
            )

    def check_size(self, payload: Payload) -> None:
        """Refuse here what the orchestrator would refuse after megabytes on the wire.

        Raises:
            JobError: `too_large`.
        """
        state = self.overview.orchestrator
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

    async def ask(self, model: str, payload: Payload, wishes: Wishes) -> Reply:
        """The answer to one job, however often it has to be published.

        Raises:
            JobError: there is no orchestrator, or the payload is too large.
            JobTimeoutError, BrokerTimeoutError: no answer within the wishes' `timeout_s`.
            NotPermittedError: a closed broker lets this login send no jobs.
            ConfigurationError: no model can have this name, or the client is not connected.
        """
        check_name("model", model)
        self.check_open()
        self.check_size(payload)
        if self.overview.orchestrator is None:
            raise JobError(
                ErrorCode.UNAVAILABLE,
                f"no orchestrator has announced itself at {self.url} below {self.topics.root!r}; "
                "start one with `amp4ec orchestrator`",
            )
        loop = asyncio.get_running_loop()
        pending = Pending(
            job=uuid.uuid4().hex,
            model=model,
            payload=payload,
            started=loop.time(),
            wishes=wishes,
            answer=loop.create_future(),
        )
        self.pending[pending.job] = pending
        try:
            return await self._answer_to(pending)
        except BrokerUnreachableError as error:
            raise self._timed_out(pending) from error
        finally:
            del self.pending[pending.job]

    async def _answer_to(self, pending: Pending) -> Reply:
        refusals = Refusals()
        repeat_s = REPEAT_FIRST_S
        while pending.left() > 0:
            pending.again.clear()
            await self._publish(pending)
            silence_s, repeat_s = repeat_s, min(2 * repeat_s, REPEAT_LIMIT_S)
            while await pending.answered_within(min(silence_s, max(pending.left(), 0.0))):
                reply = pending.answer.result()
                again_s = refusals.wait_s(reply) if pending.wishes.retry else None
                if again_s is None or again_s >= pending.left_to_run():
                    return reply
                pending.refused()
                silence_s, repeat_s = again_s, REPEAT_FIRST_S
        raise self._timed_out(pending)

    async def _publish(self, pending: Pending) -> None:
        # The answer may overtake the broker's acknowledgement of the request: then that is not waited for.
        publish = asyncio.ensure_future(
            self.bus.publish(
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
        except NotPermittedError as error:
            raise NotPermittedError(
                "this login may not send jobs",
                expected="a client's token: `amp4ec join-token NAME --role client` where the broker is",
                got=error.got,
            ) from error
        finally:
            if not publish.done():
                publish.cancel()
                await asyncio.gather(publish, return_exceptions=True)

    def _timed_out(self, pending: Pending) -> JobTimeoutError | BrokerTimeoutError:
        timeout_s = pending.wishes.timeout_s
        if not self.bus.connected:
            return BrokerTimeoutError(
                f"no answer within {timeout_s:g} s: the connection to the broker at {self.url} is gone",
                timeout_s=timeout_s,
            )
        state = self.overview.orchestrator
        if state is None or state.state != "online":
            how = "gone" if state is None else state.state
            return JobTimeoutError(
                ErrorCode.UNAVAILABLE,
                f"no answer within {timeout_s:g} s: the orchestrator is {how}",
                waited_for="orchestrator",
                timeout_s=timeout_s,
            )
        return JobTimeoutError(
            ErrorCode.DEADLINE,
            f"no answer from {pending.model!r} within {timeout_s:g} s, though the orchestrator is online: "
            "`amp4ec status` says whether the model is served",
            waited_for="answer",
            timeout_s=timeout_s,
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
                await self.bus.publish(topic, b"", qos=1)
                await echo.wait()
        except TimeoutError:
            log.debug("no echo in time", topic=topic, waited_s=_ECHO_S)
        except BrokerError:
            await self.bus.subscribe(self.topics.pattern("orchestrator_state"))
        finally:
            del self._echoes[word]

    async def _connected(self) -> None:
        """Answers sent while we were away are lost: ask again."""
        for pending in self.pending.values():
            pending.again.set()

    async def _receive(self) -> None:
        async for message in self.bus.messages():
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
        before = self.overview.orchestrator
        self.overview.take(name, levels, message)
        self.changed.set()
        after = self.overview.orchestrator
        if before and after and after.state == "online" and after.incarnation != before.incarnation:
            for pending in self.pending.values():
                pending.again.set()

    def _take_result(self, job: str, payload: bytes | bytearray) -> None:
        echo = self._echoes.get(job)
        if echo is not None:
            echo.set()
            return
        pending = self.pending.get(job)
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
        for pending in self.pending.values():
            pending.answer.cancel()

"""Requests of an operator to the orchestrator: `request/{verb}` out, `response/{verb}` back.

A request is sent again with the same transaction after a reconnection, when a new orchestrator takes over,
and after a long silence: serving and stopping end in the same state however often they are asked for.

On a closed cluster only operators may ask. Whoever else does learns it at once: from the own token, which has
nothing to sign with, or from the broker, whose list says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from shared.bus import BrokerUrl, ControlBus, Message, MqttControlBus, Properties
from shared.codec import decode_json, encode_json
from shared.errors import Amp4ecError, JobError, NotPermittedError, ProtocolError
from shared.logs import get_log
from shared.messages.cordon import CordonRequest, DrainRequest, UncordonRequest
from shared.messages.health import HealthRequest
from shared.messages.life import JobRequest
from shared.messages.operation import (
    DeploymentsRequest,
    EventsRequest,
    ExplainRequest,
    OrchestratorState,
    PlanRequest,
    ReplanRequest,
    Response,
    ServeRequest,
    StopRequest,
)
from shared.messages.settings import InfoRequest, SetRequest
from shared.signing import Signer, signer_of
from shared.topics import Topics
from shared.transfer import BlobSource, MemoryBlobs, Transfers

log = get_log(__name__)

CONNECT_S = 5.0
_PATIENCE_S = 1.0
_REPEAT_S = 20.0
"""Then it is asked again: among a flood of others' requests one may be dropped."""
Step = Callable[[str], None]
"""Gets a line of progress."""
Request = (
    ServeRequest
    | StopRequest
    | ReplanRequest
    | ExplainRequest
    | PlanRequest
    | DeploymentsRequest
    | EventsRequest
    | JobRequest
    | CordonRequest
    | DrainRequest
    | UncordonRequest
    | SetRequest
    | InfoRequest
    | HealthRequest
)
_VERBS: Mapping[type, str] = {
    ServeRequest: "serve",
    StopRequest: "stop",
    ReplanRequest: "replan",
    ExplainRequest: "explain",
    PlanRequest: "plan",
    DeploymentsRequest: "deployments",
    EventsRequest: "events",
    JobRequest: "job",
    CordonRequest: "cordon",
    DrainRequest: "drain",
    UncordonRequest: "uncordon",
    SetRequest: "set",
    InfoRequest: "info",
    HealthRequest: "health",
}


class NotAnsweredError(Amp4ecError):
    """The orchestrator did not answer in time; says what is missing."""


@dataclass(slots=True)
class _Open:
    """A request that waits for the response that ends it."""

    ended: asyncio.Future[Response]
    progress: Step
    again: asyncio.Event = field(default_factory=asyncio.Event)


class Operator:
    """One connection for requests. Made by `connect`."""

    def __init__(
        self,
        bus: ControlBus,
        topics: Topics,
        peer: str,
        source: BlobSource,
        *,
        signer: Signer | None = None,
        outsider: str | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            bus: the connection.
            topics: the table.
            peer: the name under which blobs are given.
            source: has the blobs that the orchestrator may fetch.
            signer: vouches for requests, on a closed cluster.
            outsider: who we are, where that is nobody who may ask.
        """
        self.peer = peer
        self._outsider = outsider
        self._bus = bus
        self._topics = topics
        self._signer = signer
        self._signed_ms = 0
        self._transfers = Transfers(bus, topics, peer, source=source)
        self._malformed = 0
        self._open: dict[str, _Open] = {}
        self._online = asyncio.Event()
        self._orchestrator: OrchestratorState | None = None

    @property
    def bytes_sent(self) -> int:
        """Bytes of blobs that the orchestrator has fetched from here so far."""
        return self._transfers.counters.bytes_sent

    async def ask(self, request: Request, timeout_s: float, progress: Step) -> Response:
        """Send a request; returns the response that ends it.

        Args:
            request: with a transaction of its own.
            timeout_s: how long to wait.
            progress: gets the text of each response that does not end it.

        Raises:
            JobError: the orchestrator refused, or failed at it.
            NotAnsweredError: it did not answer in time.
            NotPermittedError: only operators may ask, and this login is not one's.
        """
        verb = _VERBS[type(request)]
        if self._outsider is not None:
            raise _not_permitted(verb, f"the token of {self._outsider}, which cannot sign requests")
        waiting = _Open(asyncio.get_running_loop().create_future(), progress)
        self._open[request.transaction] = waiting
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._ask(verb, encode_json(request), waiting)
        except TimeoutError:
            raise NotAnsweredError(
                f"no answer to {verb} within {timeout_s:g} s: {self._missing()}"
            ) from None
        finally:
            del self._open[request.transaction]
        if response.error is not None:
            error = response.error
            raise JobError(error.code, error.message, expected=error.expected, got=error.got)
        return response

    async def _ask(self, verb: str, payload: bytes, waiting: _Open) -> Response:
        while True:
            await self._wait_for_orchestrator(waiting.progress)
            waiting.again.clear()
            topic = self._topics.topic("request", verb=verb)
            try:
                await self._bus.publish(topic, payload, properties=self._signed(topic, payload))
            except NotPermittedError as error:
                raise _not_permitted(verb, error.got) from error
            again = asyncio.ensure_future(waiting.again.wait())
            try:
                await asyncio.wait(
                    _futures(again, waiting.ended),
                    timeout=_REPEAT_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                again.cancel()
            if waiting.ended.done():
                return waiting.ended.result()

    def _signed(self, topic: str, payload: bytes) -> Properties | None:
        if self._signer is None:
            return None
        # The same request once more is taken for a replay unless it was signed later.
        self._signed_ms = max(self._signed_ms + 1, time.time_ns() // 1_000_000)
        return self._signer.sign(topic, payload, self._signed_ms)

    async def _wait_for_orchestrator(self, progress: Step) -> None:
        """A request that nobody receives is lost: send it when there is somebody."""
        try:
            await asyncio.wait_for(self._online.wait(), _PATIENCE_S)
        except TimeoutError:
            progress(f"waiting: {self._missing()}")
            await self._online.wait()

    def _missing(self) -> str:
        if not self._bus.connected:
            return "the connection to the broker is gone"
        if self._orchestrator is None:
            return "there is no orchestrator; start one with `amp4ec orchestrator`"
        if self._orchestrator.state != "online":
            return f"the orchestrator is {self._orchestrator.state}"
        return "the orchestrator is online but busy"

    async def run(self) -> None:
        """Take what comes until cancelled."""
        async for message in self._bus.messages():
            try:
                self._take(message)
            except ProtocolError as error:
                self._malformed += 1
                if self._malformed.bit_count() == 1:  # a flood must not flood whoever asked
                    log.warning("dropped a message", topic=message.topic, error=error)

    async def connected(self) -> None:
        """Ask again: responses sent while we were away are lost."""
        for waiting in self._open.values():
            waiting.again.set()

    def _take(self, message: Message) -> None:
        name, levels = self._topics.accept(message.topic, len(message.payload))
        match name:
            case "response":
                self._respond(decode_json(message.payload, Response))
            case "orchestrator_state":
                self._see(message.payload)
            case _:
                self._transfers.handle(name, levels, message)

    def _respond(self, response: Response) -> None:
        waiting = self._open.get(response.transaction)
        if waiting is None or waiting.ended.done():
            return
        if response.status == "progress":
            waiting.progress(str(response.data.get("text", "")))
        else:
            waiting.ended.set_result(response)

    def _see(self, payload: bytes | bytearray) -> None:
        if not payload:
            return  # it never clears its own state: somebody else's word, which says nothing
        before = self._orchestrator
        after = self._orchestrator = decode_json(payload, OrchestratorState)
        if after.state == "online":
            self._online.set()
        else:
            self._online.clear()
        if before and after.state == "online" and after.incarnation != before.incarnation:
            for waiting in self._open.values():
                waiting.again.set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Subscribed, and giving away blobs."""
        async with self._transfers:
            await self._bus.subscribe(self._topics.pattern("response"))
            await self._bus.subscribe(self._topics.topic("orchestrator_state"))
            yield


def _futures(*awaited: asyncio.Future[Any]) -> list[asyncio.Future[Any]]:
    return list(awaited)


@asynccontextmanager
async def connect(
    broker: BrokerUrl, root: str, source: BlobSource | None = None
) -> AsyncIterator[Operator]:
    """A connected operator, which gives blobs of `source` to the orchestrator when it asks for them.

    Raises:
        BrokerUnreachableError: nobody answers at the broker's address.
        ConfigurationError: the token's keys cannot be used.
    """
    signer = signer_of(broker.credentials)
    # Tokens from before there were signatures have no credentials: then the broker's list alone decides.
    outsider = broker.login if broker.credentials is not None and signer is None else None
    peer = f"operator-{uuid.uuid4().hex[:12]}"
    topics = Topics(root)
    bus = MqttControlBus(broker, client_id=f"amp4ec-{peer}", first_connect_timeout_s=CONNECT_S)
    operator = Operator(
        bus, topics, peer, source or MemoryBlobs({}), signer=signer, outsider=outsider
    )
    bus.on_connect(operator.connected)
    async with bus:
        pump = asyncio.create_task(operator.run(), name=f"{peer}: receive")
        try:
            async with operator.serving():
                yield operator
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump


def _not_permitted(verb: str, got: str | None) -> NotPermittedError:
    return NotPermittedError(
        f"only an operator may ask this cluster's orchestrator for {verb!r}",
        expected="an operator's token as --broker: tokens/operator of the directory of `amp4ec broker init`, "
        "or one of `amp4ec join-token NAME --role operator`",
        got=got,
    )


def new_transaction() -> str:
    """An identity for a request."""
    return uuid.uuid4().hex

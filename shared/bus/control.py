"""The control face: a connection in the event loop that is made again whenever it is lost.

Rules of this file:

- `_supervise` alone opens and closes connections; it lives as long as the context.
- QoS 1 is never dropped here: the broker holds what is beyond the receive maximum, because messages
  are acknowledged when they have been dealt with and not when they arrive. QoS 0 has no such brake
  and is dropped and counted.
- A subscription is a wish first: it is written down, then made where there is a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Final, Self

from shared.bus.backoff import Backoff
from shared.bus.connection import Connection, ConnectionLostError, ConnectionSettings
from shared.bus.faces import ConnectCallback
from shared.bus.fence import ASK_AGAIN_S, Fence
from shared.bus.limits import MAX_PACKET_BYTES
from shared.bus.message import Message, Properties, Publication, Qos
from shared.bus.url import BrokerUrl
from shared.errors import BrokerError, BrokerUnreachableError, NotPermittedError
from shared.logs import get_log

_logger = get_log(__name__)

# A filter that nobody subscribes to: the broker answers, and nothing else happens.
_PROBE_FILTER: Final = "round-trip/never-subscribed"
_NOT_AUTHORIZED: Final = 0x87  # MQTT 5, 3.4.2.1


class MqttControlBus:
    """Implements `shared.bus.faces.ControlBus` on a broker; what the verbs promise is said there.

    Args:
        url: The broker.
        client_id: Names the session at the broker (`BrokerUrl.client_id` of it); a second connection of
            the same login with it ends the first.
        will: Published by the broker when the connection ends any other way than by leaving.
        clean_start: Forget what the session held: at the first connection, or at each where the
            session has no expiry.
        session_expiry_s: How long the broker keeps the session after the connection.
        manual_ack: Messages of QoS 1 are done when `acknowledge` says so, not when the reader comes
            back for the next.
        receive_maximum: Messages of QoS 1 the broker may have under way to us, 1 to 65,535. As many
            of QoS 0 may wait here; those beyond are dropped and counted.
        maximum_packet_bytes: The broker keeps larger packets from us: those that nobody here would read.
        keepalive_s: Silence after which the connection is questioned.
        publish_timeout_s: How long to wait for a connection and the broker's answer together.
        first_connect_timeout_s: Where given, entering waits for the first connection and raises
            when there is none in time or the broker refuses the login: for commands. Services leave
            it out: entering returns at once, and the bus tries for ever.
        backoff: Delays between attempts to connect.
        fence: Asked before each attempt; None lets all through.

    Raises:
        ConfigurationError: the URL names a CA file that cannot be used.
    """

    def __init__(
        self,
        url: BrokerUrl,
        *,
        client_id: str,
        will: Publication | None = None,
        clean_start: bool = True,
        session_expiry_s: int = 0,
        manual_ack: bool = False,
        receive_maximum: int = 256,
        maximum_packet_bytes: int = MAX_PACKET_BYTES,
        keepalive_s: int = 15,
        publish_timeout_s: float = 10.0,
        first_connect_timeout_s: float | None = None,
        backoff: Backoff | None = None,
        fence: Fence | None = None,
    ) -> None:
        self._fence = fence
        self._lost_at: float | None = None
        self._settings = ConnectionSettings(
            url=url,
            tls_context=url.tls_context(),
            client_id=url.client_id(client_id),
            will=will,
            session_expiry_s=session_expiry_s,
            receive_maximum=receive_maximum,
            maximum_packet_bytes=maximum_packet_bytes,
            keepalive_s=keepalive_s,
        )
        self._url = url
        self._clean_start = clean_start
        self._manual_ack = manual_ack
        self._publish_timeout_s = publish_timeout_s
        self._first_connect_timeout_s = first_connect_timeout_s
        self._backoff = backoff if backoff is not None else Backoff()

        self._callbacks: list[ConnectCallback] = []
        self._wanted: dict[str, Qos] = {}
        # The latest connection; `_ready` says that it stands and its subscriptions are made.
        self._connection: Connection | None = None
        self._ready = asyncio.Event()
        self._decided = asyncio.Event()  # connected once, or refused for good
        self._failure: str | None = None
        self._bad_login = False
        self._connections = 0
        self._dropped = 0
        # Unbounded as a queue: `_deliver` is the bound, and never has to wait.
        self._inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self._supervisor: asyncio.Task[None] | None = None

    # What its user may know

    @property
    def connected(self) -> bool:
        """Whether a connection stands and its subscriptions are made."""
        return self._ready.is_set()

    @property
    def reconnections(self) -> int:
        """How many connections were made after the first."""
        return max(0, self._connections - 1)

    @property
    def dropped(self) -> int:
        """Messages thrown away because nobody took the earlier ones."""
        return self._dropped

    @property
    def failure(self) -> str | None:
        """Why there is no connection, as far as known."""
        return None if self.connected else self._failure

    # Its user's verbs

    def on_connect(self, callback: ConnectCallback) -> None:
        """Have `callback` awaited after every connection, subscriptions made: births go here."""
        self._callbacks.append(callback)

    async def publish(
        self,
        topic: str,
        payload: bytes,
        qos: Qos = 1,
        *,
        retain: bool = False,
        properties: Properties | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Send; at QoS 1 return when the broker has acknowledged.

        Raises:
            BrokerUnreachableError: not sent within `timeout_s` (the bus's own when None).
            NotPermittedError: our login may not publish there.
            BrokerError: the broker refused the message, or takes none of this size.
            ValueError: the topic is no topic.
        """
        deadline = self._deadline(timeout_s)
        while True:
            connection = await self._wait_for_connection(deadline, f"publishing to {topic}")
            try:
                answer = await connection.publish(
                    topic, payload, qos, retain=retain, properties=properties, deadline=deadline
                )
            except ConnectionLostError:
                # The broker may have it already: at QoS 1 a message may come twice.
                self._gone(connection)
                continue
            except TimeoutError:
                raise self._unreachable(f"publishing to {topic}") from None
            if answer is not None and answer.value == _NOT_AUTHORIZED:
                raise NotPermittedError(
                    f"the broker at {self._url.address} refused a message on {topic}",
                    expected="a login that may: a token is for one name and role (`amp4ec join-token NAME`)",
                    got=f"{self._url.login}: {answer}",
                )
            if answer is not None and answer.is_failure:
                raise BrokerError(
                    f"the broker at {self._url.address} refused {len(payload)} bytes for {topic}",
                    got=str(answer),
                )
            return

    async def subscribe(self, pattern: str, qos: Qos = 1) -> None:
        """Receive `pattern` on this and every later connection.

        Returns when the broker agreed, or at once while there is no connection.

        Raises:
            BrokerError: the broker refused.
        """
        self._wanted[pattern] = qos
        if self._ready.is_set() and self._connection is not None:
            # Lost or late: it is made on the next connection.
            with contextlib.suppress(ConnectionLostError, TimeoutError):
                await self._subscribe(self._connection, [(pattern, qos)])

    async def unsubscribe(self, pattern: str) -> None:
        """Stop receiving `pattern`. Messages already on their way may still come."""
        self._wanted.pop(pattern, None)
        if self._ready.is_set() and self._connection is not None:
            # Lost or late: the next connection begins without it.
            with contextlib.suppress(ConnectionLostError, TimeoutError):
                await self._connection.unsubscribe(pattern, self._deadline(None))

    async def messages(self) -> AsyncGenerator[Message]:
        """Everything received, over all connections; ends when the bus is left. One reader."""
        while (message := await self._inbox.get()) is not None:
            yield message
            if not self._manual_ack:
                self.acknowledge(message)

    def acknowledge(self, message: Message) -> None:
        """With `manual_ack`: the message is done, do not deliver it again."""
        if message.handle is not None and self._connection is not None:
            self._connection.acknowledge(message.handle)

    async def round_trip(self) -> float:
        """Seconds from a question to the broker to its answer, on this connection, now.

        The question is an UNSUBSCRIBE of what nobody subscribed to: it needs no topic and no
        permission, and no other client hears of it.

        Raises:
            BrokerUnreachableError: no connection, or no answer in time.
        """
        doing = "measuring the round trip"
        deadline = self._deadline(None)
        connection = await self._wait_for_connection(deadline, doing)
        begin = time.perf_counter()
        try:
            await connection.unsubscribe(_PROBE_FILTER, deadline)
        except (ConnectionLostError, TimeoutError):
            raise self._unreachable(doing) from None
        return time.perf_counter() - begin

    async def __aenter__(self) -> Self:
        """Connect, and stay connected until left.

        Raises:
            BrokerUnreachableError: with `first_connect_timeout_s`, no connection within it, or the
                broker refused the login.
        """
        assert self._supervisor is None, "a bus is entered once"
        self._supervisor = asyncio.create_task(
            self._supervise(), name=f"bus: {self._settings.client_id} at {self._url.address}"
        )
        if self._first_connect_timeout_s is not None:
            try:
                await self._wait_for_first(self._first_connect_timeout_s)
            except BaseException:
                await self._stop()
                raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect cleanly: no last will is published, so publish your own death first."""
        await self._stop()

    # The connection

    async def _stop(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self._inbox.put_nowait(None)

    async def _permitted(self) -> None:
        # Asked, not told: what a fence goes by changes in another thread.
        while self._fence is not None and not self._fence.may_connect(self._lost_at):  # noqa: ASYNC110
            await asyncio.sleep(ASK_AGAIN_S)

    async def _supervise(self) -> None:
        while True:
            await self._permitted()
            connection = Connection(
                self._settings,
                self._connections + 1,
                clean_start=self._clean_start
                and (self._connections == 0 or not self._settings.session_expiry_s),
                deliver=self._deliver,
            )
            # Before it stands: the broker may deliver in the very read that brings its greeting.
            self._connection = connection
            begin: float | None = None
            try:
                async with connection.open():
                    begin = time.monotonic()
                    await self._serve(connection)
            except (ConnectionLostError, TimeoutError, BrokerError) as error:
                self._failed(str(error) or "the broker does not answer")
            except Exception:
                # A birth that failed must not leave a node connected and unknown: begin again.
                _logger.exception("a callback after connecting failed", address=self._url.address)
                self._failure = "a callback after connecting failed"
            if connection.bad_login:
                self._bad_login = True
                self._decided.set()
            if begin is not None:
                self._lost_at = time.monotonic()
                if self._lost_at - begin >= Backoff.STABLE_S:
                    self._backoff.reset()
            if connection.taken_over and self._fence is not None:
                self._fence.taken_over()
            await asyncio.sleep(self._backoff.next())

    async def _serve(self, connection: Connection) -> None:
        """Everything on one connection; ends with an exception, at the latest when it is lost."""
        self._connections += 1
        if connection.session_present:
            # The broker delivers again what was not acknowledged; keeping both would double it
            # here, and grow without bound over many reconnections.
            self._forget_earlier(connection.number)
        watch = asyncio.create_task(connection.watch(), name="bus: watch the connection")
        greet = asyncio.create_task(self._greet(connection), name="bus: greet")
        try:
            await asyncio.wait((watch, greet), return_when=asyncio.FIRST_COMPLETED)
            if not watch.done():
                greet.result()
            await watch
        finally:
            self._gone(connection)
            watch.cancel()
            greet.cancel()
            await asyncio.gather(watch, greet, return_exceptions=True)

    async def _greet(self, connection: Connection) -> None:
        made: dict[str, Qos] = {}
        # More than once, since somebody may subscribe in between.
        while missing := [wish for wish in self._wanted.items() if wish not in made.items()]:
            await self._subscribe(connection, missing)
            made.update(missing)
        if self._failure is not None:
            _logger.info("connected to the broker", address=self._url.address)
        self._failure = None
        self._ready.set()
        self._decided.set()
        for callback in self._callbacks:
            await callback()

    async def _subscribe(self, connection: Connection, wishes: list[tuple[str, Qos]]) -> None:
        refused = await connection.subscribe(wishes, self._deadline(None))
        for pattern in refused:
            # Asked for again it would be refused again, and never let a connection begin.
            self._wanted.pop(pattern, None)
        if refused:
            reasons = ", ".join(f"{pattern}: {reason}" for pattern, reason in refused.items())
            raise BrokerError(
                f"the broker at {self._url.address} refused a subscription", got=reasons
            )

    def _deliver(self, message: Message) -> bool:
        """Whether the message was taken."""
        # QoS 1 is bounded by the receive maximum on each connection; the second bound is for what
        # earlier connections left to a reader that does not read.
        limit = self._settings.receive_maximum * (1 if message.qos == 0 else 3)
        if self._inbox.qsize() < limit:
            self._inbox.put_nowait(message)
            return True
        self._dropped += 1
        if self._dropped.bit_count() == 1:  # 1, 2, 4, 8, ...: a flood must not flood the log
            _logger.warning(
                "messages dropped: they come faster than they are read",
                so_far=self._dropped,
                topic=message.topic,
            )
        return False

    def _forget_earlier(self, number: int) -> None:
        waiting = [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
        for message in waiting:
            if message is None or message.handle is None or message.handle.session == number:
                self._inbox.put_nowait(message)

    async def _wait_for_connection(self, deadline: float, doing: str) -> Connection:
        while not (self._ready.is_set() and self._connection is not None):
            try:
                async with asyncio.timeout_at(deadline):
                    await self._ready.wait()
            except TimeoutError:
                raise self._unreachable(doing) from None
        return self._connection

    def _gone(self, connection: Connection) -> None:
        """Nobody shall use this connection any more; the supervisor sees to the next."""
        if self._connection is connection:
            self._ready.clear()

    async def _wait_for_first(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._decided.wait(), timeout_s)
        if self._bad_login:
            raise BrokerUnreachableError(
                f"the broker at {self._url.address} refused the login: {self._failure}",
                expected="a login that it accepts: mqtt://user:password@host, or a token of "
                "`amp4ec join-token`",
                got=self._url.login,
            )
        if not self._decided.is_set():
            raise BrokerUnreachableError(
                f"no connection to a broker at {self._url.address} within {timeout_s:g} s",
                expected=_expected_of(self._failure),
                got=self._failure
                or "no MQTT answer: is that port another program's, or for TLS (mqtts://)?",
            )

    def _failed(self, why: str) -> None:
        # Once per cause: a broker away for an hour is one line, not thousands.
        if why != self._failure:
            self._failure = why
            _logger.warning(
                "no connection to the broker, trying again", address=self._url.address, reason=why
            )

    def _unreachable(self, doing: str) -> BrokerUnreachableError:
        return BrokerUnreachableError(
            f"the broker at {self._url.address} did not answer in time while {doing}",
            expected="a connection and an acknowledgement",
            got=self._failure or "a connection that does not answer",
        )

    def _deadline(self, timeout_s: float | None) -> float:
        wait_s = self._publish_timeout_s if timeout_s is None else timeout_s
        return asyncio.get_running_loop().time() + wait_s


def _expected_of(failure: str | None) -> str:
    """What would mend a connection that failed for that reason."""
    if failure is not None and "certificate" in failure:
        return (
            "a broker that an authority known here vouches for, by this very name: come with a token of "
            "`amp4ec join-token`, and see that `amp4ec broker init --host` was given the name"
        )
    return "an MQTT 5 broker there: start one with `amp4ec broker`, or name another with --broker"

"""The two faces of the bus on the broker in memory of `tests.fakes.wire`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from shared.bus import ConnectCallback, Message, Properties, Qos
from shared.errors import BrokerUnreachableError
from shared.link_rates import Rates

if TYPE_CHECKING:
    from tests.fakes.wire import FakeBroker, Session

_ROUND_TRIP_S = 0.0003


class FakeControlBus:
    """Implements `ControlBus`. Use it from one event loop; others may publish from any thread."""

    def __init__(
        self,
        broker: FakeBroker,
        wish: Session,
        *,
        clean_start: bool,
        manual_ack: bool,
        publish_timeout_s: float,
    ) -> None:
        self._broker = broker
        self._wish = wish
        self._clean_start = clean_start
        self._manual_ack = manual_ack
        self._publish_timeout_s = publish_timeout_s
        self._wanted: dict[str, Qos] = {}
        self._callbacks: list[ConnectCallback] = []
        self._inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self._ready = asyncio.Event()
        self._connections = 0
        self._dropped = 0
        self._greetings: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def connected(self) -> bool:
        return self._ready.is_set()

    @property
    def reconnections(self) -> int:
        return max(0, self._connections - 1)

    @property
    def dropped(self) -> int:
        return self._dropped

    @property
    def failure(self) -> str | None:
        return None if self.connected else "the test has cut the wire"

    def on_connect(self, callback: ConnectCallback) -> None:
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
        if not self._ready.is_set():
            await self._wait(self._publish_timeout_s if timeout_s is None else timeout_s)
        self._broker.publish(topic, payload, qos, retain=retain, properties=properties)
        # The real one waits for an answer, so others have their turn.
        await asyncio.sleep(0)

    async def subscribe(self, pattern: str, qos: Qos = 1) -> None:
        self._wanted[pattern] = qos
        if self._ready.is_set():
            self._broker.subscribe(self._wish.client_id, pattern, qos)
        await asyncio.sleep(0)

    async def unsubscribe(self, pattern: str) -> None:
        self._wanted.pop(pattern, None)
        if self._ready.is_set():
            self._broker.unsubscribe(self._wish.client_id, pattern)
        await asyncio.sleep(0)

    async def messages(self) -> AsyncGenerator[Message]:
        while (message := await self._inbox.get()) is not None:
            yield message
            if not self._manual_ack:
                self.acknowledge(message)

    def acknowledge(self, message: Message) -> None:
        if message.handle is not None:
            self._broker.acknowledge(self._wish.client_id, message.handle)

    async def round_trip(self) -> float:
        await self._wait(self._publish_timeout_s)
        return _ROUND_TRIP_S

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._broker.connect(self._wish, self, clean_start=self._clean_start)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._broker.disconnect(self._wish.client_id)
        for greeting in self._greetings:
            if not greeting.done():
                greeting.cancel()
        results = await asyncio.gather(*self._greetings, return_exceptions=True)
        self._inbox.put_nowait(None)
        for result in results:
            # A callback that failed fails the test; the real bus connects again.
            if isinstance(result, Exception):
                raise result

    async def _wait(self, timeout_s: float) -> None:
        """Until connected, or until the broker's time has passed."""
        late = asyncio.Event()
        self._broker.alarm(self._broker.now + timeout_s, late.set)
        ready = asyncio.create_task(self._ready.wait())
        over = asyncio.create_task(late.wait())
        try:
            await asyncio.wait((ready, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            over.cancel()
        if not self._ready.is_set():
            raise BrokerUnreachableError("the wire is cut", got=f"no connection in {timeout_s:g} s")

    # Called by the broker

    def take(self, message: Message) -> None:
        if message.qos == 0 and self._inbox.qsize() >= self._wish.receive_maximum:
            self._dropped += 1
            return
        assert self._loop is not None
        if _running_loop() is self._loop:
            self._inbox.put_nowait(message)
        else:
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, message)

    def opened(self, number: int, *, session_present: bool) -> None:
        assert _running_loop() is self._loop, "connect and mend a control face in its event loop"
        self._connections = number
        if session_present:
            waiting = [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
            for message in waiting:
                if message is None or message.handle is None:
                    self._inbox.put_nowait(message)
        self._greetings.append(asyncio.create_task(self._greet(), name="fake bus: greet"))

    def closed(self) -> None:
        self._ready.clear()

    async def _greet(self) -> None:
        for pattern, qos in list(self._wanted.items()):
            self._broker.subscribe(self._wish.client_id, pattern, qos)
        self._ready.set()
        for callback in self._callbacks:
            await callback()


class FakeDataBus:
    """Implements `DataBus`. One thread owns it; `wake` may come from any."""

    def __init__(
        self,
        broker: FakeBroker,
        wish: Session,
        *,
        clean_start: bool,
        manual_ack: bool,
        queue_messages: int,
    ) -> None:
        self._broker = broker
        self._wish = wish
        self._clean_start = clean_start
        self._manual_ack = manual_ack
        self._queue_messages = queue_messages
        self._wanted: dict[str, Qos] = {}
        self._inbox: deque[Message] = deque()
        self._outbox: deque[tuple[str, bytes, bool, Properties | None]] = deque()
        self._changed = threading.Condition(broker.lock)
        self._woken = False
        self._connected = False
        self._begun = False
        self._sessions = 0
        self._session_present = False
        self._bytes_received = 0
        self._bytes_sent = 0

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def sessions(self) -> int:
        return self._sessions

    @property
    def session_present(self) -> bool:
        return self._session_present

    @property
    def bytes_received(self) -> int:
        return self._bytes_received

    @property
    def bytes_sent(self) -> int:
        return self._bytes_sent

    @property
    def rates(self) -> Rates:
        return Rates()  # there is no link: nothing is measured

    def connect(self, timeout_s: float = 0.0) -> bool:
        if not self._begun:
            self._begun = True
            self._broker.connect(self._wish, self, clean_start=self._clean_start)
        if not self._connected and timeout_s:
            self.poll(timeout_s)
        return self._connected

    def subscribe(self, topic: str, qos: Qos = 1) -> None:
        self._wanted[topic] = qos
        if self._connected:
            self._broker.subscribe(self._wish.client_id, topic, qos)

    def unsubscribe(self, topic: str) -> None:
        self._wanted.pop(topic, None)
        if self._connected:
            self._broker.unsubscribe(self._wish.client_id, topic)

    def poll(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._inbox and not self._woken:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            self._woken = False
            return bool(self._inbox)

    def receive(self) -> Message | None:
        with self._changed:
            return self._inbox.popleft() if self._inbox else None

    def publish(
        self,
        topic: str,
        payload: bytes | bytearray | memoryview,
        qos: Qos = 1,
        *,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> None:
        data = bytes(payload)
        if self._connected:
            self._broker.publish(topic, data, qos, retain=retain, properties=properties)
        elif qos:
            if len(self._outbox) >= self._queue_messages:
                raise BrokerUnreachableError("too much waits", got=f"{len(self._outbox)} messages")
            self._outbox.append((topic, data, retain, properties))
        else:
            return
        self._bytes_sent += len(data)

    def acknowledge(self, message: Message) -> None:
        if self._manual_ack and message.handle is not None:
            self._broker.acknowledge(self._wish.client_id, message.handle)

    def flush(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._outbox and (left_s := deadline - time.monotonic()) > 0:
                self._changed.wait(left_s)
            return not self._outbox

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        self._broker.disconnect(self._wish.client_id)

    # Called by the broker, which holds the lock

    def take(self, message: Message) -> None:
        self._bytes_received += len(message.payload)
        handle = message.handle
        self._inbox.append(message)
        self._changed.notify_all()
        if handle is not None and not self._manual_ack:
            self._broker.acknowledge(self._wish.client_id, handle)

    def opened(self, number: int, *, session_present: bool) -> None:
        self._connected = True
        self._sessions = number
        self._session_present = session_present
        if session_present and self._manual_ack:
            self._inbox = deque(message for message in self._inbox if message.handle is None)
        for topic, qos in self._wanted.items():
            self._broker.subscribe(self._wish.client_id, topic, qos)
        while self._outbox:
            topic, data, retain, properties = self._outbox.popleft()
            self._broker.publish(topic, data, 1, retain=retain, properties=properties)
        self._changed.notify_all()

    def closed(self) -> None:
        self._connected = False
        self._changed.notify_all()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None

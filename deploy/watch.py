"""The cluster's events as they happen, for whoever shows or waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from shared.bus import BrokerUrl, MqttControlBus
from shared.codec import decode_json
from shared.errors import ProtocolError
from shared.logs import get_log
from shared.messages.operation import Happening
from shared.topics import Topics

log = get_log(__name__)

CONNECT_S = 5.0


class Events:
    """What happened since the watch began. Made by `watch`."""

    def __init__(self) -> None:
        self.seen: list[Happening] = []
        self._came = asyncio.Event()

    def add(self, event: Happening) -> None:
        """Take one."""
        self.seen.append(event)
        self._came.set()

    async def wait_for(
        self, holds: Callable[[Happening], bool], timeout_s: float = 60.0, *, since: int = 0
    ) -> Happening:
        """The first event, from number `since` on, of which `holds` says so.

        Raises:
            TimeoutError: none came in time.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                for event in self.seen[since:]:
                    if holds(event):
                        return event
                self._came.clear()
                await self._came.wait()


@asynccontextmanager
async def watch(
    broker: BrokerUrl,
    root: str,
    show: Callable[[Happening], None] | None = None,
    *,
    collect: bool = True,
) -> AsyncIterator[Events]:
    """Collect events until left (unless told not to: a watch may last for months); `show` gets each.

    Raises:
        BrokerUnreachableError: nobody answers at the broker's address.
    """
    topics = Topics(root)
    events = Events()
    bus = MqttControlBus(
        broker,
        client_id=f"amp4ec-watch-{uuid.uuid4().hex[:12]}",
        first_connect_timeout_s=CONNECT_S,
    )

    async def receive() -> None:
        async for message in bus.messages():
            try:
                event = decode_json(message.payload, Happening)
            except ProtocolError as error:
                log.warning("dropped a message", topic=message.topic, error=error)
                continue
            if collect:
                events.add(event)
            if show is not None:
                show(event)

    async with bus:
        await bus.subscribe(topics.topic("event"))
        task = asyncio.create_task(receive(), name="watch events")
        try:
            yield events
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

"""What the documented topics say of a cluster, now and while the connection comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from shared.bus import BrokerUrl, ControlBus, MqttControlBus
from shared.client import ClusterStatus
from shared.client.status import WATCHED, Overview
from shared.codec import decode_json
from shared.errors import ProtocolError
from shared.logs import get_log
from shared.messages.operation import Happening
from shared.topics import Topics

log = get_log(__name__)

CONNECT_S = 5.0
MOST_EVENTS = 200
MOST_RATES = 60
"""Seconds of throughput that are kept of each model."""
_SETTLE_S = 1.0
"""What is retained comes within this time after a connection; until then the old picture stands."""


class Source(Protocol):
    """What the screen is drawn from."""

    @property
    def address(self) -> str:
        """The broker's, for people."""

    @property
    def away_s(self) -> float | None:
        """For how long there has been no connection; None while there is one."""

    @property
    def version(self) -> int:
        """Grows when something new was heard."""

    @property
    def events(self) -> Sequence[Happening]:
        """The latest, the newest last."""

    @property
    def rates(self) -> Mapping[str, Sequence[float]]:
        """Each model's answers per second of the last seconds, the newest last."""

    def status(self) -> ClusterStatus:
        """What is known now."""


class Feed:
    """A `Source` on a bus. Made by `listen`."""

    def __init__(self, bus: ControlBus, topics: Topics, address: str) -> None:
        self.address = address
        self.version = 0
        self.events: deque[Happening] = deque(maxlen=MOST_EVENTS)
        self.rates: dict[str, deque[float]] = {}
        self._bus = bus
        self._topics = topics
        self._overview = Overview()
        self._before: tuple[ClusterStatus, float] | None = None
        """What stood when the connection was lost, and until when it is shown."""
        self._connection = 0
        self._away_since: float | None = None
        self._malformed = 0

    @property
    def away_s(self) -> float | None:
        """For how long there has been no connection; None while there is one."""
        now = time.monotonic()
        if self._bus.connected:
            self._away_since = None
            return None
        if self._away_since is None:
            self._away_since = now
        return now - self._away_since

    def status(self) -> ClusterStatus:
        """What is known now."""
        if self._before is not None:
            status, until = self._before
            if time.monotonic() < until:
                return status
            self._before = None
        return self._overview.snapshot()

    def remember(self, earlier: Sequence[Happening]) -> None:
        """Put what happened before this began in front of what came."""
        came = list(self.events)
        self.events = deque([*(e for e in earlier if e not in came), *came], maxlen=MOST_EVENTS)
        self.version += 1

    async def run(self) -> None:
        """Take what comes."""
        async for message in self._bus.messages():
            if self._bus.reconnections != self._connection:
                # What is retained comes again; what went meanwhile does not.
                self._connection = self._bus.reconnections
                self._before = self.status(), time.monotonic() + _SETTLE_S
                self._overview = Overview()
            try:
                name, levels = self._topics.accept(message.topic, len(message.payload))
                if name == "event":
                    event = decode_json(message.payload, Happening)
                    if event.level == "info":
                        self.events.append(event)
                else:
                    self._overview.take(name, levels, message)
            except ProtocolError as error:
                self._malformed += 1
                if self._malformed.bit_count() == 1:  # a flood must not flood the log
                    log.warning("dropped a message", topic=message.topic, error=error)
                continue
            if name == "metrics":
                self._remember_rates()
            self.version += 1

    def _remember_rates(self) -> None:
        metrics = self._overview.metrics
        assert metrics is not None
        for model, told in metrics.models.items():
            self.rates.setdefault(model, deque(maxlen=MOST_RATES)).append(told.answered_per_s)
        for gone in self.rates.keys() - metrics.models.keys():
            del self.rates[gone]


@asynccontextmanager
async def listen(broker: BrokerUrl, root: str) -> AsyncIterator[Feed]:
    """A feed of the cluster there.

    Raises:
        BrokerUnreachableError: nobody answers at the broker's address.
    """
    topics = Topics(root)
    bus = MqttControlBus(
        broker,
        client_id=f"amp4ec-top-{uuid.uuid4().hex[:12]}",
        first_connect_timeout_s=CONNECT_S,
    )
    feed = Feed(bus, topics, broker.address)
    async with bus:
        for name in (*WATCHED, "event"):
            await bus.subscribe(topics.pattern(name))
        task = asyncio.create_task(feed.run(), name="top: listen")
        try:
            yield feed
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

"""The cluster as its documented topics show it, for the routes to answer from and the browsers to follow.

A connection of its own, which only listens: it sees what any monitor sees, whichever process leads.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from orchestrator.web.history import History
from shared.bus import ControlBus, Message
from shared.client.status import WATCHED, Overview
from shared.codec import decode_json, encode_json
from shared.errors import BrokerError, ProtocolError
from shared.logs import get_log
from shared.messages.operation import Happening
from shared.signing import Admission
from shared.topics import Topics

log = get_log(__name__)

MOST_EVENTS = 1000
_LOOK_S = 0.5
GRACE_S = 5.0
"""After a reconnection: who is there says so again by then, also where the broker has forgotten it."""


class Follower(Protocol):
    """Gets what comes, in the event loop."""

    def take(self, name: str, topic: str, payload: bytes) -> None:
        """A message on the row `name` of the table: `topic` is below the root, `payload` is JSON.

        It is `null` where what was retained is gone.
        """

    def connection(self, *, connected: bool) -> None:
        """The connection to the broker has come or gone."""


class Watch:
    """Listens while `running`; see the module.

    Args:
        bus: a connection of its own.
        topics: the table.
        admission: believes whom the authority vouches for.
        earlier: what the process knows to have happened, for the time when this connection was away.
        grace_s: how long after a reconnection what is not said again is still believed.
    """

    def __init__(
        self,
        bus: ControlBus,
        topics: Topics,
        admission: Admission,
        *,
        earlier: Callable[[], list[Happening]] = list,
        grace_s: float = GRACE_S,
    ) -> None:
        self.topics = topics
        self.overview = Overview()
        self.events: deque[Happening] = deque(maxlen=MOST_EVENTS)
        self.history = History()
        self.connected = False
        self._bus = bus
        self._admission = admission
        self._earlier = earlier
        self._grace_s = grace_s
        self._followers: set[Follower] = set()
        self._refused = 0
        self._stale: set[tuple[str, str]] = set()
        self._caught_up: list[Happening] = []
        self._settling: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen until left."""
        self._bus.on_connect(self._greeted)
        async with self._bus:
            for name in (*WATCHED, "event"):
                await self._bus.subscribe(self.topics.pattern(name))
            tasks = [
                asyncio.create_task(self._receive(), name="watch: receive"),
                asyncio.create_task(self._look(), name="watch: connection"),
            ]
            try:
                yield
            finally:
                if self._settling is not None:
                    tasks.append(self._settling)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    @asynccontextmanager
    async def followed_by(self, follower: Follower) -> AsyncIterator[None]:
        """Tell `follower` what comes, from now on and until left."""
        self._followers.add(follower)
        try:
            yield
        finally:
            self._followers.discard(follower)

    # --- the connection

    async def _look(self) -> None:
        """Nobody calls when a connection is lost."""
        while True:
            self._say(connected=self._bus.connected)
            await asyncio.sleep(_LOOK_S)

    def _say(self, *, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            for follower in [*self._followers]:
                follower.connection(connected=connected)

    async def _greeted(self) -> None:
        """What is retained comes again; what does not is gone, unless its owner says it again soon."""
        self._stale = {
            *(("node_state", node) for node in self.overview.nodes),
            *(("cordon", node) for node in self.overview.cordons),
            *(("model_state", model) for model in self.overview.models),
        }
        self._catch_up()
        if self._settling is not None:
            self._settling.cancel()
        self._settling = asyncio.create_task(self._settle(), name="watch: settle")
        self._say(connected=True)

    def _catch_up(self) -> None:
        """What happened while the connection was away; of that some may still be on its way to us."""
        last = self.events[-1].at if self.events else ""
        self._caught_up = [event for event in self._earlier() if event.at > last]
        for event in self._caught_up:
            self._happened(event)

    async def _settle(self) -> None:
        with contextlib.suppress(BrokerError):  # lost once more: the next greeting begins again
            await self._bus.round_trip()
            await asyncio.sleep(self._grace_s)
            for name, subject in sorted(self._stale):
                levels = {"model" if name == "model_state" else "node": subject}
                topic = self.topics.topic(name, **levels)
                self._learn(name, levels, Message(topic=topic, payload=b"", retain=True))

    # --- what comes

    async def _receive(self) -> None:
        async for message in self._bus.messages():
            try:
                self._take(message)
            except ProtocolError as error:
                self._refused += 1
                if self._refused.bit_count() == 1:  # a flood must not flood the log
                    log.warning(
                        "the page drops a message",
                        topic=message.topic,
                        why=error,
                        so_far=self._refused,
                    )
            except Exception:
                # Ours, not the sender's: it stays with this message, and the page goes on.
                log.exception("a message could not be taken", topic=message.topic)

    def _take(self, message: Message) -> None:
        name, levels = self.topics.accept(message.topic, len(message.payload))
        self._admission.check(name, message)
        if name != "event":
            self._learn(name, levels, message)
            return
        event = decode_json(message.payload, Happening)
        if event in self._caught_up:
            self._caught_up.remove(event)
        else:
            self._happened(event)

    def _learn(self, name: str, levels: dict[str, str], message: Message) -> None:
        self.overview.take(name, levels, message)
        subject = levels.get("node") or levels.get("model") or ""
        self._stale.discard((name, subject))
        if name == "metrics" and self.overview.metrics is not None:
            self.history.take(self.overview.metrics, time.time_ns() // 1_000_000)
        self._tell(name, message.topic, self._known(name, subject))

    def known(self) -> Iterator[tuple[str, bytes]]:
        """What the latest messages on each topic say: the topic below the root, and the payload."""
        names = [("orchestrator_state", ""), ("metrics", "")]
        for name in ("node_state", "telemetry", "cordon", "model_state"):
            names += ((name, subject) for subject in self._table(name))
        for name, subject in names:
            value = self._known(name, subject)
            if value is not None:
                topic = self.topics.topic(name, node=subject, model=subject)
                yield self._below(topic), encode_json(value)

    def _table(self, name: str) -> Mapping[str, Any]:
        known = self.overview
        match name:
            case "node_state":
                return known.nodes
            case "telemetry":
                return known.telemetry
            case "cordon":
                return known.cordons
            case _:
                return known.models

    def _known(self, name: str, subject: str) -> Any:
        match name:
            case "metrics":
                return self.overview.metrics
            case "orchestrator_state":
                return self.overview.orchestrator
            case _:
                return self._table(name).get(subject)

    def _happened(self, event: Happening) -> None:
        if event.level == "info":
            self.events.append(event)
            self._tell("event", self.topics.topic("event"), event)

    def _tell(self, name: str, topic: str, value: Any) -> None:
        if self._followers:
            payload = encode_json(value)
            for follower in [*self._followers]:
                follower.take(name, self._below(topic), payload)

    def _below(self, topic: str) -> str:
        return topic[len(self.topics.root) + 1 :]

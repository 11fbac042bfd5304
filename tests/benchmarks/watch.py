"""What the cluster says of itself, with the moment at which it came here."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from deploy.local import LocalCluster
from shared.bus import Message, MqttControlBus
from shared.codec import decode_json
from shared.errors import Amp4ecError
from shared.messages.node import NodeState, StageTelemetry, Telemetry
from shared.messages.operation import Happening
from shared.topics import Topics

T = TypeVar("T")
_WATCHED = ("node_state", "event", "telemetry")


class NotSeenError(Amp4ecError):
    """What a benchmark waited for did not happen in time."""


@dataclass(frozen=True, slots=True)
class SeenState:
    """A birth or death, and when it came (monotonic)."""

    at: float
    state: NodeState


@dataclass(frozen=True, slots=True)
class SeenHappening:
    """A line of `event`, and when it came (monotonic)."""

    at: float
    happening: Happening


@dataclass(slots=True)
class Watch:
    """Everything seen so far, in order."""

    states: list[SeenState] = field(default_factory=list)
    happenings: list[SeenHappening] = field(default_factory=list)
    stages: list[tuple[float, str, StageTelemetry]] = field(default_factory=list)
    """(when, node, its stage over the second before)."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def state(self, node: str, state: str, after: float, timeout_s: float) -> SeenState:
        """The first birth or death of `node` that came after `after`.

        Raises:
            NotSeenError: none came in time.
        """

        def find() -> SeenState | None:
            return next(
                (
                    seen
                    for seen in self.states
                    if (seen.state.node, seen.state.state) == (node, state) and seen.at >= after
                ),
                None,
            )

        return await self._until(f"{node} to be {state}", find, timeout_s)

    async def happening(self, event: str, after: float, timeout_s: float) -> SeenHappening:
        """The first line about `event` that came after `after`.

        Raises:
            NotSeenError: none came in time.
        """

        def find() -> SeenHappening | None:
            return next(
                (
                    seen
                    for seen in self.happenings
                    if seen.happening.event == event and seen.at >= after
                ),
                None,
            )

        return await self._until(f"the event {event!r}", find, timeout_s)

    async def quiet(self, timeout_s: float) -> int:
        """Wait until the generation that was planned last is active; its number.

        Raises:
            NotSeenError: it did not come to that in time.
        """

        def find() -> int | None:
            active = self._last("pipeline_active")
            return active if active == self._last("replanned") else None

        return await self._until("the latest plan to be active", find, timeout_s)

    def _last(self, event: str) -> int | None:
        return next(
            (
                seen.happening.generation
                for seen in reversed(self.happenings)
                if seen.happening.event == event
            ),
            None,
        )

    async def _until(self, what: str, find: Callable[[], T | None], timeout_s: float) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                while (found := find()) is None:
                    self._changed.clear()
                    await self._changed.wait()
                return found
        except TimeoutError:
            last = self.happenings[-1].happening.text if self.happenings else "nothing"
            raise NotSeenError(
                f"waited {timeout_s:g} s", expected=what, got=f"last event: {last}"
            ) from None

    def take(self, topics: Topics, message: Message) -> None:
        """One message."""
        now = time.monotonic()
        name, levels = topics.parse(message.topic)
        match name:
            case "node_state" if message.payload:
                self.states.append(SeenState(now, decode_json(message.payload, NodeState)))
            case "event":
                self.happenings.append(SeenHappening(now, decode_json(message.payload, Happening)))
            case "telemetry":
                telemetry = decode_json(message.payload, Telemetry)
                self.stages += [(now, levels["node"], stage) for stage in telemetry.stages]
            case _:
                return
        self._changed.set()


@asynccontextmanager
async def watching(cluster: LocalCluster) -> AsyncIterator[Watch]:
    """A watch over `cluster`, from the moment it is entered."""
    watch, topics = Watch(), Topics(cluster.root)
    bus = MqttControlBus(cluster.url, client_id=f"bench-watch-{uuid.uuid4().hex[:8]}")

    async def read() -> None:
        async for message in bus.messages():
            watch.take(topics, message)

    async with bus:
        reader = asyncio.create_task(read(), name="watch")
        try:
            for name in _WATCHED:
                await bus.subscribe(topics.pattern(name))
            yield watch
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

"""What goes over a cluster's broker: what nodes fetched for a plan, and what one job puts on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from shared.bus import BrokerUrl, MqttControlBus
from shared.codec import decode_json
from shared.messages.model import ModelState
from shared.messages.stage import Report, StageReport
from shared.topics import Topics

_CONNECT_S = 10.0
_REPORTS_S = 10.0
_OF_A_JOB = ("infer", "activation", "result")
"""The second one's pattern fits the results of pipelines as well."""


@dataclass(slots=True)
class Fetches:
    """What the nodes of one cluster report to have fetched. Made by `listening`."""

    _stages: dict[tuple[str, str, int, int], StageReport] = field(default_factory=dict)
    """By node, pipeline, generation and stage."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def of(self, state: ModelState) -> int:
        """Bytes that the nodes fetched for the plan in force: weights and graphs that they did not have.

        That a model is served may be heard before the last report that made it so: it is waited for.
        """
        wanted = [
            (stage.node, each.pipeline, state.generation, stage.stage)
            for each in state.pipelines
            for stage in each.stages
        ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REPORTS_S):
                while not all(self._ready(key) for key in wanted):
                    self._news.clear()
                    await self._news.wait()
        rows = (self._stages.get(key) for key in wanted)
        return sum(row.fetched_bytes for row in rows if row is not None)

    def take(self, report: Report) -> None:
        """One report."""
        for row in report.stages:
            self._stages[report.node, row.pipeline, row.generation, row.stage] = row
        self._news.set()

    def _ready(self, key: tuple[str, str, int, int]) -> bool:
        row = self._stages.get(key)
        return row is not None and row.state == "ready"


@asynccontextmanager
async def listening(url: BrokerUrl, root: str) -> AsyncIterator[Fetches]:
    """Hear what nodes report, from now on.

    Raises:
        BrokerUnreachableError: nobody answers at the broker's address.
    """
    topics, fetches = Topics(root), Fetches()
    async with _bus(url) as bus:

        async def read() -> None:
            async for message in bus.messages():
                fetches.take(decode_json(message.payload, Report))

        reader = asyncio.create_task(read(), name="bench: reports")
        try:
            await bus.subscribe(topics.pattern("report"))
            yield fetches
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)


async def job_bytes(url: BrokerUrl, root: str, ask: Callable[[], Awaitable[object]]) -> int:
    """Payload bytes of all messages that one job makes, its input and its answer included.

    Args:
        url: the broker.
        root: the cluster's root topic; nobody else may ask there meanwhile.
        ask: sends the job and returns when it is answered.

    Raises:
        BrokerUnreachableError: nobody answers at the broker's address.
        JobError: the job failed.
    """
    topics, total = Topics(root), 0
    async with _bus(url) as bus:
        for name in _OF_A_JOB:
            await bus.subscribe(topics.pattern(name))
        await ask()
        async for message in bus.messages():
            total += len(message.payload)
            if topics.parse(message.topic)[0] == "result":
                break
    return total


def _bus(url: BrokerUrl) -> MqttControlBus:
    """A connection that stands when it is entered: what is subscribed to then misses nothing."""
    return MqttControlBus(
        url,
        client_id=f"amp4ec-bench-{uuid.uuid4().hex[:8]}",
        first_connect_timeout_s=_CONNECT_S,
    )

"""Orchestrators on the fake wire, with an operator and agents that tests tell what to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from orchestrator.core.cluster_settings import ClusterSettings
from orchestrator.lease import Tenure
from orchestrator.service import Orchestrator, OrchestratorOptions
from shared.bus import BrokerUrl, ControlBus, DataBus, Publication
from shared.topics import Topics
from tests.fakes.cluster import FakeAgent, FakeOperator, until
from tests.fakes.wire import FakeBroker

TOPICS = Topics("test")
STATE = TOPICS.topic("orchestrator_state")
JPEG = b"\xff\xd8\xff and so on"


class World:
    """A broker in memory, an operator on it, and a place for orchestrators and agents."""

    def __init__(self, directory: Path) -> None:
        self.broker = FakeBroker()
        self.operator = FakeOperator(TOPICS, self.control)
        self.options = OrchestratorOptions(
            broker=BrokerUrl.parse("mqtt://nowhere"),
            root="test",
            state_dir=directory,
            cluster=ClusterSettings(settle_s=0.05, retry_s=0.1),
        )
        self.incarnation = 100

    def control(self, client_id: str, will: Publication | None) -> ControlBus:
        return self.broker.control(client_id, will=will)

    def _data(self) -> DataBus:
        return self.broker.data(
            "dispatcher", clean_start=False, session_expiry_s=3600, manual_ack=True
        )

    def make(self, incarnation: int | None = None) -> Orchestrator:
        self.incarnation += 1
        return Orchestrator(
            self.options,
            tenure=Tenure.alone(incarnation or self.incarnation),
            control=lambda will: self.broker.control("orchestrator", will=will),
            data=self._data,
        )

    @contextlib.asynccontextmanager
    async def orchestrator(self, *, status: int = 0) -> AsyncIterator[Orchestrator]:
        orchestrator = self.make()
        stop = asyncio.Event()
        running = asyncio.create_task(orchestrator.run(stop))
        try:
            await until(lambda: orchestrator._dispatcher.ident is not None or running.done())
            yield orchestrator
        finally:
            stop.set()
            assert await running == status

    async def killed(self, orchestrator: Orchestrator, running: asyncio.Task[int]) -> None:
        """It ends as SIGKILL would have it: with no word, but for its last will."""
        self.broker.cut("orchestrator")
        self.broker.cut("dispatcher")
        await asyncio.to_thread(orchestrator._dispatcher.stop)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def agents(self, *names: str) -> AsyncIterator[list[FakeAgent]]:
        agents = [FakeAgent(TOPICS, self.control, name) for name in names]
        async with contextlib.AsyncExitStack() as stack:
            for agent in agents:
                await stack.enter_async_context(agent.running())
            yield agents

    def retained(self, name: str, **levels: str) -> Any:
        message = self.broker.retained.get(TOPICS.topic(name, **levels))
        return None if message is None else json.loads(message.payload)

    async def answer(self, job: str = "1") -> dict[str, Any]:
        client = self.broker.control("client")
        async with client:
            await client.subscribe(f"test/result/client/{job}")
            await client.publish(f"test/model/m/infer/client/{job}", JPEG)
            async with asyncio.timeout(10):
                async for message in client.messages():
                    said = json.loads(message.payload)
                    assert isinstance(said, dict)
                    return said
        raise AssertionError("the bus ended")


@contextlib.asynccontextmanager
async def world_in(directory: Path) -> AsyncIterator[World]:
    """A world whose operator listens."""
    world = World(directory)
    async with world.operator.running():
        yield world

"""Several models on one real Mosquitto and orchestrator: each has its room, and nobody is disturbed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.core.cluster_settings import ClusterSettings
from orchestrator.service import Orchestrator, OrchestratorOptions
from shared.bus import BrokerUrl, ControlBus, MqttControlBus, Properties, Publication
from shared.codec import decode_json
from shared.messages.job import Answer
from shared.messages.operation import StopRequest
from shared.topics import Topics
from tests.fakes.cluster import FakeAgent, FakeOperator, Model, until

TOPICS = Topics("share-test")
JPEG = b"\xff\xd8\xff and so on"
WHOLE_BYTES = 4 * 64 + 64 + 64 + 8 * 64
"""A fake model on one node: its weights, the live tensors of its widest block, a window of inputs."""


class World:
    """An orchestrator, agents of so much memory, somebody who asks for models and somebody with jobs."""

    def __init__(self, url: BrokerUrl, directory: Path) -> None:
        self._url = url
        self._directory = directory
        self._exits = contextlib.AsyncExitStack()
        self.operator = FakeOperator(TOPICS, self._control)
        self.answers: dict[str, Answer] = {}

    def _control(self, client_id: str, will: Publication | None = None) -> ControlBus:
        return MqttControlBus(self._url, client_id=client_id, will=will)

    async def start(self, **memory: int) -> None:
        """Everybody, agents by name with what a stage may take of their memory."""
        enter = self._exits.enter_async_context
        await enter(self.operator.running())
        for name, usable in memory.items():
            agent = FakeAgent(TOPICS, self._control, name)
            assert agent.state.hardware is not None
            hardware = replace(agent.state.hardware, memory_bytes=-(-usable * 10 // 9))
            agent.state = replace(agent.state, hardware=hardware)
            await enter(agent.running())
        orchestrator, stop = Orchestrator(self._options()), asyncio.Event()
        running = asyncio.create_task(orchestrator.run(stop))

        async def end() -> None:
            stop.set()
            assert await running == 0

        self._exits.push_async_callback(end)
        self._asker = self._control("asker")
        await enter(self._asker)
        await self._asker.subscribe(TOPICS.pattern("result", client="asker"))
        reader = asyncio.create_task(self._read())
        self._exits.callback(reader.cancel)
        await until(lambda: orchestrator._dispatcher.ident is not None)

    def _options(self) -> OrchestratorOptions:
        return OrchestratorOptions(
            broker=self._url,
            root=TOPICS.root,
            state_dir=self._directory / "orchestrator",
            cluster=ClusterSettings(
                settle_s=0.1, retry_s=0.1, cool_down_s=0.2, drift_interval_s=0.2
            ),
        )

    async def close(self) -> None:
        await self._exits.aclose()

    async def _read(self) -> None:
        async for message in self._asker.messages():
            answer = decode_json(message.payload, Answer)
            self.answers[answer.job] = answer

    async def answered(self, model: str, job: str) -> Answer:
        """The answer to one job."""
        properties = Properties(
            response_topic=TOPICS.topic("result", client="asker", job=job),
            correlation_data=job.encode(),
        )
        topic = TOPICS.topic("infer", model=model)
        await self._asker.publish(topic, JPEG, properties=properties)
        await until(lambda: job in self.answers)
        return self.answers[job]

    def nodes(self, model: str) -> list[str]:
        state = self.operator.state(model)
        assert state is not None
        return [stage.node for pipeline in state.pipelines for stage in pipeline.stages]

    def generation(self, model: str) -> int:
        state = self.operator.state(model)
        assert state is not None
        return state.generation


@pytest.fixture
async def world(url: BrokerUrl, tmp_path: Path) -> AsyncIterator[World]:
    world = World(url, tmp_path)
    try:
        yield world
    finally:
        await world.close()


async def test_two_models_are_served_and_a_third_that_does_not_fit_is_refused(
    world: World,
) -> None:
    await world.start(a=WHOLE_BYTES + 64, b=WHOLE_BYTES + 64, c=64)
    for name in ("m", "n"):
        ended = await world.operator.serve(Model(name), name, strategy="single")
        assert ended.status == "ok", ended.error
    assert (world.nodes("m"), world.nodes("n")) == (["a"], ["b"])
    for name in ("m", "n"):
        assert (await world.answered(name, f"{name} before")).status == "ok"

    refused = await world.operator.serve(Model("o"), "o", strategy="single", timeout_s=1.0)
    assert refused.error is not None
    assert "the largest free is 64 bytes" in refused.error.message
    assert (
        f"(m holds {WHOLE_BYTES} bytes of a, n holds {WHOLE_BYTES} bytes of b)"
        in refused.error.message
    )
    assert (world.generation("m"), world.generation("n")) == (1, 1)
    for name in ("m", "n"):
        assert (await world.answered(name, f"{name} after")).status == "ok"

    await world.operator.ask("stop", StopRequest(transaction="s", model="n"))
    await until(lambda: (state := world.operator.state("o")) and state.state == "serving")
    assert world.nodes("o") == ["b"], "it was asked for, and now there is room"
    assert world.generation("m") == 1
    assert (await world.answered("o", "o")).nodes == ["b"]

"""An orchestrator announces to Home Assistant: what is there is true, what was there is taken back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.core.cluster_settings import ClusterSettings
from shared.messages.operation import StopRequest
from tests.fakes.cluster import FakeAgent, Model, until
from tests.fakes.home_assistant import Entity, HomeAssistant
from tests.shell.orchestrator_world import World, world_in

OTHERS = "homeassistant/device/zigbee_lamp/config"


class Home:
    """A Home Assistant that has seen all that was published so far, whenever it is asked."""

    def __init__(self, world: World, prefix: str = "homeassistant") -> None:
        self._world = world
        self._home = HomeAssistant(prefix)
        self._seen = 0

    def _catch_up(self) -> HomeAssistant:
        published = self._world.broker.published
        while self._seen < len(published):
            message = published[self._seen]
            self._seen += 1
            if message.topic != OTHERS:
                self._home.take(message.topic, bytes(message.payload))
        return self._home

    @property
    def devices(self) -> set[str]:
        return {document["dev"]["name"] for document in self._catch_up().devices.values()}

    def entity(self, device: str, name: str) -> Entity:
        return self._catch_up().by_name[device, name]

    def announced(self) -> int:
        ours = [
            m for m in self._world.broker.published if m.topic.endswith("/config") and m.payload
        ]
        return len([message for message in ours if message.topic != OTHERS])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as world:
        world.options = replace(
            world.options,
            home_assistant="homeassistant",
            cluster=ClusterSettings(settle_s=0.05, retry_s=0.1, forget_after_s=0.6),
        )
        yield world


def documents(world: World, prefix: str = "homeassistant") -> set[str]:
    """What is retained below a prefix."""
    return {topic for topic in world.broker.retained if topic.startswith(f"{prefix}/device/")}


async def test_a_node_and_a_model_come_and_go(world: World) -> None:
    world.broker.publish(OTHERS, b'{"dev": {}}', 1, retain=True)
    home = Home(world)
    async with world.orchestrator(), world.agents("a") as (agent,):
        await agent.tell(cpu_percent=12.5)
        await until(lambda: home.devices == {"a"})
        assert home.entity("a", "CPU").state == "12.5"
        assert home.entity("a", "CPU").available
        assert (await world.operator.serve(Model())).status == "ok"
        await until(lambda: home.devices == {"a", "m"})
        assert home.entity("m", "State").state == "serving"
        assert home.entity("m", "Last label").state is None
        await world.answer()
        await until(lambda: home.entity("m", "Last label").state == "dog")
        assert home.entity("m", "Last label").attributes["probability"] > 0.5
        await world.operator.ask("stop", StopRequest(transaction="s", model="m"))
        await until(lambda: home.devices == {"a"})
        world.broker.cut("agent-a")
        assert home.entity("a", "Availability").state == "offline"
        assert not home.entity("a", "CPU").available
        await until(lambda: home.devices == set())
        world.broker.mend("agent-a")
        await agent.tell(cpu_percent=1.0)
        await until(lambda: home.devices == {"a"})
    assert OTHERS in documents(world), "another program's is not ours to touch"


async def test_it_is_said_once_and_again_when_home_assistant_starts(world: World) -> None:
    home = Home(world)
    async with world.orchestrator() as orchestrator, world.agents("a", "b") as agents:
        for agent in agents:
            await agent.tell(cpu_percent=1.0)
        await until(lambda: home.devices == {"a", "b"})
        before, reports = home.announced(), metrics_seen(world)
        assert before == 2
        await until(lambda: metrics_seen(world) >= reports + 2)
        assert home.announced() == before
        world.broker.publish("homeassistant/status", b"offline", 1)
        for _ in range(50):
            world.broker.publish("homeassistant/status", b"online", 1)
        await until(lambda: home.announced() == before + 2)
        reports = metrics_seen(world)
        await until(lambda: metrics_seen(world) >= reports + 2)
        assert home.announced() == before + 2, "fifty times is once"
        assert orchestrator._counters["bad_messages"] == 0


def metrics_seen(world: World) -> int:
    return len([message for message in world.broker.published if message.topic == "test/metrics"])


async def test_a_broker_that_forgot_is_told_again(world: World) -> None:
    home = Home(world)
    async with world.orchestrator(), world.agents("a") as (agent,):
        await agent.tell(cpu_percent=1.0)
        await until(lambda: home.devices == {"a"})
        (topic,) = documents(world)
        world.broker.cut("orchestrator")
        del world.broker.retained[topic]
        world.broker.mend("orchestrator")
        await until(lambda: documents(world) == {topic})


async def test_a_successor_takes_back_what_is_no_more(world: World) -> None:
    async with world.agents("a") as (agent,):
        async with world.orchestrator():
            await agent.tell(cpu_percent=1.0)
            await until(lambda: len(documents(world)) == 1)
        (topic,) = documents(world)
        document = world.broker.retained[topic]
        stale = topic.replace("_node_a", "_node_gone")
        world.broker.publish(stale, bytes(document.payload), 1, retain=True)
        async with world.orchestrator():
            await until(lambda: documents(world) == {topic})
            assert bytes(world.broker.retained[topic].payload) == bytes(document.payload)


async def test_switched_off_or_moved_elsewhere_it_is_taken_back(world: World) -> None:
    async with world.agents("a") as (agent,):
        await announced(world, agent, "homeassistant")
        world.options = replace(world.options, home_assistant="house/ha")
        await announced(world, agent, "house/ha")
        assert documents(world) == set()
        world.options = replace(world.options, home_assistant=None)
        async with world.orchestrator():
            await until(lambda: documents(world, "house/ha") == set())
    assert not (world.options.state_dir / "home_assistant.json").exists()


async def announced(world: World, agent: FakeAgent, prefix: str) -> None:
    async with world.orchestrator():
        await agent.tell(cpu_percent=1.0)
        await until(lambda: len(documents(world, prefix)) == 1)


async def test_nobody_hears_of_labels_who_did_not_ask(world: World) -> None:
    world.options = replace(world.options, home_assistant=None)
    async with world.orchestrator(), world.agents("a") as (agent,):
        await agent.tell(cpu_percent=1.0)
        assert (await world.operator.serve(Model())).status == "ok"
        assert (await world.answer())["top"][0]["label"] == "dog"
        reports = metrics_seen(world)
        await until(lambda: metrics_seen(world) >= reports + 2)
    assert not [m for m in world.broker.published if not m.topic.startswith("test/")]
    told = [m.payload for m in world.broker.published if m.topic == "test/metrics"]
    assert {json.loads(payload)["models"].get("m", {}).get("last") for payload in told} == {None}

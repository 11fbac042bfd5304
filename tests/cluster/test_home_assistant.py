"""Home Assistant beside a real cluster: its devices show what really runs, and go with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import paho.mqtt.client as paho
import voluptuous as vol
from paho.mqtt.enums import CallbackAPIVersion

from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from deploy.photo import PHOTO
from tests.cluster.conftest import MODEL
from tests.fakes.home_assistant import Entity, HomeAssistant


class Home:
    """A Home Assistant on the broker, in a thread of its own."""

    def __init__(self, port: int) -> None:
        self.home = HomeAssistant()
        self._came = threading.Condition()
        self._problems: list[BaseException] = []
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe([("#", 1)])
        self._client.on_message = self._take
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _take(self, _: object, __: object, message: paho.MQTTMessage) -> None:
        if "/artifact/" in message.topic or "/pipeline/" in message.topic:
            return
        with self._came:
            try:
                self.home.take(message.topic, bytes(message.payload))
            except (AssertionError, ValueError, vol.Invalid) as error:
                self._problems.append(error)  # this thread's errors are nobody's
            self._came.notify_all()

    def wait(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        with self._came:
            there = self._came.wait_for(lambda: self._problems or condition(), timeout_s)
            assert not self._problems, self._problems
            assert there, {key: each.state for key, each in self.home.by_name.items()}

    def entity(self, device: str, name: str) -> Entity | None:
        return self.home.by_name.get((device, name))

    def state(self, device: str, name: str) -> str | None:
        entity = self.entity(device, name)
        return None if entity is None or not entity.available else entity.state

    def names(self) -> set[str]:
        return {document["dev"]["name"] for document in self.home.devices.values()}


async def test_from_the_first_node_to_the_switch_off(tmp_path: Path) -> None:
    arguments = ("--home-assistant", "--forget-after", "3s")
    async with LocalCluster(tmp_path, agents=2, orchestrator_arguments=arguments) as cluster:
        await cluster.wait_for_nodes()
        with Home(cluster.broker.port) as home:
            home.wait(lambda: home.names() == {"agent-1", "agent-2"})
            await cluster.serve(MODEL, ServeFlags(weights="none", min_stages=2, max_stages=2))
            home.wait(lambda: home.state(MODEL, "State") == "serving")
            stages = {f"{MODEL} stage 0", f"{MODEL} stage 1"}
            home.wait(lambda: {home.state(f"agent-{n}", "Stage") for n in (1, 2)} == stages)
            async with cluster.client() as client:
                answer = await client.infer(MODEL, PHOTO)
            home.wait(lambda: home.state(MODEL, "Last label") == answer.top[0].label)
            home.wait(lambda: float(home.state(MODEL, "Latency") or 0) > 0)
            for name in ("CPU", "Memory"):
                home.wait(lambda name=name: float(home.state("agent-2", name) or 0) > 0)  # type: ignore[misc]
            assert home.state("agent-2", "Availability") == "online"
            await cluster.kill_agent("agent-2")
            home.wait(lambda: home.state("agent-2", "Availability") == "offline")
            home.wait(lambda: home.state("agent-2", "CPU") is None)
            home.wait(lambda: home.names() == {"agent-1", MODEL}, 60)
            await cluster.restart_orchestrator(())
            home.wait(lambda: home.names() == set(), 60)

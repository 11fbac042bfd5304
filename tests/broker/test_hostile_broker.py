"""Both faces against a broker that speaks broken MQTT: they survive it, and work when it is over."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import aiomqtt
import pytest

from shared.bus import Backoff, BrokerUrl, MqttControlBus, MqttDataBus
from tests.broker.conftest import until
from tests.fuzz.hostile_broker import HostileBroker

CONNECTIONS = int(os.environ.get("AMP4EC_FUZZ_CONNECTIONS", "150"))
CONTROL_CONNECTIONS = 8
"""aiomqtt waits 5 s for some of what is wrong."""
MOST_NEW_FILES = 3
DEADLINE_S = 60.0
QUICK = Backoff(first_s=0.001, limit_s=0.002)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_data_face_outlives_a_broken_broker(url: BrokerUrl, seed: int) -> None:
    def scenario() -> None:
        before = open_files()
        with HostileBroker(url.port, CONNECTIONS, seed) as broker:
            here = BrokerUrl.parse(f"mqtt://127.0.0.1:{broker.port}")
            bus = MqttDataBus(here, "one", clean_start=False, session_expiry_s=60, backoff=QUICK)
            bus.subscribe("t/answer")
            bus.connect()
            deadline = time.monotonic() + DEADLINE_S
            asked, answered = False, False
            while not answered:
                assert time.monotonic() < deadline, f"{broker.connections} connections"
                bus.poll(0.01)
                if broker.connections > CONNECTIONS and bus.connected and not asked:
                    bus.publish("t/answer", b"after it all")
                    asked = True
                while (message := bus.receive()) is not None:
                    answered = message.payload == b"after it all"
            bus.close()
            assert broker.connections > CONNECTIONS
        assert open_files() <= before + MOST_NEW_FILES

    await asyncio.to_thread(scenario)


async def test_the_control_face_outlives_a_broken_broker(url: BrokerUrl) -> None:
    escaped: list[str] = []

    def note(_: object, what: dict[str, object]) -> None:
        # aiomqtt leaves a lost connection's futures to nobody; that is said, and no more.
        if not isinstance(what.get("exception"), aiomqtt.MqttError):
            escaped.append(str(what))

    asyncio.get_running_loop().set_exception_handler(note)
    with HostileBroker(url.port, CONTROL_CONNECTIONS, 1) as broker:
        here = BrokerUrl.parse(f"mqtt://127.0.0.1:{broker.port}")
        bus = MqttControlBus(here, client_id="one", backoff=QUICK)
        await bus.subscribe("t/answer")
        async with bus, asyncio.timeout(DEADLINE_S):
            await until(
                lambda: broker.connections > CONTROL_CONNECTIONS and bus.connected, DEADLINE_S
            )
            await bus.publish("t/answer", b"after it all")
            async for message in bus.messages():
                if message.payload == b"after it all":
                    break
    assert escaped == []

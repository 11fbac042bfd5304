"""The link probe on a real Mosquitto, behind a relay with a known rate."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

import edge_agent.link_probe
from broker.launcher import Broker
from edge_agent.core.links import RESOLUTION_S, SIZES_BYTES
from edge_agent.link_probe import LinkProbe
from shared.bus import BrokerUrl, MqttControlBus
from shared.link_rates import Rates
from shared.topics import Topics
from tests.broker.conftest import until
from tests.fakes.relay import Relay

MB = 1e6
TOLERANCE_RATIO = 0.3
FASTEST = SIZES_BYTES[-1] / RESOLUTION_S
"""What the probe says where it cannot tell."""


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round after round: a machine that is busy with other tests may spoil one."""
    monkeypatch.setattr(edge_agent.link_probe, "INTERVAL_S", 0.01)
    monkeypatch.setattr(edge_agent.link_probe, "AGAIN_S", 0.01)


def near(told: float | None, truth: float) -> bool:
    return told is not None and abs(told - truth) <= TOLERANCE_RATIO * truth


@contextlib.asynccontextmanager
async def probing(port: int, shown: Callable[[], Rates] = Rates) -> AsyncIterator[LinkProbe]:
    url = BrokerUrl.parse(f"mqtt://127.0.0.1:{port}")
    bus = MqttControlBus(url, client_id="probed", first_connect_timeout_s=10.0)
    probe = LinkProbe("n1", control=bus, topics=Topics("test"), moved_bytes=lambda: 0, shown=shown)
    async with bus:

        async def read() -> None:
            async for message in bus.messages():
                probe.take(message)

        tasks = [asyncio.create_task(read()), asyncio.create_task(probe.run())]
        try:
            yield probe
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _port(broker: Broker) -> int:
    port = BrokerUrl.parse(broker.url).port
    assert port is not None
    return port


@pytest.mark.parametrize(
    ("up", "down"), [(0.1, 0.1), (1.0, 1.0), (1.0, 10.0), (10.0, 1.0), (10.0, 10.0), (50.0, 50.0)]
)
async def test_rates_of_a_slow_link(broker: Broker, up: float, down: float) -> None:
    relay = Relay(_port(broker), up_bytes_per_s=up * MB, down_bytes_per_s=down * MB)
    async with relay, probing(relay.port) as probe:
        await until(
            lambda: near(probe.up.bytes_per_s, up * MB) and near(probe.down.bytes_per_s, down * MB),
            30.0,
        )


async def test_the_fast_way_of_an_uneven_link_is_left_open(broker: Broker) -> None:
    """Large payloads would take up the slow way for long, and small ones say nothing of the fast one."""
    async with Relay(_port(broker), up_bytes_per_s=MB) as relay, probing(relay.port) as probe:
        await until(lambda: near(probe.up.bytes_per_s, MB), 30.0)
        assert probe.down.bytes_per_s is None


async def test_a_fast_link_does_not_read_as_slow(broker: Broker) -> None:
    async with probing(_port(broker)) as probe:
        await until(
            lambda: min(probe.up.bytes_per_s or 0.0, probe.down.bytes_per_s or 0.0) > 50 * MB, 30.0
        )
        assert max(probe.up.bytes_per_s or 0.0, probe.down.bytes_per_s or 0.0) <= FASTEST

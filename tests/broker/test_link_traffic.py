"""A link's bandwidth from activations that flow over a real Mosquitto, behind a relay with a known rate."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

import edge_agent.link_probe
from broker.launcher import Broker
from edge_agent.core.links import counts
from edge_agent.link_probe import LinkProbe
from orchestrator.core.condition import Condition
from shared.bus import BrokerUrl, MqttControlBus, MqttDataBus
from shared.link_rates import Rate, Rates
from shared.topics import Topics
from tests.broker.conftest import until
from tests.broker.test_link_probe import near
from tests.core.cluster_world import telemetry
from tests.fakes.relay import Relay

MB = 1e6
ITEM_BYTES = 300_000
WITHIN_S = 40.0
"""A machine that is busy with other tests may spoil some of it."""
_SOMETHING = bytes(1 << 20)


class Pipeline:
    """A source and a sink beside the broker, and between them a stage, on the link that is looked at."""

    def __init__(self, broker: BrokerUrl, link: BrokerUrl, *, compute_s: float) -> None:
        self.rates = Rates()
        self.items = 0
        self._compute_s = compute_s
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._threads = [
            threading.Thread(target=self._stage, args=(link,)),
            threading.Thread(target=self._source, args=(broker,)),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10.0)

    def _stage(self, url: BrokerUrl) -> None:
        bus = MqttDataBus(url, "stage")
        bus.subscribe("in")
        bus.subscribe("ready")
        bus.connect(10.0)
        output = bytes(ITEM_BYTES)
        while not self._stop.is_set():
            if not self._ready.is_set():
                bus.publish("ready", b"")  # comes back when the broker has the subscriptions
            bus.poll(0.2)
            while (message := bus.receive()) is not None:
                self._ready.set()
                if message.payload:
                    self._compute()
                    bus.publish("out", output)
                    self.items += 1
            self.rates = bus.rates
        bus.close()

    def _compute(self) -> None:
        until_s = time.thread_time() + self._compute_s
        while time.thread_time() < until_s:
            hashlib.sha256(_SOMETHING)  # like a runtime, it lets other threads of Python's run

    def _source(self, url: BrokerUrl) -> None:
        """One item in flight, so that the stage waits for each."""
        bus = MqttDataBus(url, "source")
        bus.subscribe("out")
        bus.connect(10.0)
        self._ready.wait(10.0)
        item = bytes(ITEM_BYTES)
        bus.publish("in", item)
        while not self._stop.is_set():
            bus.poll(0.2)
            while bus.receive() is not None:
                bus.publish("in", item)
        bus.close()


@contextlib.contextmanager
def flowing(broker: Broker, port: int, *, compute_s: float = 0.0) -> Iterator[Pipeline]:
    pipeline = Pipeline(
        BrokerUrl.parse(broker.url),
        BrokerUrl.parse(f"mqtt://127.0.0.1:{port}"),
        compute_s=compute_s,
    )
    pipeline.start()
    try:
        yield pipeline
    finally:
        pipeline.stop()


def _port(broker: Broker) -> int:
    port = BrokerUrl.parse(broker.url).port
    assert port is not None
    return port


def told(rates: Rates) -> tuple[float | None, float | None]:
    """Up and down, as telemetry has it where no probe has ever run."""
    now = time.monotonic()
    return counts(rates.up, None, now), counts(rates.down, None, now)


@pytest.mark.parametrize(
    ("up", "down"), [(1.0, 1.0), (10.0, 10.0), (50.0, 50.0), (5.0, 20.0), (20.0, 5.0)]
)
async def test_rates_of_a_link_without_a_probe(broker: Broker, up: float, down: float) -> None:
    relay = Relay(_port(broker), up_bytes_per_s=up * MB, down_bytes_per_s=down * MB)
    async with relay:
        with flowing(broker, relay.port) as pipeline:

            def found() -> bool:
                is_up, is_down = told(pipeline.rates)
                return near(is_up, up * MB) and near(is_down, down * MB)

            await until(found, WITHIN_S)


async def test_a_fast_link_does_not_read_as_slow_while_the_stage_computes(broker: Broker) -> None:
    """Enough traffic for many measurements, and the thread away for most of the time."""
    with flowing(broker, _port(broker), compute_s=0.01) as pipeline:
        await until(lambda: pipeline.items >= 150, WITHIN_S)
        await until(lambda: pipeline.rates.up is not None, WITHIN_S)
        up, down = told(pipeline.rates)
        assert up is not None
        assert up > 50 * MB
        assert down is None or down > 50 * MB


async def test_a_link_that_slows_is_noticed_by_the_planner(broker: Broker) -> None:
    relay = Relay(_port(broker), up_bytes_per_s=50 * MB, down_bytes_per_s=50 * MB)
    condition = Condition()
    async with relay:
        with flowing(broker, relay.port) as pipeline:

            def seen(rate: float) -> Callable[[], bool]:
                def check() -> bool:
                    up, down = told(pipeline.rates)
                    now = time.monotonic()
                    condition.take(now, telemetry("a", up_bytes_per_s=up, down_bytes_per_s=down))
                    return near(condition.up_bytes_per_s, rate) and near(
                        condition.down_bytes_per_s, rate
                    )

                return check

            await until(seen(50 * MB), WITHIN_S)
            relay.up_bytes_per_s = relay.down_bytes_per_s = 5 * MB
            await until(seen(5 * MB), WITHIN_S)


@contextlib.asynccontextmanager
async def watched(
    broker: Broker, shown: Callable[[], Rates]
) -> AsyncIterator[tuple[LinkProbe, list[str]]]:
    """A probe, and the topics of all that it publishes."""
    bus = MqttControlBus(
        BrokerUrl.parse(broker.url), client_id="probed", first_connect_timeout_s=10.0
    )
    probe = LinkProbe("n1", control=bus, topics=Topics("t"), moved_bytes=lambda: 0, shown=shown)
    published: list[str] = []
    async with bus:

        async def read() -> None:
            async for message in bus.messages():
                published.append(message.topic)
                probe.take(message)

        tasks = [asyncio.create_task(read()), asyncio.create_task(probe.run())]
        try:
            yield probe, published
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_probe_runs_only_for_what_traffic_does_not_show(
    broker: Broker, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_agent.link_probe, "AGAIN_S", 0.01)
    asked = 0
    shows_both = True

    def shown() -> Rates:
        nonlocal asked
        asked += 1
        rate = Rate(1 * MB, time.monotonic())
        if shows_both:
            return Rates(rate, rate)
        return Rates(up=rate) if direction == "up" else Rates(down=rate)

    async with watched(broker, shown) as (probe, published):
        await until(lambda: asked >= 3, WITHIN_S)
        assert published == []
        assert (probe.up.rate, probe.down.rate) == (None, None)
        shows_both = False
        await until(lambda: probe.up.rate is not None and probe.down.rate is not None, WITHIN_S)

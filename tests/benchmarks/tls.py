"""What a closed broker costs: activations over TLS and an ACL against an open one, in turns in one run.

First the messages alone: this process sends an activation's bytes to a relay and gets them back, over each
broker in turn; one at a time (half a round trip is a hop) and several under way (messages/s, and the CPU that
the broker and the relay use for each). Then a three-stage pipeline that answers photographs, on both.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from operator import attrgetter

from broker.access import Role
from deploy.local import LocalCluster
from deploy.peer import Peer
from orchestrator.core.dispatch_settings import default_window
from shared.bus import BrokerUrl, MqttDataBus
from shared.errors import BrokerUnreachableError
from tests.benchmarks.clusters import MODEL, THREE_STAGES, calibrated, serve
from tests.benchmarks.context import Context
from tests.benchmarks.load import Saturation, describe
from tests.benchmarks.payloads import jpeg_input
from tests.benchmarks.processes import cpu_s
from tests.benchmarks.report import Bar, Row
from tests.benchmarks.sites import (
    ClosedCluster,
    ClosedSite,
    OpenSite,
    closed_site,
    open_site,
)
from tests.benchmarks.tls_relay import BACK, THERE

SIZES = {"31 KB": 31_360, "75 KB": 75_264, "300 KB": 301_056}
"""Of activations as MobileNetV2 has them, early to late; bytes."""
_WINDOW = 8
_STAGES = 3
_BAR = 0.75
_BATCH_S = 60.0
_METHOD = "QoS 1 through a relay and back, in turns with the open broker; two cores for all four"
_PIPELINE = "MobileNetV2, torch, at 0.5/0.3/0.2 CPU, JPEGs, a window's worth under way; in turns"
_CPU = "process CPU over a batch / its messages; the broker has each twice in and twice out"


async def run(context: Context) -> list[Row]:
    """See the module."""
    return [*await _messages(context), *await _pipelines(context)]


async def _messages(context: Context) -> list[Row]:
    batches, messages = context.choose(3, 20), context.choose(60, 300)
    trips = context.choose(8, 20)
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        is_open = await stack.enter_async_context(open_site(context.directory / "open"))
        is_closed = await stack.enter_async_context(closed_site(context.directory / "closed"))
        lines = {"open": await _line(stack, is_open), "closed": await _line(stack, is_closed)}
        for size, count in SIZES.items():
            context.say(f"tls: {batches} times {trips} round trips and {messages} messages, {size}")
            samples: dict[str, list[_Sample]] = {kind: [] for kind in lines}
            for index in range(-1, batches):
                for kind, line in lines.items():
                    sample = await asyncio.to_thread(line.measure, bytes(count), trips, messages)
                    if index >= 0:  # the first warms up
                        samples[kind].append(sample)
            rows += _rows(size, samples)
    return rows


async def _pipelines(context: Context) -> list[Row]:
    """Two clusters at once, of which one has nothing to do."""
    stretches, seconds = context.choose(2, 6), context.choose(3.0, 6.0)
    per_s: dict[str, list[float]] = {"open": [], "closed": []}
    latency_ms: dict[str, list[float]] = {"open": [], "closed": []}
    async with AsyncExitStack() as stack:
        clients = {}
        for kind, cluster_kind in (("open", LocalCluster), ("closed", ClosedCluster)):
            cluster = await stack.enter_async_context(
                calibrated(context, f"tls-pipeline-{kind}", kind=cluster_kind)
            )
            await serve(context, cluster, THREE_STAGES)
            clients[kind] = await stack.enter_async_context(cluster.client())
        window = default_window(_STAGES)
        for index in range(-1, stretches):
            for kind, client in clients.items():
                context.say(f"tls: three stages, {kind}, {index + 1} of {stretches}")
                async with Saturation(client, MODEL, jpeg_input(), window) as load:
                    await load.warm_up(3 * window)
                    interval = await load.measure(seconds)
                if index >= 0:
                    per_s[kind].append(interval.per_s)
                    latency_ms[kind] += interval.latency_ms()
    return [
        *(
            Row.of("tls", f"three stages, {kind}", "images/s", per_s[kind], method=_PIPELINE,
                   against=describe(latency_ms[kind]))
            for kind in per_s
        ),
        Row.of("tls", "three stages: closed / open", "x", _ratios(per_s), method=_PIPELINE,
               bar=Bar(_BAR, sense="at least")),
    ]  # fmt: skip


def _ratios(values: dict[str, list[float]]) -> list[float]:
    return [ours / base for ours, base in zip(values["closed"], values["open"], strict=True)]


@dataclass(frozen=True, slots=True)
class _Sample:
    """Of one batch: hop times in ms, messages/s, and CPU per message of broker and relay in ms."""

    hops_ms: list[float]
    per_s: float
    broker_ms: float
    relay_ms: float


class _Line:
    """This process's connection to one broker, and the relay behind it."""

    def __init__(self, url: BrokerUrl, broker_pid: int, relay_pid: int) -> None:
        self._bus = MqttDataBus(url, "bench-feeder")
        if not self._bus.connect(10.0):
            raise BrokerUnreachableError(f"no connection to {url}")
        self._bus.subscribe(BACK)
        self._broker_pid = broker_pid
        self._relay_pid = relay_pid

    def measure(self, payload: bytes, rounds: int, messages: int) -> _Sample:
        """Round trips one by one, then a batch with a window's worth under way."""
        hops_ms = []
        for _ in range(rounds):
            began = time.perf_counter()
            self._relayed(payload, 1, 1)
            hops_ms.append((time.perf_counter() - began) / 2 * 1e3)
            self._bus.flush(1.0)
        before = cpu_s(self._broker_pid), cpu_s(self._relay_pid)
        began = time.perf_counter()
        self._relayed(payload, messages, _WINDOW)
        took_s = time.perf_counter() - began
        return _Sample(
            hops_ms,
            messages / took_s,
            (cpu_s(self._broker_pid) - before[0]) / messages * 1e3,
            (cpu_s(self._relay_pid) - before[1]) / messages * 1e3,
        )

    def _relayed(self, payload: bytes, messages: int, window: int) -> None:
        """Have so many messages relayed; returns when the last has come back."""
        sent = received = 0
        deadline = time.monotonic() + _BATCH_S
        while received < messages:
            while sent < messages and sent - received < window:
                self._bus.publish(THERE, payload)
                sent += 1
            self._bus.poll(1.0)
            while self._bus.receive() is not None:
                received += 1
            if time.monotonic() > deadline:
                raise BrokerUnreachableError(
                    "the relay", expected=f"{messages} messages", got=f"{received}"
                )

    def close(self) -> None:
        """Disconnect."""
        self._bus.close()


async def _line(stack: AsyncExitStack, site: OpenSite | ClosedSite) -> _Line:
    relay = await Peer.start("tests.benchmarks.tls_relay", site.login("relay", Role.AGENT))
    await stack.enter_async_context(relay)
    line = _Line(BrokerUrl.parse(site.login("feeder", Role.AGENT)), site.broker.pid, relay.pid)
    stack.callback(line.close)
    return line


def _rows(size: str, samples: dict[str, list[_Sample]]) -> list[Row]:
    rows: list[Row] = []
    for name, unit, method, value in (
        ("hop of", "ms", _METHOD, _hop_ms),
        (f"{_WINDOW} under way,", "messages/s", _METHOD, attrgetter("per_s")),
        ("broker's CPU per message of", "ms", _CPU, attrgetter("broker_ms")),
        ("relay's CPU per message of", "ms", _CPU, attrgetter("relay_ms")),
    ):
        values = {kind: [value(sample) for sample in each] for kind, each in samples.items()}
        rows += [
            Row.of("tls", f"{name} {size}, {kind}", unit, each, method=method)
            for kind, each in values.items()
        ]
        rows.append(
            Row.of("tls", f"{name} {size}: closed / open", "x", _ratios(values), method=method)
        )
    return rows


def _hop_ms(sample: _Sample) -> float:
    return statistics.median(sample.hops_ms)

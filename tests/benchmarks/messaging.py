"""CPU of messaging per stage and item: an agent's stage thread around a runtime that does nothing.

A process of its own takes 50 KB activations and sends 31 KB ones on, as MobileNetV2's second stage does at
QoS 1; its whole CPU time over a batch is divided by the batch's items. Beside it a process that receives and
sends the same sizes on the same bus and looks at nothing: what is left above that is the codec and the stage.
A third is a stage of a closed cluster, which checks and makes MACs. Batches of the three alternate.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from broker.launcher import Broker
from deploy.peer import Peer
from shared.bus import BrokerUrl, MqttDataBus
from shared.errors import BrokerUnreachableError
from tests.benchmarks.context import Context
from tests.benchmarks.payloads import activation_array, encode_activation
from tests.benchmarks.processes import cpu_s
from tests.benchmarks.relay import FROM, INPUT, MAC, OUTPUT, TO
from tests.benchmarks.report import Bar, Row

_METHOD = f"process CPU over a batch / its items; {INPUT} in, {OUTPUT} out, QoS 1"
_BAR_MS = 0.35
_BATCH_S = 60.0
_WINDOWS = {
    1: "1 in flight (each item wakes the thread)",
    4: "4 in flight (as in a busy pipeline)",
}


async def run(context: Context) -> list[Row]:
    """See the module."""
    batches, items = context.choose(3, 20), context.choose(60, 300)
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(directory=context.directory / "messaging"))
        peers = {
            kind: await stack.enter_async_context(
                await Peer.start("tests.benchmarks.relay", kind, broker.url)
            )
            for kind in ("stage", "sealed", "bare")
        }
        feeder = _Feeder(BrokerUrl.parse(broker.url))
        stack.callback(feeder.close)
        for window, words in _WINDOWS.items():
            context.say(f"messaging: {batches} batches of {items} items, {words}")
            used_ms: dict[str, list[float]] = {kind: [] for kind in peers}
            for index in range(-1, batches):
                for kind, peer in peers.items():
                    before = cpu_s(peer.pid)
                    await asyncio.to_thread(feeder.feed, kind, items, window)
                    if index >= 0:  # the first warms up
                        used_ms[kind].append((cpu_s(peer.pid) - before) / items * 1e3)
            bare = Row.of(
                "messaging", f"bare data bus, {words}", "ms", used_ms["bare"], method=_METHOD
            )
            rows += [
                Row.of(
                    "messaging", f"a stage and item, {words}", "ms", used_ms["stage"],
                    method=_METHOD, against=f"bare bus: {bare.values.median:.3f} ms",
                    bar=Bar(_BAR_MS),
                ),
                Row.of(
                    "messaging", f"with MACs, {words}", "ms", used_ms["sealed"],
                    method=_METHOD, against=f"bare bus: {bare.values.median:.3f} ms",
                ),
                bare,
            ]  # fmt: skip
    return rows


class _Feeder:
    """Keeps a window of items under way to a relay, and takes what comes back."""

    def __init__(self, url: BrokerUrl) -> None:
        self._bus = MqttDataBus(url, "bench-feeder")
        if not self._bus.connect(10.0):
            raise BrokerUnreachableError(f"no connection to {url}")
        for kind in TO:
            self._bus.subscribe(TO[kind])
        self._payload = bytes(encode_activation(activation_array(INPUT)))

    def feed(self, kind: str, items: int, window: int) -> None:
        """Have `items` relayed; returns when the last has come back."""
        sent = received = 0
        deadline = time.monotonic() + _BATCH_S
        while received < items:
            while sent < items and sent - received < window:
                sealed = MAC.seal(FROM[kind], self._payload) if kind == "sealed" else None
                self._bus.publish(FROM[kind], self._payload, properties=sealed)
                sent += 1
            self._bus.poll(1.0)
            while self._bus.receive() is not None:
                received += 1
            if time.monotonic() > deadline:
                raise BrokerUnreachableError(
                    f"relay {kind}", expected=f"{items} items", got=f"{received} items"
                )
        self._bus.flush(1.0)

    def close(self) -> None:
        """Disconnect."""
        self._bus.close()

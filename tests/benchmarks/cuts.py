"""A network cut without a reset: how long until jobs are answered, and until the node is back.

Three agents at 0.5, 0.3 and 0.2 CPU serve MobileNetV2 in three stages on ONNX Runtime, each in a network of
its own; a client asks ten times a second. In turn each agent's packets vanish both ways (`deploy.network`):
no reset, no last will within the time that matters. So its silence has to be noticed, and what it held has
to run elsewhere. After that its network is mended.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from deploy.link import network_missing
from deploy.local import LocalCluster
from shared.errors import ConfigurationError
from tests.benchmarks.clusters import MODEL, SHARES, THREE_STAGES, calibrated, serve
from tests.benchmarks.context import Context
from tests.benchmarks.load import Trickle, describe
from tests.benchmarks.payloads import jpeg_input
from tests.benchmarks.report import Bar, Row
from tests.benchmarks.watch import Watch, watching

_PERIOD_S = 0.1
_WITHIN_S = 120.0
_METHOD = "onnxruntime, 10 JPEGs a second, three stages at 0.5/0.3/0.2 CPU; each agent in turn"
_STRIDE_S = 0.381966
"""Cuts fall anywhere between two telemetries, evenly (the golden section)."""
_RECOVERY = Bar(3.0, of="high")


async def run(context: Context) -> list[Row]:
    """See the module.

    Raises:
        ConfigurationError: this machine has no network namespaces for us.
    """
    missing = network_missing()
    if missing:
        raise ConfigurationError(f"networks cannot be cut here: {missing}")
    cycles = context.choose(3, 21)
    async with (
        calibrated(context, "cuts", isolated=True) as cluster,
        watching(cluster) as watch,
        cluster.client() as client,
    ):
        await serve(context, cluster, replace(THREE_STAGES, runtime="onnxruntime"))
        trickle = Trickle(client, MODEL, jpeg_input(), _PERIOD_S)
        cuts = _Cuts(cluster, watch, trickle)
        async with trickle:
            await trickle.newer_than(0, _WITHIN_S)
            for cycle in range(cycles):
                name = list(cluster.agents)[cycle % len(SHARES)]
                context.say(f"cut: {cycle + 1} of {cycles}, {name}")
                await cuts.cut(name, after_s=cycle * _STRIDE_S % 1.0)
                await cuts.heal(name)
    for error in trickle.failed[:5]:
        context.say(f"cut: a job failed: {error}")
    return cuts.rows()


class _Cuts:
    """A serving cluster whose nodes are cut off and mended; seconds by figure."""

    def __init__(self, cluster: LocalCluster, watch: Watch, trickle: Trickle) -> None:
        self._cluster = cluster
        self._watch = watch
        self._trickle = trickle
        self._detected: list[float] = []
        self._first: list[float] = []
        self._in_flight: list[float] = []
        self._back: list[float] = []
        self._used: list[float] = []

    async def cut(self, name: str, *, after_s: float) -> None:
        """Cut an agent off a moment later, and wait until what was asked by then is answered."""
        await self._watch.quiet(_WITHIN_S)
        await asyncio.sleep(after_s)
        began = time.monotonic()
        self._cluster.network.cut(name)
        left = await self._watch.happening("node_left", began, _WITHIN_S)
        first = await self._trickle.first(
            "to a job sent after the cut", lambda answer: answer.sent_at >= began, _WITHIN_S
        )
        await self._trickle.answers_until(began, _WITHIN_S)
        self._detected.append(left.at - began)
        self._first.append(first.at - began)
        flying = [a.at for a in self._trickle.answered if a.sent_at < began < a.at]
        if flying:
            self._in_flight.append(max(flying) - began)

    async def heal(self, name: str) -> None:
        """Mend its network, and wait until all three answer together."""
        generation = await self._watch.quiet(_WITHIN_S)
        began = time.monotonic()
        self._cluster.network.heal(name)
        joined = await self._watch.happening("node_joined", began, _WITHIN_S)
        used = await self._trickle.newer_than(generation, _WITHIN_S)
        self._back.append(joined.at - began)
        self._used.append(used.at - began)

    def rows(self) -> list[Row]:
        """The figures."""
        trickle = self._trickle
        share = 100.0 * len(trickle.answered) / max(1, trickle.sent)
        return [
            Row.of("cut", "cut to the node's silence noticed", "s", self._detected, method=_METHOD),
            Row.of(
                "cut", "cut to first answer of a job sent after it", "s", self._first,
                method=_METHOD, bar=_RECOVERY,
            ),
            Row.of(
                "cut", "cut to last answer of those in flight", "s", self._in_flight,
                method=_METHOD, bar=_RECOVERY,
            ),
            Row.of("cut", "network back to node back", "s", self._back, method=_METHOD),
            Row.of(
                "cut", "network back to first answer with the node", "s", self._used, method=_METHOD
            ),
            Row.of(
                "cut", "jobs answered through all of it", "%", [share],
                method="a job each 0.1 s, by the client that repeats what was not answered",
                against=f"{trickle.sent} jobs; {describe(trickle.latencies_ms())}",
                bar=Bar(100.0, sense="at least"),
            ),
        ]  # fmt: skip

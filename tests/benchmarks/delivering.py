"""A live model while another one is delivered to the same nodes over the same thin links.

Three agents at 0.5, 0.3 and 0.2 CPU with ONNX Runtime, each in a network of its own whose rate the kernel
limits, run MobileNetV2 in three stages as fast as they can. Then ResNet-50 (102 MB) is asked for, on the same
nodes. Rates and latencies of the live model `before`, and `while` blobs come: while the nodes say that they
fetch, before anything of the second model is loaded, which takes CPU that no pace of blobs can save.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from deploy.flags import ServeFlags
from deploy.link import network_missing
from deploy.local import LocalCluster
from orchestrator.core.dispatch_settings import default_window
from shared.client import Client
from shared.errors import ConfigurationError
from tests.benchmarks.clusters import MODEL, calibrated, serve
from tests.benchmarks.context import Context
from tests.benchmarks.load import Interval, Saturation
from tests.benchmarks.payloads import jpeg_input
from tests.benchmarks.report import Bar, Row

_SECOND = "resnet50"
_LINKS = {"10 Mbit/s": 10e6 / 8, "100 Mbit/s": 100e6 / 8, "loopback": None}
_LEAST_SHARE = 0.8
_MOST_TIMES = 1.5
_SERVED = ServeFlags(
    weights="none", min_stages=3, max_stages=3, runtime="onnxruntime", timeout_s=600.0
)
_METHOD = (
    "MobileNetV2 in three stages at 0.5/0.3/0.2 CPU, kept busy; ResNet-50 is fetched meanwhile"
)


async def run(context: Context) -> list[Row]:
    """See the module.

    Raises:
        ConfigurationError: networks cannot be made here.
    """
    missing = network_missing()
    if missing:
        raise ConfigurationError("no thin links can be made here", got=missing)
    rows: list[Row] = []
    for link in context.choose(("10 Mbit/s",), tuple(_LINKS)):
        rows += await _delivered(context, link)
    return rows


async def _delivered(context: Context, link: str) -> list[Row]:
    name = f"delivering-{link.partition(' ')[0]}"
    async with calibrated(
        context, name, isolated=True, orchestrator_arguments=("--no-prefetch",)
    ) as cluster:
        rate = _LINKS[link]
        if rate is not None:
            for node in cluster.agents:
                cluster.network.rate(node, rate)
        await serve(context, cluster, _SERVED)
        async with cluster.client() as client:
            before, meanwhile = await _measure(context, cluster, client)
    return _rows(link, before, meanwhile)


async def _measure(
    context: Context, cluster: LocalCluster, client: Client
) -> tuple[list[Interval], list[Interval]]:
    async with Saturation(client, MODEL, jpeg_input(), default_window(3)) as load:
        await load.measure(10.0)  # links are measured
        before = [await load.measure(5.0) for _ in range(context.choose(2, 4))]
        serving = asyncio.create_task(
            cluster.serve(_SECOND, replace(_SERVED, timeout_s=600.0)), name="second model"
        )
        try:
            await cluster.wait_for("blobs to come", lambda s: s.model(_SECOND) is not None, 300.0)
            meanwhile = [await load.measure(5.0) for _ in range(context.choose(2, 4))]
            state = (await client.status()).model(_SECOND)
            if state is None or state.state != "loading":
                # On fast links it is all over sooner.
                context.say(f"delivering: {_SECOND} is {state.state if state else 'gone'} already")
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
    return before, meanwhile


def _rows(link: str, before: list[Interval], meanwhile: list[Interval]) -> list[Row]:
    rates = [interval.per_s for interval in before]
    usual = sum(rates) / len(rates)
    waits = {
        name: [answer.latency_s * 1e3 for each in intervals for answer in each.answered]
        for name, intervals in (("before", before), ("while", meanwhile))
    }
    p95 = Row.of("delivering", "", "ms", waits["before"], method="").values.high
    return [
        Row.of("delivering", f"{link}: images/s before", "images/s", rates, method=_METHOD),
        Row.of(
            "delivering", f"{link}: images/s while", "images/s",
            [interval.per_s for interval in meanwhile], method=_METHOD,
            against=f"{usual:.1f} images/s before", bar=Bar(_LEAST_SHARE * usual, sense="at least"),
        ),
        Row.of("delivering", f"{link}: latency before", "ms", waits["before"], method=_METHOD),
        Row.of(
            "delivering", f"{link}: latency while", "ms", waits["while"], method=_METHOD,
            against=f"p95 {p95:.0f} ms before", bar=Bar(_MOST_TIMES * p95, of="high"),
        ),
    ]  # fmt: skip

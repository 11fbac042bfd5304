"""A broker that goes away and comes back: what that costs beyond the outage itself.

Three agents serve MobileNetV2 in three stages on ONNX Runtime. The broker is stopped or killed (SIGKILL) and
started again after half a second or five. The figure is the time from when it answers again to the first
answer of a job that was sent during the outage. The client repeats what was not answered, so none may be
missing.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from deploy.local import LocalCluster
from shared.client import Client
from tests.benchmarks.clusters import MODEL, THREE_STAGES, calibrated, serve
from tests.benchmarks.context import Context
from tests.benchmarks.load import Trickle
from tests.benchmarks.payloads import jpeg_input
from tests.benchmarks.report import Bar, Row

_PERIOD_S = 0.1
_WITHIN_S = 120.0
_BAR = Bar(2.0, of="high")
_OUTAGES_S = (0.5, 5.0)
_CLEAN, _KILL = "restarted", "SIGKILL"


async def run(context: Context) -> list[Row]:
    """See the module."""
    times = context.choose(2, 6)
    rows: list[Row] = []
    async with calibrated(context, "outages", cpus=None) as cluster, cluster.client() as client:
        await serve(context, cluster, replace(THREE_STAGES, runtime="onnxruntime"))
        for outage_s in _OUTAGES_S:
            for how in (_CLEAN, _KILL):
                context.say(f"outage: {how}, away for {outage_s:g} s, {times} times")
                extra = [await _outage(cluster, client, how, outage_s) for _ in range(times)]
                rows.append(
                    Row.of(
                        "outage", f"broker {how}, away for {outage_s:g} s: time to an answer beyond it",
                        "s", extra, bar=_BAR,
                        method="onnxruntime, three stages, 10 JPEGs a second; from when the broker answers",
                    )
                )  # fmt: skip
    return rows


async def _outage(cluster: LocalCluster, client: Client, how: str, outage_s: float) -> float:
    trickle = Trickle(client, MODEL, jpeg_input(), _PERIOD_S)
    async with trickle:
        began = time.monotonic()
        await trickle.first("before the outage", lambda answer: answer.sent_at >= began, _WITHIN_S)
        broker = cluster.broker
        await (broker.stop() if how == _CLEAN else broker.kill())
        gone = time.monotonic()
        await asyncio.sleep(outage_s)
        await broker.start()
        back = time.monotonic()
        answer = await trickle.first(
            "after the outage", lambda answer: answer.at > back > answer.sent_at > gone, _WITHIN_S
        )
    # Ended with every answer in: none may have failed.
    if trickle.failed:
        raise trickle.failed[0]
    return answer.at - back

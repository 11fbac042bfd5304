"""Records what `forecast` is measured on: telemetry of each second, from a real cluster under three loads.

    python -m tests.benchmarks.record_traces SECONDS [steady|bursty|shared ...]

MobileNetV2 in three stages on agents of 0.5, 0.3 and 0.2 CPU. `steady`: a photograph every 60 ms. `bursty`: 5
to 15 s at full load, then as long of next to nothing. `shared`: steady, while two processes that only count
have the machine's cores for 10 to 30 s, and then let go of them for as long. Writes one line per node and
second to `tests/benchmarks/traces/NAME.jsonl`: `[second, node, items, cpu_percent, compute_ms]`, with null
for the time where nothing ran.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from deploy.local import LocalCluster
from shared.bus import MqttControlBus
from shared.client import Client
from shared.codec import decode_json, encode_json
from shared.messages.node import Telemetry
from shared.topics import Topics
from tests.benchmarks.clusters import MODEL, THREE_STAGES, calibrated, serve
from tests.benchmarks.context import Context
from tests.benchmarks.load import Saturation, Trickle
from tests.benchmarks.payloads import jpeg_input

TRACES = Path(__file__).with_name("traces")
_STEADY_S, _QUIET_S = 0.06, 1.0
_WINDOW = 8
_COUNT = "while True: sum(range(10000))"


async def main(seconds: float, names: Sequence[str]) -> None:
    """Record the traces of these names."""
    with tempfile.TemporaryDirectory(prefix="amp4ec-traces-") as scratch:
        context = Context(quick=False, directory=Path(scratch))
        async with calibrated(context, "traces") as cluster:
            await serve(context, cluster, THREE_STAGES)
            async with Client(cluster.url) as client:
                for name in names:
                    context.say(f"{name}: {seconds:.0f} s")
                    async with _recording(cluster, TRACES / f"{name}.jsonl"):
                        await _LOADS[name](client, seconds)


@asynccontextmanager
async def _recording(cluster: LocalCluster, path: Path) -> AsyncIterator[None]:
    heard: list[tuple[float, Telemetry]] = []
    began = time.monotonic()
    bus = MqttControlBus(cluster.url, client_id="recorder")

    async def read() -> None:
        async for message in bus.messages():
            telemetry = decode_json(message.payload, Telemetry)
            heard.append((time.monotonic() - began, telemetry))

    async with bus:
        reading = asyncio.create_task(read(), name="recorder")
        await bus.subscribe(Topics(cluster.root).pattern("telemetry"), 0)
        yield
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    path.parent.mkdir(exist_ok=True)
    await asyncio.to_thread(path.write_bytes, b"".join(_line(*each) for each in heard))


def _line(second: float, telemetry: Telemetry) -> bytes:
    ran = [stage for stage in telemetry.stages if stage.items]
    items = sum(stage.items for stage in ran)
    compute_s = sum(stage.items * stage.compute_s for stage in ran) / items if items else None
    compute_ms = None if compute_s is None else round(compute_s * 1e3, 2)
    row = [round(second, 1), telemetry.node, items, telemetry.cpu_percent, compute_ms]
    return encode_json(row) + b"\n"


async def _steady(client: Client, seconds: float) -> None:
    async with Trickle(client, MODEL, jpeg_input(), _STEADY_S):
        await asyncio.sleep(seconds)


async def _bursty(client: Client, seconds: float) -> None:
    draw, end = random.Random(1), time.monotonic() + seconds
    while time.monotonic() < end:
        async with Saturation(client, MODEL, jpeg_input(), _WINDOW):
            await asyncio.sleep(draw.uniform(5.0, 15.0))
        async with Trickle(client, MODEL, jpeg_input(), _QUIET_S):
            await asyncio.sleep(draw.uniform(5.0, 15.0))


async def _shared(client: Client, seconds: float) -> None:
    draw, end = random.Random(2), time.monotonic() + seconds
    async with Trickle(client, MODEL, jpeg_input(), _STEADY_S):
        while time.monotonic() < end:
            await asyncio.sleep(draw.uniform(10.0, 30.0))
            neighbours = [
                await asyncio.create_subprocess_exec(sys.executable, "-c", _COUNT) for _ in range(2)
            ]
            await asyncio.sleep(draw.uniform(10.0, 30.0))
            for neighbour in neighbours:
                with contextlib.suppress(ProcessLookupError):
                    neighbour.kill()
                await neighbour.wait()


_LOADS = {"steady": _steady, "bursty": _bursty, "shared": _shared}

if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2:] or tuple(_LOADS)))

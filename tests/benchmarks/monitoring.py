"""What watching costs: CPU seconds of agents and orchestrator with all of monitoring on, and with none of it.

On: telemetry at 1 Hz, `/metrics` scraped every 5 s, a client that reads the page's WebSocket as a browser
does, and `mosquitto_sub` on everything. Off: the same cluster with telemetry once an hour, no HTTP, nobody
who reads. Each idle, and serving a model that computes next to nothing in three stages, at the same number of
jobs a second: what is left is messaging, and what monitoring adds to it. Process CPU clocks, over the whole
stretch; the off cluster's figure is taken from the on cluster's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from deploy.local import LocalCluster
from shared.bus import BrokerUrl
from shared.client import Client
from tests.benchmarks.clusters import SHARES, calibrated
from tests.benchmarks.context import Context
from tests.benchmarks.payloads import tensor_input
from tests.benchmarks.report import Bar, Row
from tests.benchmarks.tiny_model import NAME, serve_tiny
from tests.benchmarks.usage import Usage, read_usage

_SETTLE_S = 5.0
_SCRAPE_S = 5.0
_JOBS_PER_S = 5.0
_OFF = ("--telemetry-interval", "1h")
_METHOD = "process CPU clocks over {seconds:g} s, on minus off, of the node's CPU share"
"""Of the rows that have a bar."""


@dataclass(slots=True)
class _Watching:
    """What the watchers got, so that a figure is of monitoring that took place."""

    scrapes: int = 0
    messages: int = 0
    lines: int = 0
    errors: list[str] = field(default_factory=list)


async def run(context: Context) -> list[Row]:
    """See the module."""
    seconds = context.seconds or context.choose(8.0, 60.0)
    off, _ = await _measured(context, seconds, on=False)
    on, seen = await _measured(context, seconds, on=True)
    rows = []
    for state in ("idle", "serving"):
        rows += _rows(state, on[state], off[state], seconds)
    got = f"{seen.scrapes} scrapes, {seen.messages} messages to the page, {seen.lines} lines read"
    context.say(f"monitoring: {got}")
    if seen.scrapes == 0 or seen.lines == 0:
        raise RuntimeError(f"nothing was watched: {got}; {'; '.join(seen.errors[:3])}")
    return rows


def _rows(state: str, on: Usage, off: Usage, seconds: float) -> list[Row]:
    rows = []
    method = _METHOD.format(seconds=seconds)
    parts = [
        (share, f"agent at {share:g} CPU", on.agents[name], off.agents[name])
        for share, name in zip(SHARES, sorted(on.agents), strict=True)
    ]
    if state == "serving":  # which node has which stage differs between the two clusters
        used = sum(on.agents.values()), sum(off.agents.values())
        parts = [(sum(SHARES), "all agents together", *used)]
    for share, what, with_s, without_s in parts:
        rows.append(
            Row.of(
                "monitoring", f"{what}, {state}", "% of the node",
                [100.0 * (with_s - without_s) / on.seconds / share], method=method,
                against=f"{1e3 * with_s / on.seconds:.2f} ms/s on, "
                f"{1e3 * without_s / off.seconds:.2f} ms/s off",
                bar=Bar(2.0),
            )
        )  # fmt: skip
    for part in ("orchestrator", "broker"):
        with_s, without_s = getattr(on, part), getattr(off, part)
        rows.append(
            Row.of(
                "monitoring", f"{part}, {state}", "% of a core",
                [100.0 * (with_s - without_s) / on.seconds],
                method="the same, of a core",
                against=f"{1e3 * with_s / on.seconds:.2f} ms/s on, "
                f"{1e3 * without_s / off.seconds:.2f} ms/s off",
                bar=Bar(2.0) if part == "orchestrator" else None,
            )
        )  # fmt: skip
    return rows


async def _measured(
    context: Context, seconds: float, *, on: bool
) -> tuple[dict[str, Usage], _Watching]:
    name = "monitoring-on" if on else "monitoring-off"
    port = _free_port()
    seen = _Watching()
    usage: dict[str, Usage] = {}
    async with (
        calibrated(
            context,
            name,
            agent_arguments=() if on else _OFF,
            orchestrator_arguments=("--http", str(port)) if on else (),
        ) as cluster,
        _watched(cluster, port, seen) if on else contextlib.nullcontext(),
    ):
        await asyncio.sleep(_SETTLE_S)
        context.say(f"{name}: {seconds:g} s idle")
        usage["idle"] = await _over(cluster, seconds)
        await serve_tiny(context.say, cluster, len(SHARES))
        async with cluster.client() as client, _load(client):
            await asyncio.sleep(_SETTLE_S)
            context.say(f"{name}: {seconds:g} s at {_JOBS_PER_S:g} jobs/s")
            usage["serving"] = await _over(cluster, seconds)
    return usage, seen


async def _over(cluster: LocalCluster, seconds: float) -> Usage:
    before = read_usage(cluster)
    await asyncio.sleep(seconds)
    return read_usage(cluster).since(before)


@asynccontextmanager
async def _load(client: Client) -> AsyncIterator[None]:
    """The same jobs at the same times, whatever becomes of them."""
    payload = tensor_input()

    async def ask() -> None:
        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(client.infer(NAME, payload))
                due += 1.0 / _JOBS_PER_S
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async with _running(ask()):
        yield


@asynccontextmanager
async def _watched(cluster: LocalCluster, port: int, seen: _Watching) -> AsyncIterator[None]:
    """Everybody who may be watching."""
    url = BrokerUrl.parse(cluster.broker.url)
    reader = await asyncio.create_subprocess_exec(
        "mosquitto_sub", "-h", url.host, "-p", str(url.port), "-v", "-t", "amp4ec/v1/#",
        "-T", "amp4ec/v1/pipeline/#", "-T", "amp4ec/v1/artifact/#",
        "-T", "amp4ec/v1/model/+/infer/#", "-T", "amp4ec/v1/result/#",
        stdout=asyncio.subprocess.PIPE, limit=1 << 24,
    )  # fmt: skip
    try:
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
            _running(_scrape(http, seen)),
            _running(_page(http, seen)),
            _running(_lines(reader, seen)),
        ):
            yield
    finally:
        reader.terminate()
        await reader.wait()


async def _scrape(http: aiohttp.ClientSession, seen: _Watching) -> None:
    while True:
        async with http.get("/metrics") as answer:
            text = await answer.text()
            seen.scrapes += "amp4ec_orchestrator_leads 1.0" in text
        await asyncio.sleep(_SCRAPE_S)


async def _page(http: aiohttp.ClientSession, seen: _Watching) -> None:
    try:
        async with http.ws_connect("/ws") as page:
            async for _ in page:
                seen.messages += 1
    except aiohttp.ClientError as error:
        seen.errors.append(f"the page: {error}")


async def _lines(reader: asyncio.subprocess.Process, seen: _Watching) -> None:
    assert reader.stdout is not None
    while await reader.stdout.readline():
        seen.lines += 1


@asynccontextmanager
async def _running(work: object) -> AsyncIterator[None]:
    assert asyncio.iscoroutine(work)
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port

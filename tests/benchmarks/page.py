"""The page in a headless Chromium with a hundred nodes and fifty events a second.

Nodes, their telemetry at 1 Hz, metrics and events are published to a Mosquitto by a script; the server is
the orchestrator's own, in this process. Long tasks are the browser's own count (`PerformanceObserver`, which
reports what blocks the page for 50 ms and more), from before the page's first script on; the heap is what V8
says it uses, once a second (Chrome DevTools Protocol, `Performance.getMetrics`); no collection is asked for.
Wall time counts what others take of the cores; so a second page is traced, for its tasks in CPU time.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from playwright.async_api import Browser, CDPSession, Page, ViewportSize, expect

from broker.config import BrokerConfig
from broker.launcher import Broker
from orchestrator.options import OrchestratorOptions
from orchestrator.web.address import HttpAddress
from orchestrator.web.groups import http_server
from shared.bus import BrokerUrl
from shared.codec import decode_json
from shared.topics import Topics
from tests.benchmarks.context import Context
from tests.benchmarks.report import Bar, Row
from tests.fakes.browser import chromium
from tests.fakes.many_nodes import ManyNodes
from tests.fakes.page import connected

_NODES = 100
_EVENTS_PER_S = 50
_CUTS = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(20)] + [[i] for i in range(60, 90)]
_SIZE = ViewportSize(width=1280, height=900)
_TASKS = "PerformanceObserver longtask, since before the first script"
_HEAP = "CDP Performance.getMetrics JSHeapUsedSize once a second"
_TRACE = "trace of the main thread's tasks (category toplevel, thread duration), loading included"
_WORK = "CDP Performance.getMetrics, ScriptDuration + LayoutDuration + RecalcStyleDuration"
_COUNT = """
globalThis.longTasks = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) globalThis.longTasks.push(entry.duration);
}).observe({ type: "longtask", buffered: true });
"""


async def run(context: Context) -> list[Row]:
    """See the module."""
    seconds = context.choose(8, 60)
    heap_mb: list[float] = []
    busy_percent: list[float] = []
    async with _cluster(context) as (cluster, url), chromium() as browser:
        page = await browser.new_page(viewport=_SIZE)
        await page.add_init_script(_COUNT)
        devtools = await page.context.new_cdp_session(page)
        await devtools.send("Performance.enable")
        speaking = asyncio.create_task(_speak(cluster))
        try:
            await page.goto(url)
            await connected(page)
            await expect(page.locator("#picture .node")).to_have_count(_NODES)
            context.say(f"page: {_NODES} nodes, {_EVENTS_PER_S} events/s for {seconds} s")
            before, at = await _metrics(devtools), time.monotonic()
            for _ in range(seconds):
                await asyncio.sleep(1.0)
                now, now_at = await _metrics(devtools), time.monotonic()
                heap_mb.append(now["JSHeapUsedSize"] / 1e6)
                busy_percent.append(100 * (_work(now) - _work(before)) / (now_at - at))
                before, at = now, now_at
            tasks_ms = await _long_tasks(page)
            shown = await page.locator("#events-count").inner_text()
            await page.close()
            cpu_ms = await _tasks_by_cpu(browser, url, context.choose(5, 15))
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
    against = f"{_NODES} nodes at 1 Hz, {_EVENTS_PER_S} events/s, {seconds} s; {shown}"
    return [
        Row.of(
            "page", "long tasks", "tasks of 50 ms and more", [float(len(tasks_ms))],
            method=_TASKS, against=against, bar=Bar(0.0),
        ),
        Row.of(
            "page", "the longest of them", "ms", [max(tasks_ms, default=0.0)], method=_TASKS,
            against="0: there was none", bar=Bar(50.0),
        ),
        Row.of(
            "page", "its longest task, in CPU time", "ms", [max(cpu_ms)], method=_TRACE,
            against=f"of {len(cpu_ms)} tasks", bar=Bar(50.0),
        ),
        Row.of(
            "page", "heap", "MB", heap_mb, method=_HEAP, against=against,
            bar=Bar(150.0, of="largest"),
        ),
        Row.of(
            "page", "main thread at work", "% of a core", busy_percent, method=_WORK,
            against="scripts, styles and layout; without painting",
        ),
    ]  # fmt: skip


@asynccontextmanager
async def _cluster(context: Context) -> AsyncIterator[tuple[ManyNodes, str]]:
    directory = context.directory / "page"
    topics = Topics("page")
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(directory=directory, config=BrokerConfig()))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = HttpAddress(free.getsockname()[1])
        url = BrokerUrl.parse(broker.url)
        options = OrchestratorOptions(
            broker=url, root=topics.root, state_dir=directory, http=address
        )
        cluster = ManyNodes.on(url, topics, _NODES, _CUTS)
        await stack.enter_async_context(cluster.bus)
        await stack.enter_async_context(http_server(options, "benchmark", lambda: None))
        await cluster.born()
        yield cluster, address.url


async def _speak(cluster: ManyNodes) -> None:
    """Each second the telemetry of all, and events spread over it."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    second = 0
    while True:
        second += 1
        await cluster.second(float(second))
        for event in range(_EVENTS_PER_S):
            await cluster.event()
            await asyncio.sleep(
                max(0.0, begin + second + (event + 1) / _EVENTS_PER_S - 1.0 - loop.time())
            )


async def _tasks_by_cpu(browser: Browser, url: str, seconds: int) -> list[float]:
    """CPU milliseconds of each task of a new page's main thread, from its loading on."""
    page = await browser.new_page(viewport=_SIZE)
    await browser.start_tracing(page=page, categories=["toplevel"])
    await page.goto(url)
    await connected(page)
    await asyncio.sleep(seconds)
    trace = decode_json(await browser.stop_tracing(), dict)["traceEvents"]
    await page.close()
    main = {
        (event["pid"], event["tid"])
        for event in trace
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    return [
        event["tdur"] / 1e3
        for event in trace
        if (event["pid"], event["tid"]) in main and "RunTask" in event["name"] and "tdur" in event
    ]


async def _metrics(devtools: CDPSession) -> dict[str, float]:
    told = await devtools.send("Performance.getMetrics")
    return {each["name"]: each["value"] for each in told["metrics"]}


def _work(metrics: dict[str, float]) -> float:
    names = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration")
    return sum(metrics[name] for name in names)


async def _long_tasks(page: Page) -> list[float]:
    found: list[float] = await page.evaluate("globalThis.longTasks")
    return found

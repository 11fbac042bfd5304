"""The page in a real Chromium, fed by a real Mosquitto: what nodes and an orchestrator would say is drawn."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from broker.config import BrokerConfig
from broker.launcher import Broker
from orchestrator.options import OrchestratorOptions
from orchestrator.web.address import HttpAddress
from orchestrator.web.groups import http_server
from shared.bus import BrokerUrl
from shared.topics import Topics
from tests.fakes.browser import Complaints, chromium
from tests.fakes.many_nodes import ManyNodes
from tests.fakes.page import TIMEOUT_MS, connected, node, shows

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
TOPICS = Topics("test")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


@dataclass
class World:
    """A broker, the page's server, and what speaks for a cluster."""

    broker: Broker
    options: OrchestratorOptions
    cluster: ManyNodes

    @property
    def url(self) -> str:
        assert self.options.http is not None
        return self.options.http.url

    def served(self) -> AbstractAsyncContextManager[None]:
        """The page's server."""
        return http_server(self.options, "test", lambda: None)

    @asynccontextmanager
    async def seconds_pass(self) -> AsyncIterator[None]:
        """Telemetry and metrics at 5 Hz, as if seconds were shorter."""

        async def speak() -> None:
            at_s = 0.0
            while True:
                at_s += 1.0
                await self.cluster.second(at_s)
                await asyncio.sleep(0.2)

        speaking = asyncio.create_task(speak())
        try:
            yield
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)


@asynccontextmanager
async def world(
    directory: Path, nodes: int, *cuts: list[int], http: bool = True
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        config = BrokerConfig()
        broker = await stack.enter_async_context(Broker(directory=directory, config=config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        address = BrokerUrl.parse(broker.url)
        options = OrchestratorOptions(
            broker=address, root=TOPICS.root, state_dir=directory, http=HttpAddress(port)
        )
        cluster = ManyNodes.on(address, TOPICS, nodes, cuts)
        await stack.enter_async_context(cluster.bus)
        there = World(broker, options, cluster)
        if http:
            await stack.enter_async_context(there.served())
        yield there


@asynccontextmanager
async def page_of(browser: Browser, url: str, *, width: int = 1280) -> AsyncIterator[Page]:
    """The page, which complains of nothing and asks no other host."""
    context = await browser.new_context(viewport={"width": width, "height": 900})
    page = await context.new_page()
    complaints = Complaints(page)
    try:
        await page.goto(url)
        yield page
    finally:
        await context.close()
    assert complaints.words == []
    host = url.split("/")[2]
    assert {each.split("/")[2] for each in complaints.urls if not each.startswith("blob:")} == {
        host
    }


async def test_who_is_there_what_runs_where_and_how_fast(browser: Browser, tmp_path: Path) -> None:
    async with world(tmp_path, 4, [0, 1, 2]) as there:
        await there.cluster.born()
        async with there.seconds_pass(), page_of(browser, there.url) as page:
            await connected(page)
            await shows(page, "pi-0", "pi-1", "pi-2", "pi-3")
            # The slowest stage of the three, by its measured time, and no other.
            slowest = page.locator("#picture .is-slowest")
            await expect(slowest).to_have_count(1)
            await expect(slowest).to_have_attribute("data-node", "pi-2")
            # 38 items a second and some, of 301 kB each.
            carried = page.locator("#picture .carried").nth(1)
            await expect(carried).to_have_text(re.compile(r"^1\d\.\d MB/s$"), timeout=TIMEOUT_MS)
            throughput = page.locator("#throughput-caption")
            await expect(throughput).to_have_text(re.compile(r"now: mobilenet_v2 \d+\.\d/s"))
            await expect(page.locator("#latency-caption")).to_contain_text("p95")
            await expect(page.locator("#plans-legend")).to_contain_text("in force")
            await expect(page.locator("#plans-list tr")).to_have_count(4)
            await page.keyboard.press("Tab")
            await node(page, "pi-0").focus()
            await page.keyboard.press("ArrowRight")
            await page.keyboard.press("Enter")
            await expect(page.locator("#node-name")).to_have_text("pi-1")
            await expect(page.locator("#node-facts")).to_contain_text("Cortex-A72")
            await page.keyboard.press("Escape")
            await expect(page.locator("#node")).to_be_hidden()


async def test_join_leave_and_a_new_plan(browser: Browser, tmp_path: Path) -> None:
    async with world(tmp_path, 2, [0, 1]) as there:
        await there.cluster.born()
        async with page_of(browser, there.url) as page:
            await shows(page, "pi-0", "pi-1")
            await there.cluster.join(7)
            await shows(page, "pi-7")
            await there.cluster.leave(1)
            gone = node(page, "pi-1")
            await expect(gone).to_have_attribute("aria-label", re.compile("pi-1: lost"))
            await there.cluster.plan([[0, 7]], "pi-1 was lost")
            await expect(page.locator("#picture .drawing")).to_contain_text("generation 2")
            await expect(node(page, "pi-7")).to_have_attribute("aria-label", re.compile("stage 1"))
            await expect(page.locator("#plans-why")).to_have_text("pi-1 was lost")
            await expect(page.locator("#figure-nodes")).to_have_text("2 of 3")
            # What is marked in the charts is named below them.
            await there.cluster.event("node_left", "pi-1 was lost", "pi-1")
            await there.cluster.second(1.0)
            legend = page.locator("#throughput-legend")
            await expect(legend).to_contain_text("node left", timeout=TIMEOUT_MS)


async def test_every_node_of_many_can_be_opened(browser: Browser, tmp_path: Path) -> None:
    """They stand in several drawings, which lie over each other."""
    async with world(tmp_path, 75, *([i, i + 1, i + 2] for i in range(0, 60, 3))) as there:
        await there.cluster.born()
        async with there.seconds_pass(), page_of(browser, there.url) as page:
            await expect(page.locator("#picture .node")).to_have_count(75, timeout=TIMEOUT_MS)
            assert await page.locator("#picture .layer").count() > 3
            for name in ("pi-0", "pi-20", "pi-59", "pi-74"):
                await node(page, name).click()
                await expect(page.locator("#node-name")).to_have_text(name)
                await page.keyboard.press("Escape")
            await node(page, "pi-19").focus()
            for name in ("pi-20", "pi-21"):  # from one drawing into the next
                await page.keyboard.press("ArrowRight")
                await expect(page.locator(":focus")).to_have_attribute("data-node", name)


async def test_an_empty_cluster_says_what_to_do_next(browser: Browser, tmp_path: Path) -> None:
    async with world(tmp_path, 0) as there, page_of(browser, there.url) as page:
        await expect(page.locator("#away")).to_contain_text("amp4ec orchestrator")
        await there.cluster.born()
        await connected(page)
        await expect(page.locator("#picture")).to_contain_text(
            f"amp4ec agent --broker {there.broker.url}"
        )
        # The address is this machine's own.
        await expect(page.locator("#picture")).to_contain_text("From another device")
        await expect(page.locator("#drop-text")).to_contain_text("amp4ec serve")


async def test_a_thousand_events(browser: Browser, tmp_path: Path) -> None:
    """All are kept, a part of them stands in the document, and words choose among all."""
    async with world(tmp_path, 1) as there:
        await there.cluster.born()
        async with page_of(browser, there.url) as page:
            await connected(page)
            await there.cluster.event("node_left", "the first of many")
            for _ in range(0, 1000, 50):
                await asyncio.gather(*(there.cluster.event() for _ in range(50)))
            await there.cluster.event("node_joined", "the last one <img src=x onerror=alert(1)>")
            newest = page.locator("#events-list li").first
            await expect(newest).to_contain_text("the last one <img", timeout=TIMEOUT_MS)
            await expect(page.locator("#events-count")).to_have_text("1000 kept here")
            assert await page.locator("#events-list li").count() <= 150
            assert await page.locator("#events-list img").count() == 0
            await page.fill("#events-filter", "number 5: ")
            await expect(page.locator("#events-list li")).to_have_count(1)
            await page.fill("#events-filter", "the first of many")
            await expect(page.locator("#events-empty")).to_be_visible()
        async with page_of(browser, there.url) as late:
            await expect(late.locator("#events-count")).to_have_text("1000 kept here")


async def test_the_broker_restarts(browser: Browser, tmp_path: Path) -> None:
    async with world(tmp_path, 2, [0, 1]) as there:
        await there.cluster.born()
        async with page_of(browser, there.url) as page:
            await connected(page)
            await there.broker.stop()
            await expect(page.locator("#connection")).to_have_text(
                "broker away", timeout=TIMEOUT_MS
            )
            await expect(page.locator("#away")).to_contain_text("tried again by itself")
            await expect(node(page, "pi-0")).to_have_count(1)
            await expect(page.locator("main")).to_have_class("is-old")
            await there.broker.start()
            await connected(page)
            await expect(page.locator("main")).to_have_class("")
            await there.cluster.join(5)
            await shows(page, "pi-5")


async def test_the_server_restarts(browser: Browser, tmp_path: Path) -> None:
    """The page says that it is away, and comes back by itself with what there is then."""
    context = await browser.new_context()
    page = await context.new_page()
    async with world(tmp_path, 1, http=False) as there:
        await there.cluster.born()
        async with there.served():
            await page.goto(there.url)
            await connected(page)
        await expect(page.locator("#connection")).to_have_text("page away", timeout=TIMEOUT_MS)
        await expect(page.locator("#away")).to_contain_text("the orchestrator ends")
        await there.cluster.join(3)
        async with there.served():
            await connected(page)
            await shows(page, "pi-0", "pi-3")
            await context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_on_a_phone_nothing_is_wider_than_the_phone(
    browser: Browser, tmp_path: Path, theme: str
) -> None:
    async with world(tmp_path, 6, [0, 1, 2]) as there:
        await there.cluster.born()
        async with page_of(browser, there.url, width=390) as page:
            await page.select_option("#theme", theme)
            await shows(page, "pi-0", "pi-5")
            wide = await page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 390
            ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            brightness = int(re.findall(r"\d+", ground)[0])
            assert (brightness > 128) is (theme == "light")
            await page.reload()
            assert await page.input_value("#theme") == theme

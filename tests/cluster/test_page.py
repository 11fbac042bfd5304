"""The page of a real cluster: a picture dropped in, the front, a node that joins and one that dies."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import FilePayload, Page, expect

from deploy.local import LocalCluster
from deploy.page_address import page_address
from tests.cluster.conftest import FLAGS, JPEG, MODEL
from tests.cluster.test_drain import amp4ec, used
from tests.fakes.browser import Complaints, chromium
from tests.fakes.page import TIMEOUT_MS, connected, node, shows

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]
REPLANNED_MS = 60_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    """Three agents, one model in two stages, and a page."""
    directory = tmp_path_factory.mktemp("cluster")
    async with LocalCluster(directory, orchestrator_arguments=["--http", "0"]) as cluster:
        await cluster.wait_for_nodes()
        await cluster.serve(MODEL, FLAGS)
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page(cluster: LocalCluster) -> AsyncIterator[Page]:
    assert cluster.orchestrator is not None
    url = page_address(cluster.orchestrator.log)
    assert url is not None
    async with chromium() as browser:
        page = await browser.new_page()
        complaints = Complaints(page)
        await page.goto(url)
        await connected(page)
        yield page
        # A job that is refused is an answer with a status, which the console tells, too.
        assert [word for word in complaints.words if "status of 4" not in word] == []


async def test_a_dropped_picture_is_answered_with_the_way_it_took(
    cluster: LocalCluster, page: Page
) -> None:
    state = await cluster.wait_for_model(MODEL)
    photo = FilePayload(name="cat.jpg", mimeType="image/jpeg", buffer=JPEG)
    await page.set_input_files("#file", photo)
    answer = page.locator("#answer")
    await expect(answer.locator(".labels li")).to_have_count(5, timeout=TIMEOUT_MS)
    nodes = [stage.node for stage in state.pipelines[0].stages]
    await expect(answer.locator(".way")).to_contain_text(" → ".join(nodes))
    await expect(answer).to_contain_text("random: the labels mean nothing")
    rows = answer.locator("table.trace tbody tr")
    await expect(rows).to_have_count(2)
    # The bars lie behind each other, and together they are as long as the answer took.
    bars = await answer.locator("svg.gantt").evaluate(
        """(drawing) => [...drawing.querySelectorAll("rect:not(.lane)")].map(
            (bar) => [bar.x.baseVal.value, bar.width.baseVal.value]
        )"""
    )
    width = await answer.locator("svg.gantt").evaluate("(drawing) => drawing.width.baseVal.value")
    assert len(bars) == 6
    await expect(answer.locator("svg.gantt")).to_contain_text("0 ms")
    assert [at for at, _ in bars] == sorted(at for at, _ in bars)
    assert bars[-1][0] + bars[-1][1] == pytest.approx(width, rel=0.02)
    preview = page.locator("#preview")
    assert await preview.evaluate("(image) => image.naturalWidth") == 451


async def test_what_is_no_picture_is_refused_in_words(page: Page) -> None:
    text = FilePayload(name="note.txt", mimeType="text/plain", buffer=b"this is no picture")
    await page.set_input_files("#file", text)
    error = page.locator("#answer .error")
    await expect(error).to_contain_text("bad_input", timeout=TIMEOUT_MS)
    empty = FilePayload(name="empty.jpg", mimeType="image/jpeg", buffer=b"")
    await page.set_input_files("#file", empty)
    await expect(error).to_contain_text("nothing in the file", timeout=TIMEOUT_MS)


async def test_the_pareto_front_is_drawn(page: Page) -> None:
    await page.click("#front-ask")
    said = page.locator("#front-said")
    await expect(said).to_contain_text("that nothing else beats", timeout=TIMEOUT_MS)
    assert await page.locator("#plans-plot .is-front").count() >= 1
    assert await page.locator("#plans-plot .is-chosen").count() == 1


async def test_join_replan_and_loss(cluster: LocalCluster, page: Page) -> None:
    await shows(page, *cluster.agents)
    await cluster.add_agent("newcomer")
    await shows(page, "newcomer")
    await expect(page.locator("#events-list")).to_contain_text("newcomer")
    before = (await cluster.wait_for_model(MODEL)).generation
    code, out, err = await amp4ec(cluster, "drain", min(await used(cluster)))
    assert code == 0, out + err
    after = await cluster.wait_for_model(MODEL, newer_than=before)
    drawing = page.locator("#picture .drawing")
    await expect(drawing).to_contain_text(f"generation {after.generation}", timeout=REPLANNED_MS)
    await expect(page.locator("#picture")).to_contain_text("drained")
    victim = min(await used(cluster))
    await cluster.kill_agent(victim)
    await expect(node(page, victim).first).to_have_attribute(
        "aria-label", re.compile(f"{victim}: lost"), timeout=REPLANNED_MS
    )
    last = await cluster.wait_for_model(MODEL, newer_than=after.generation)
    await expect(drawing).to_contain_text(f"generation {last.generation}", timeout=REPLANNED_MS)
    assert victim not in {stage.node for pipeline in last.pipelines for stage in pipeline.stages}

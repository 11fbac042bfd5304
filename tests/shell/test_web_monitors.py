"""What monitors are told over HTTP: exposition, health and readiness."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.latency_histogram import BOUNDS_S, LatencyHistogram
from orchestrator.service import Orchestrator
from orchestrator.web.address import HttpAddress
from orchestrator.web.metrics import Scene, exposition
from orchestrator.web.monitors import monitor_routes
from orchestrator.web.server import Site, serve
from orchestrator.web.watch import Watch
from shared.client.status import ClusterStatus
from shared.messages.operation import StopRequest
from shared.messages.settings import SetRequest
from shared.signing import Admission
from tests.fakes.cluster import Model, until
from tests.shell.orchestrator_world import TOPICS, World, world_in

NOTHING = ClusterStatus(orchestrator=None, nodes=(), models=())
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
_UNITS = ("seconds", "bytes", "ratio", "inputs", "jobs_per_second")
_PLAIN = {
    "amp4ec_orchestrator_leads", "amp4ec_broker_connected", "amp4ec_health", "amp4ec_health_findings",
    "amp4ec_nodes_online", "amp4ec_standbys", "amp4ec_model_state", "amp4ec_model_generation",
    "amp4ec_model_pipelines", "amp4ec_node_up", "amp4ec_node_cordoned", "amp4ec_node_cpus",
}  # fmt: skip
"""Gauges that count or flag, and have no unit."""


def families(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families(text)
        for sample in family.samples
    }


def labels(found: Samples, name: str, label: str) -> set[str]:
    return {dict(key)[label] for sample, key in found if sample == name}


@dataclass
class Monitor:
    """A cluster whose orchestrator may be asked over HTTP."""

    world: World
    http: aiohttp.ClientSession
    life: Orchestrator | None = None

    async def get(self, path: str) -> tuple[int, str]:
        async with self.http.get(path) as answer:
            return answer.status, await answer.text()

    async def scrape(self) -> Samples:
        status, text = await self.get("/metrics")
        assert status == 200
        return samples(text)

    async def when(self, name: str, value: float, **labels: str) -> None:
        """Scrape until that sample is there."""
        key = (name, tuple(sorted(labels.items())))
        found: dict[str, Samples] = {"": {}}

        async def look() -> bool:
            found[""] = await self.scrape()
            return found[""].get(key) == value

        for _ in range(2000):
            if await look():
                return
        raise AssertionError(f"{key} is {found[''].get(key)}")

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[Orchestrator]:
        async with self.world.orchestrator() as self.life:
            yield self.life
        self.life = None


@pytest.fixture
async def monitor(tmp_path: Path) -> AsyncIterator[Monitor]:
    async with world_in(tmp_path) as world:
        watch = Watch(world.control("page", None), TOPICS, Admission(None))
        made: list[Monitor] = []
        site = Site(
            options=world.options, watch=watch, leading=lambda: made[0].life if made else None
        )
        async with (
            watch.running(),
            serve(HttpAddress(0), site, (monitor_routes,)) as address,
            aiohttp.ClientSession(f"http://127.0.0.1:{address.port}") as http,
        ):
            made.append(Monitor(world, http))
            await until(lambda: watch.connected)
            yield made[0]


async def test_a_process_that_stands_by_says_so_and_nothing_else_of_the_cluster(
    monitor: Monitor,
) -> None:
    found = await monitor.scrape()
    assert found["amp4ec_orchestrator_leads", ()] == 0
    assert found["amp4ec_broker_connected", ()] == 1
    ours = {name for name, _ in found if name.startswith("amp4ec_")}
    assert ours == {"amp4ec_orchestrator_leads", "amp4ec_broker_connected", "amp4ec_build_info"}
    assert found["process_cpu_seconds_total", ()] > 0
    assert await monitor.get("/healthz") == (200, "ok\n")
    assert await monitor.get("/readyz") == (200, '{"ready":true,"role":"stands by","reasons":[]}\n')


async def test_jobs_are_counted_by_model_and_outcome_and_timed(monitor: Monitor) -> None:
    async with monitor.leading(), monitor.world.agents("a", "b") as agents:
        await monitor.world.operator.serve(Model())
        for job in "12":
            assert (await monitor.world.answer(job))["status"] == "ok"
        await monitor.when("amp4ec_jobs_total", 2, model="m", outcome="ok")
        found = await monitor.scrape()
        assert found["amp4ec_job_latency_seconds_count", (("model", "m"),)] == 2
        assert found["amp4ec_job_latency_seconds_bucket", (("le", "+Inf"), ("model", "m"))] == 2
        assert 0 < found["amp4ec_job_latency_seconds_sum", (("model", "m"),)] < 10
        assert found["amp4ec_model_state", (("model", "m"), ("state", "serving"))] == 1
        assert found["amp4ec_nodes_online", ()] == 2
        await agents[0].tell(cpu_percent=42.0)
        await monitor.when("amp4ec_node_cpu_ratio", 0.42, node="a")
        request = SetRequest(transaction="s", settings={"max_item_bytes": 4})
        await monitor.world.operator.ask("set", request)
        assert monitor.life is not None
        thread = monitor.life._dispatcher
        await until(lambda: thread._settings.max_item_bytes == 4)
        await monitor.world.answer("3")
        await monitor.when("amp4ec_jobs_total", 1, model="m", outcome="too_large")


async def test_models_that_nobody_serves_are_counted_under_no_name(monitor: Monitor) -> None:
    """Else whoever may send jobs could invent labels without end."""
    async with monitor.leading():
        client = monitor.world.broker.control("client")
        async with client:
            for number in range(5):
                await client.publish(f"test/model/invented-{number}/infer/client/{number}", b"x")
        await monitor.when("amp4ec_jobs_total", 5, model="", outcome="unknown_model")
        found = await monitor.scrape()
        assert labels(found, "amp4ec_jobs_total", "model") == {""}


async def test_names_of_what_is_gone_disappear(monitor: Monitor) -> None:
    async with monitor.leading(), monitor.world.agents("a", "b"):
        await monitor.world.operator.serve(Model())
        await monitor.world.answer()
        await monitor.when("amp4ec_node_up", 1, node="b")
        await monitor.when("amp4ec_jobs_total", 1, model="m", outcome="ok")
        request = SetRequest(transaction="s", settings={"forget_after_s": 1})
        await monitor.world.operator.ask("set", request)
        monitor.world.broker.cut("agent-b")
        await monitor.when("amp4ec_node_up", 0, node="b")
        assert "b" not in labels(await monitor.scrape(), "amp4ec_node_cpus", "node")
        await until(lambda: monitor.world.operator.told("node_forgotten"), 20)
        assert labels(await monitor.scrape(), "amp4ec_node_up", "node") == {"a"}
        request_stop = StopRequest(transaction="stop", model="m")
        await monitor.world.operator.ask("stop", request_stop)
        await until(lambda: monitor.world.retained("model_state", model="m") is None)
        found = await monitor.scrape()
        for name in ("amp4ec_jobs_total", "amp4ec_model_state", "amp4ec_job_latency_seconds_sum"):
            assert labels(found, name, "model") <= {""}, name


async def test_ready_is_who_leads_and_answers_every_model(monitor: Monitor) -> None:
    async with monitor.leading() as life:
        assert await monitor.get("/readyz") == (200, '{"ready":true,"role":"leads","reasons":[]}\n')
        async with monitor.world.agents("a"):
            await monitor.world.operator.serve(Model())
            assert (await monitor.get("/readyz"))[0] == 200
            monitor.world.broker.cut("agent-a")
            await until(lambda: life.reporting.health().health == "failing")
            status, text = await monitor.get("/readyz")
            assert (status, "m is not served" in text) == (503, True)
            assert await monitor.get("/healthz") == (200, "ok\n"), "a restart would not help"


async def test_the_exposition_keeps_to_the_conventions(monitor: Monitor) -> None:
    """The rules of `promtool check metrics`, on what its own parser reads."""
    async with monitor.leading(), monitor.world.agents("a") as (agent,):
        await monitor.world.operator.serve(Model(), cache_bytes=1 << 20)
        await monitor.world.answer()
        await agent.tell(cpu_percent=1.0)
        await monitor.when("amp4ec_jobs_total", 1, model="m", outcome="ok")
        await monitor.when("amp4ec_node_round_trip_seconds", 0.001, node="a")
        status, text = await monitor.get("/metrics")
    assert status == 200
    found = [family for family in families(text) if family.name.startswith("amp4ec_")]
    assert len({family.name for family in found}) == len(found) > 30
    for family in found:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.documentation.endswith("."), family.name
        assert family.type in ("gauge", "counter", "histogram"), family.name
        if family.type == "gauge" and family.name != "amp4ec_build_info":
            assert family.name in _PLAIN or family.name.endswith(_UNITS), family.name
            assert not family.name.endswith(("_total", "_count", "_sum", "_bucket")), family.name
        for sample in family.samples:
            assert "__" not in sample.name
            assert sample.value == sample.value, "a number"
            if family.type == "counter":
                assert sample.name.endswith("_total"), sample.name


def test_what_stands_in_a_name_cannot_break_a_line() -> None:
    """Names are checked on the wire; the text is a library's, which escapes them."""
    scene = Scene(version='1 "x"\n2', connected=True, status=NOTHING)
    (info,) = [f for f in families(exposition(scene).decode()) if f.name == "amp4ec_build_info"]
    assert info.samples[0].labels == {"version": '1 "x"\n2'}


def test_latencies_are_counted_by_bound() -> None:
    histogram = LatencyHistogram()
    histogram.add(_latencies())
    cumulative = histogram.cumulative()
    for bound, count in cumulative:
        assert count == sum(latency <= bound for latency in _latencies()), bound
    assert cumulative[-1] == (float("inf"), len(list(_latencies())))
    assert histogram.sum_s == pytest.approx(sum(_latencies()))


def _latencies() -> Iterator[float]:
    yield from (0.0, 1e9, *BOUNDS_S)
    for number in range(200):
        yield 0.003 * 1.06**number


def test_nothing_of_a_scene_is_kept() -> None:
    """A second exposition knows nothing of the first."""
    first = Scene(version="1", connected=True, status=NOTHING)
    exposition(first)
    again = exposition(replace(first, version="2")).decode()
    assert 'version="1"' not in again

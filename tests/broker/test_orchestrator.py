"""The orchestrator on a real Mosquitto: killed, restarted, and its broker restarted, under load."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.launcher import Broker
from orchestrator.core.cluster_settings import ClusterSettings
from orchestrator.core.condition import SAMPLES
from orchestrator.service import Orchestrator, OrchestratorOptions
from shared.bus import BrokerUrl, ControlBus, MqttControlBus, Properties, Publication
from shared.codec import encode_json
from shared.messages.node import Telemetry
from shared.topics import Topics
from tests.broker.test_link_probe import probing
from tests.fakes.cluster import FakeAgent, FakeOperator, Model, until
from tests.fakes.relay import Relay

TOPICS = Topics("orch-test")
ROOT = Path(__file__).parents[2]
JPEG = b"\xff\xd8\xff and so on"


class Asker:
    """Publishes jobs and counts the answers to each; asks again for what a dead broker swallowed."""

    def __init__(self, bus: ControlBus) -> None:
        self.bus = bus
        self.answers: dict[str, list[dict[str, Any]]] = {}

    async def read(self) -> None:
        async for message in self.bus.messages():
            said = json.loads(message.payload)
            self.answers.setdefault(said["job"], []).append(said)

    async def ask(self, *jobs: str) -> None:
        for job in jobs:
            properties = Properties(
                response_topic=TOPICS.topic("result", client="asker", job=job),
                correlation_data=job.encode(),
            )
            await self.bus.publish(TOPICS.topic("infer", model="m"), JPEG, properties=properties)

    def statuses(self) -> Counter[str]:
        return Counter(answers[-1]["status"] for answers in self.answers.values())


class World:
    def __init__(self, url: BrokerUrl, directory: Path) -> None:
        self.url = url
        self.options = OrchestratorOptions(
            broker=url,
            root=TOPICS.root,
            state_dir=directory / "orchestrator",
            cluster=ClusterSettings(settle_s=0.1, retry_s=0.1),
        )
        self.operator = FakeOperator(TOPICS, self.control)

    def control(self, client_id: str, will: Publication | None = None) -> ControlBus:
        return MqttControlBus(self.url, client_id=client_id, will=will)

    async def process(self) -> asyncio.subprocess.Process:
        """An orchestrator that can be killed; returns when it takes requests."""
        known = len(self.operator.orchestrators)
        options = ["--root", TOPICS.root, "--state-dir", str(self.options.state_dir)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deploy.cli", "orchestrator", "--broker", str(self.url), *options,
            cwd=ROOT,
        )  # fmt: skip
        heard = self.operator.orchestrators
        await until(
            lambda: any(s.pid == process.pid and s.state == "online" for s in heard[known:]), 20.0
        )
        return process

    @contextlib.asynccontextmanager
    async def orchestrator(self) -> AsyncIterator[Orchestrator]:
        orchestrator, stop = Orchestrator(self.options), asyncio.Event()
        running = asyncio.create_task(orchestrator.run(stop))
        try:
            await until(lambda: orchestrator._dispatcher.ident is not None)
            yield orchestrator
        finally:
            stop.set()
            assert await running == 0

    def waiting(self) -> int:
        """Jobs in the orchestrator's hands, as it says once a second."""
        load = self.operator.metrics[-1].models.get("m") if self.operator.metrics else None
        return 0 if load is None else load.queued + load.in_flight

    @contextlib.asynccontextmanager
    async def asker(self) -> AsyncIterator[Asker]:
        bus = MqttControlBus(self.url, client_id="asker", clean_start=False, session_expiry_s=600)
        async with bus:
            await bus.subscribe(TOPICS.pattern("result", client="asker"))
            asker = Asker(bus)
            reader = asyncio.create_task(asker.read())
            try:
                yield asker
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)


@pytest.fixture
async def world(url: BrokerUrl, tmp_path: Path) -> AsyncIterator[World]:
    world = World(url, tmp_path)
    async with world.operator.running():
        yield world


async def test_jobs_that_wait_are_answered_once_by_a_successor(world: World) -> None:
    jobs = [str(number) for number in range(150)]
    agents = [FakeAgent(TOPICS, world.control, name) for name in ("a", "b")]
    async with agents[0].running(), agents[1].running(), world.asker() as asker:
        process = await world.process()
        assert (await world.operator.serve(Model(), min_stages=2, max_stages=2)).status == "ok"
        for agent in agents:
            agent.holds_back = True
        await asker.ask(*jobs[:100])
        # more wait than any broker's usual limit of messages under way, and some are with the agents
        await until(lambda: world.waiting() == 100 and sum(len(agent.held) for agent in agents))
        process.kill()
        await process.wait()
        await until(lambda: world.operator.orchestrators[-1].state == "lost")
        await asker.ask(*jobs[100:])
        for agent in agents:
            await agent.release()  # results for a dispatcher that does not know these jobs
        pushed = [len(agent.assignments) for agent in agents]
        async with world.orchestrator():
            await until(lambda: len(asker.answers) == len(jobs), 20.0)
            assert asker.statuses() == {"ok": len(jobs)}
            assert all(len(answers) == 1 for answers in asker.answers.values())
            for agent, count in zip(agents, pushed, strict=True):
                assert all(new.stages for new in agent.assignments[count:])


async def test_a_broker_that_restarts_is_survived(world: World, broker: Broker) -> None:
    agents = [FakeAgent(TOPICS, world.control, name) for name in ("a", "b")]
    async with (
        agents[0].running(),
        agents[1].running(),
        world.asker() as asker,
        world.orchestrator() as orchestrator,
    ):
        assert (await world.operator.serve(Model(), min_stages=2, max_stages=2)).status == "ok"
        for agent in agents:
            agent.holds_back = True
        jobs = [str(number) for number in range(30)]
        await asker.ask(*jobs)
        await until(lambda: orchestrator._dispatcher._core.snapshot().live_requests == 30)
        births = [agent.births for agent in agents]
        await broker.restart()
        await until(lambda: all(a.births > n for a, n in zip(agents, births, strict=True)), 20.0)
        for agent in agents:
            agent.held.clear()  # gone with the connection: these have to be sent again
            agent.holds_back = False
        await until(lambda: len(asker.answers) == len(jobs), 30.0)
        assert asker.statuses() == {"ok": 30}
        assert all(len(answers) == 1 for answers in asker.answers.values())
        assert orchestrator._dispatcher.is_alive()
        await until(lambda: [s.state for s in world.operator.orchestrators][-1] == "online")
        await asker.ask("after")
        await until(lambda: "after" in asker.answers)
        state = world.operator.state()
        assert state is not None
        # the wills that the broker sent when it stopped were not taken for the nodes' ends
        assert (state.state, state.generation) == ("serving", 1)


async def test_a_broker_that_is_killed_forgets_and_is_told_again(
    world: World, broker: Broker, tmp_path: Path
) -> None:
    agent = FakeAgent(TOPICS, world.control, "a")
    async with agent.running(), world.orchestrator():
        assert (await world.operator.serve(Model())).status == "ok"
        await broker.kill()
        for saved in (tmp_path / "broker").rglob("*.db"):
            saved.unlink()
        await broker.start()
        late = FakeOperator(TOPICS, world.control, "late")
        async with late.running(), world.asker() as asker:
            await until(lambda: (state := late.state()) and state.state == "serving", 20.0)
            # This broker knows no session any more: a job that comes before the dispatcher does reaches
            # nobody, and a client of this kind has to ask again.
            async with asyncio.timeout(20.0):
                for number in itertools.count():
                    await asker.ask(str(number))
                    with contextlib.suppress(TimeoutError):
                        await until(lambda: asker.answers, 0.5)
                        break
            assert set(asker.statuses()) == {"ok"}


async def test_a_stopped_orchestrator_says_so(world: World) -> None:
    process = await world.process()
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    await until(lambda: world.operator.orchestrators[-1].state == "offline")
    assert world.operator.orchestrators[-1].pid == process.pid


async def test_own_cpu_per_job(world: World) -> None:
    """A bound with room for a slow machine; tests/benchmarks measures it properly."""
    agent = FakeAgent(TOPICS, world.control, "a")
    async with agent.running(), world.orchestrator() as orchestrator, world.asker() as asker:
        assert (await world.operator.serve(Model())).status == "ok"
        await asker.ask(*(f"warm-{number}" for number in range(50)))
        await until(lambda: len(asker.answers) == 50)
        clock = time.pthread_getcpuclockid(orchestrator._dispatcher.ident or 0)
        began = time.clock_gettime(clock)
        await asker.ask(*(str(number) for number in range(200)))
        await until(lambda: len(asker.answers) == 250, 30.0)
        per_job_s = (time.clock_gettime(clock) - began) / 200
        print(f"dispatcher: {per_job_s * 1000:.2f} ms of CPU per job")  # noqa: T201
        assert per_job_s < 0.003


async def test_a_large_input_is_not_sent_over_a_link_that_measures_slow(world: World) -> None:
    """The probe of one node goes through a relay of 1 MB/s; what it finds is in that node's telemetry."""
    quick = ClusterSettings(
        settle_s=0.1, retry_s=0.1, cool_down_s=0.2, drift_interval_s=0.2, drift_looks=2
    )
    world.options = replace(world.options, cluster=quick)
    agents = {name: FakeAgent(TOPICS, world.control, name) for name in ("a", "b")}

    def on() -> list[str]:
        state = world.operator.state()
        return [] if state is None else [stage.node for stage in state.pipelines[0].stages]

    async with agents["a"].running(), agents["b"].running(), world.orchestrator():
        model = Model(input_bytes=200_000)
        assert (await world.operator.serve(model, min_stages=2, max_stages=2)).status == "ok"
        first = on()
        slow = agents[first[0]]
        relay = Relay(world.url.port, up_bytes_per_s=1e6, down_bytes_per_s=1e6)
        async with relay, probing(relay.port) as probe:
            await until(lambda: probe.down.bytes_per_s is not None, 20.0)
        for _ in range(SAMPLES):
            told = Telemetry(
                node=slow.node, incarnation=1, uptime_s=1.0, cpu_percent=1.0, memory_used_bytes=1,
                memory_limit_bytes=10**9, network_received_bytes=0, network_sent_bytes=0,
                round_trip_s=0.001, queue=0, stability=1.0,
                up_bytes_per_s=probe.up.bytes_per_s, down_bytes_per_s=probe.down.bytes_per_s,
            )  # fmt: skip
            await slow.bus.publish(TOPICS.topic("telemetry", node=slow.node), encode_json(told))
        await until(lambda: on() == first[::-1], 20.0)
        state = world.operator.state()
        assert state is not None
        assert "what is measured has changed; predicted gain" in state.reason


async def test_a_kept_answer_serves_until_the_model_is_replaced(world: World) -> None:
    agent = FakeAgent(TOPICS, world.control, "a")
    async with agent.running(), world.orchestrator(), world.asker() as asker:
        assert (await world.operator.serve(Model(), cache_bytes=10**6)).status == "ok"

        async def cached(job: str) -> bool:
            await asker.ask(job)
            await until(lambda: job in asker.answers)
            (said,) = asker.answers[job]
            assert said["status"] == "ok"
            return bool(said["cached"])

        assert not await cached("1")
        assert await cached("2")
        await until(
            lambda: any(
                (cache := each.models["m"].cache) is not None and cache.hits == 1
                for each in world.operator.metrics
                if "m" in each.models
            )
        )
        other = Model(salt=b"another")
        assert (await world.operator.serve(other, "t2", cache_bytes=10**6)).status == "ok"
        assert not await cached("3")
        assert await cached("4")
        assert (await world.operator.serve(other, "t3")).status == "ok"
        assert not await cached("5"), "kept no more"


async def test_a_cache_is_refused_where_answers_may_differ(world: World) -> None:
    agent = FakeAgent(TOPICS, world.control, "a")
    async with agent.running(), world.orchestrator():
        refused = await world.operator.serve(Model(), cache_bytes=10**6, max_error=0.01)
        assert refused.status == "error"
        assert refused.error is not None
        assert refused.error.code == "bad_input"
        assert "--max-error 0" in refused.error.message

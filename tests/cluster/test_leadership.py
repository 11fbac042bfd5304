"""Several orchestrators: whatever befalls the leader, another answers within seconds, and each job once."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.link import network_missing
from deploy.local import LocalCluster
from deploy.supervisor import Child
from shared.messages.operation import OrchestratorState
from tests.cluster.conftest import FLAGS, JPEG, MODEL, RawClient
from tests.cluster.test_losses import answered_once, stream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
TAKEN_OVER_S = 45.0
"""For a machine with other things to do; the benchmark `takeover` measures it."""


class Crew:
    """The orchestrators of a cluster, of which one leads."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster

    def processes(self) -> list[Child]:
        found = [self.cluster.orchestrator, *self.cluster.standbys.values()]
        return [child for child in found if child is not None and child.alive]

    def process(self, state: OrchestratorState) -> Child:
        (child,) = [child for child in self.processes() if child.pid == state.pid]
        return child

    async def state(
        self, what: str, holds: Callable[[OrchestratorState], bool]
    ) -> OrchestratorState:
        status = await self.cluster.wait_for(
            what, lambda s: s.orchestrator is not None and holds(s.orchestrator), TAKEN_OVER_S
        )
        assert status.orchestrator is not None
        return status.orchestrator

    async def complete(self, standbys: int = 2) -> OrchestratorState:
        """A leader and so many standbys, whatever was done to them before; the leader."""
        for _ in range(standbys + 1 - len(self.processes())):
            await self.cluster.start_standby()
        return await self.state(
            f"{standbys} standbys",
            lambda s: s.state == "online" and len(s.standbys) == standbys,
        )

    async def after(self, before: OrchestratorState) -> OrchestratorState:
        """Who leads after that one."""
        return await self.state(
            f"a leader after term {before.term}",
            lambda s: s.term > before.term and s.state == "online",
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crew(cluster: LocalCluster) -> AsyncIterator[Crew]:
    yield Crew(cluster)


async def through(
    crew: Crew, raw: RawClient, fault: Callable[[Child], Awaitable[object]]
) -> tuple[OrchestratorState, OrchestratorState]:
    """Jobs flow while `fault` befalls the leader; who led before and who leads now."""
    before = await crew.complete()
    generation = (await crew.cluster.wait_for_model(MODEL)).generation
    streaming = asyncio.create_task(stream(raw, crew.cluster))
    await asyncio.to_thread(raw.wait, lambda: len(raw.answers) >= 5)
    await fault(crew.process(before))
    after = await crew.after(before)
    sent = await streaming
    await answered_once(raw, crew.cluster, sent)
    model = await crew.cluster.wait_for_model(MODEL)
    assert model.generation == generation, "pipelines that run are not stopped"
    return before, after


async def test_a_second_orchestrator_stands_by(crew: Crew) -> None:
    before = (await crew.state("a leader", lambda s: s.state == "online")).term
    state = await crew.complete()
    assert state.term == before, "it did not end the first"
    for child in crew.cluster.standbys.values():
        assert f'"leader":"{state.leader}","term":{state.term}' in child.log.read_text()


async def test_the_leader_is_killed(crew: Crew, raw: RawClient) -> None:
    await through(crew, raw, lambda leader: leader.kill())


async def test_the_leader_stops_cleanly(crew: Crew, raw: RawClient) -> None:
    before, after = await through(crew, raw, lambda leader: leader.stop())
    assert before.leader != after.leader


async def test_the_leader_is_frozen_and_wakes_as_a_standby(crew: Crew, raw: RawClient) -> None:
    async def freeze(leader: Child) -> None:
        leader.freeze(frozen=True)

    before, after = await through(crew, raw, freeze)
    old = crew.process(before)
    old.freeze(frozen=False)
    state = await crew.state("the old leader to stand by", lambda s: before.leader in s.standbys)
    assert (state.term, state.leader) == (after.term, after.leader)
    answer = await asyncio.to_thread(raw.ask, JPEG)
    assert answer["status"] == "ok"
    log = old.log.read_text()
    assert f'"leader":"{after.leader}","term":{after.term}' in log
    assert "Traceback" not in log


async def test_leaders_that_fall_one_after_the_other(crew: Crew, raw: RawClient) -> None:
    state = await crew.complete(3)
    streaming = asyncio.create_task(stream(raw, crew.cluster, jobs=80))
    await asyncio.to_thread(raw.wait, lambda: len(raw.answers) >= 5)
    for _ in range(3):  # the next as soon as there is a leader, ready or not
        await crew.process(state).kill()
        state = await crew.after(state)
    await answered_once(raw, crew.cluster, await streaming)


async def test_all_start_at_once(crew: Crew, raw: RawClient) -> None:
    before = await crew.complete()
    names = [name for name, child in crew.cluster.standbys.items() if child.alive]
    first = crew.cluster.orchestrator
    led = first is not None and first.alive
    for child in crew.processes():
        await child.kill()
    again = [crew.cluster.start_standby(name) for name in names]
    await asyncio.gather(*again, *([crew.cluster.start_orchestrator()] if led else []))
    after = await crew.after(before)
    state = await crew.state("one leader and two standbys", lambda s: len(s.standbys) == 2)
    assert (state.leader, state.term) == (after.leader, after.term)
    answer = await asyncio.to_thread(raw.ask, JPEG)
    assert answer["status"] == "ok"


async def test_a_frozen_leader_that_holds_the_shared_store_blocks_nobody(
    crew: Crew, raw: RawClient
) -> None:
    """Two on one machine with one state directory; the leader was frozen in the middle of a write."""
    before = await crew.complete()
    for child in crew.processes():
        if child.pid != before.pid:
            await child.stop()
    leader = crew.process(before)
    directory = Path(leader.log.parent / _state_dir(leader))
    await crew.cluster.start_standby("shared", state_dir=directory.name)
    await crew.state("a standby", lambda s: len(s.standbys) == 1)
    with closing(sqlite3.connect(directory / "jobs.sqlite3", isolation_level=None)) as database:
        database.execute("PRAGMA busy_timeout = 10000")
        leader.freeze(frozen=True)
        database.execute("BEGIN IMMEDIATE")  # as if by the one that is frozen
        began = time.monotonic()
        answer = await asyncio.to_thread(raw.ask, JPEG)
        assert answer["status"] == "ok"
        assert time.monotonic() - began < TAKEN_OVER_S
        database.execute("ROLLBACK")
    after = await crew.after(before)
    leader.freeze(frozen=False)
    await crew.state("the old leader to stand by", lambda s: before.leader in s.standbys)
    assert after.leader is not None


def _state_dir(child: Child) -> str:
    """The directory that a child was started with."""
    line = Path(f"/proc/{child.pid}/cmdline").read_bytes().split(b"\0")
    return Path(line[line.index(b"--state-dir") + 1].decode()).name


@pytest.mark.skipif(bool(network_missing()), reason=network_missing())
async def test_a_leader_that_is_cut_off_comes_back_as_a_standby(tmp_path: Path) -> None:
    """Packets are dropped: nobody is told, neither the broker nor the leader."""
    async with LocalCluster(tmp_path, agents=1, isolated=True) as cluster:
        await cluster.wait_for_nodes()
        await cluster.serve(MODEL, FLAGS.__class__(weights="none", timeout_s=110))
        crew = Crew(cluster)
        before = await crew.complete(1)
        assert before.leader is not None
        name = "orchestrator"
        async with cluster.client() as client:
            assert (await client.infer(MODEL, JPEG)).top
            cluster.network.cut(name)
            results = [await client.infer(MODEL, JPEG, timeout_s=60) for _ in range(3)]
            assert len({result.top[0].label for result in results}) == 1
            after = await crew.after(before)
            cluster.network.heal(name)
            state = await crew.state("the old leader back", lambda s: before.leader in s.standbys)
            assert (state.leader, state.term) == (after.leader, after.term)
            assert (await client.infer(MODEL, JPEG)).top
        log = (tmp_path / "orchestrator.log").read_text()
        assert "not leading any more" in log
        assert f'"reason":"{after.leader} leads' in log
        assert "Traceback" not in log
        async with cluster.client() as client:
            for _ in range(3):
                # Nothing that the old leader had left to say came through: the term did not change again.
                state = await crew.state("the same leader", lambda s: s.state == "online")
                assert state.term == after.term
                assert (await client.infer(MODEL, JPEG)).top

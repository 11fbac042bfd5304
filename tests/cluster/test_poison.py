"""A job that real agents really die of: a picture that takes more memory than they may have."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image

from deploy.cli.status import describe
from deploy.local import LocalCluster
from deploy.watch import watch
from tests.cluster.conftest import FLAGS, JPEG, MODEL, ROOT, RawClient

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]
MIB = 1 << 20
LIMIT_BYTES = 448 * MIB
"""What an agent may allocate from the test's beginning on: its runtime is loaded by then."""
EDGE = 7_900
"""Of a square picture: 62 million pixels, which agents take, and 250 MB as RGBA and once more as RGB."""


def deadly_picture() -> bytes:
    """A quarter of a megabyte that becomes half a gigabyte."""
    file = io.BytesIO()
    Image.new("RGBA", (EDGE, EDGE)).save(file, "PNG", compress_level=1)
    return file.getvalue()


class MemoryLimits:
    """A memory cgroup for each of some processes, as the kernel's documentation of version 1 or 2 has it."""

    def __init__(self) -> None:
        first = Path("/sys/fs/cgroup/memory")
        self._first = first.is_dir()
        self._parent = first if self._first else Path("/sys/fs/cgroup")
        self._directories: list[Path] = []

    @property
    def possible(self) -> bool:
        """Whether this process may limit others."""
        try:
            directory = self._make()
        except OSError:
            return False
        return (directory / self._limit).exists()

    def limit(self, pid: int, size_bytes: int) -> None:
        """From now on; what the process has already is not counted."""
        directory = self._make()
        (directory / self._limit).write_text(str(size_bytes))
        # Nor may it swap instead.
        swap = "memory.swappiness" if self._first else "memory.swap.max"
        (directory / swap).write_text("0")
        (directory / "cgroup.procs").write_text(str(pid))

    @property
    def _limit(self) -> str:
        return "memory.limit_in_bytes" if self._first else "memory.max"

    def _make(self) -> Path:
        directory = self._parent / f"amp4ec-test-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        directory.mkdir()
        self._directories.append(directory)
        return directory

    def remove(self) -> None:
        """Give the processes that are left back, and take the cgroups away."""
        for directory in self._directories:
            for pid in (directory / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    (self._parent / "cgroup.procs").write_text(pid)
            directory.rmdir()


@pytest.fixture
def limits() -> Iterator[MemoryLimits]:
    made = MemoryLimits()
    if not made.possible:
        made.remove()
        pytest.skip("memory can be limited by root with a cgroup of its own only")
    yield made
    made.remove()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    """Three agents with their runtime loaded: a limit need not have room for that."""
    directory = tmp_path_factory.mktemp("poison")
    async with LocalCluster(directory, agents=3, agent_arguments=["--preload"]) as cluster:
        await cluster.wait_for_nodes()
        await cluster.serve(MODEL, FLAGS)
        yield cluster


async def test_two_nodes_die_of_a_job_and_no_third(
    cluster: LocalCluster, raw: RawClient, limits: MemoryLimits
) -> None:
    picture = deadly_picture()
    for agent in cluster.agents.values():
        limits.limit(agent.pid, LIMIT_BYTES)
    assert (await asyncio.to_thread(raw.ask, JPEG))["status"] == "ok"
    async with watch(cluster.url, ROOT) as events:
        beside = [raw.send(JPEG) for _ in range(3)]
        bad = raw.send(picture)
        beside += [raw.send(JPEG) for _ in range(20)]
        await asyncio.to_thread(raw.wait, lambda: bool(raw.answers[bad]), 200)
        answer = raw.answers[bad][0]
        assert answer["status"] == "error"
        assert answer["error"]["code"] == "poison"
        told = await events.wait_for(lambda event: event.event == "job_poisoned")
        assert told.model == MODEL
        await asyncio.to_thread(raw.wait, lambda: all(raw.answers[job] for job in beside), 60)
    assert {raw.answers[job][0]["status"] for job in beside} == {"ok"}
    alive = [name for name, agent in cluster.agents.items() if _runs(agent.pid)]
    assert len(alive) == 1, "two died of it, and the third was spared"
    again = await asyncio.to_thread(raw.ask, picture, job=bad)
    assert again["error"]["code"] == "poison"
    status = await cluster.wait_for(
        "what was set aside to be shown",
        lambda status: status.orchestrator is not None and status.orchestrator.set_aside == 1,
    )
    assert "1 job was set aside" in describe(status)
    await cluster.restart_orchestrator()
    after = await asyncio.to_thread(raw.ask, picture, job=bad)
    assert json.dumps(after["error"]) == json.dumps(answer["error"])
    store = cluster.directory / "orchestrator" / "jobs.sqlite3"
    with contextlib.closing(sqlite3.connect(store)) as database:
        ((kept,),) = database.execute("SELECT payload FROM set_aside").fetchall()
    assert kept == picture
    assert all(len(raw.answers[job]) == 1 for job in beside)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"

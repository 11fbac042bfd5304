"""Wall clocks that jump by a day, while everything runs and over restarts: nobody notices.

libfaketime moves the wall clock of our real processes and leaves the monotonic one alone, as a clock that is
set does.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from deploy.watch import watch
from shared.client import ClusterStatus
from tests.cluster.conftest import JPEG, MODEL, ROOT, RawClient
from tests.cluster.test_drain import amp4ec

LONG = re.compile(r"silent for \d{4,}")
LIBRARIES = [
    path
    for pattern in ("lib/*/faketime", "lib64/faketime", "lib/faketime")
    for path in Path("/usr").glob(f"{pattern}/libfaketimeMT.so.1")
]

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not LIBRARIES, reason="there is no libfaketime: install the package faketime"
    ),
]


class Clock:
    """The wall clock of a cluster's processes, all but the broker's."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set("+0")
        self.environment = {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
        }

    def set(self, offset: str) -> None:
        """Move it by so much from the true time, within a second."""
        self._file.write_text(f"{offset}\n")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return Clock(tmp_path_factory.mktemp("clock") / "offset")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    tmp_path_factory: pytest.TempPathFactory, clock: Clock
) -> AsyncIterator[LocalCluster]:
    directory = tmp_path_factory.mktemp("clocks")
    async with LocalCluster(directory, agents=2, environment=clock.environment) as cluster:
        await cluster.wait_for_nodes()
        await cluster.serve(MODEL, ServeFlags(weights="none", min_stages=2, max_stages=2))
        yield cluster


@pytest.fixture
def raw_for() -> Iterator[Callable[[int], RawClient]]:
    """Clients of the brokers at these ports."""
    made: list[RawClient] = []

    def make(port: int) -> RawClient:
        made.append(RawClient(port))
        return made[-1]

    yield make
    for client in made:
        client.close()


def incarnations(status: ClusterStatus) -> dict[str, int]:
    return {node.state.node: node.state.incarnation for node in status.online}


async def told(cluster: LocalCluster) -> ClusterStatus:
    return await cluster.wait_for("both nodes", lambda status: len(status.online) == 2)


async def later(cluster: LocalCluster, seconds: float) -> None:
    """By the nodes' own uptimes."""
    first: dict[str, float] = {}

    def passed(status: ClusterStatus) -> bool:
        now = {n.state.node: n.telemetry.uptime_s for n in status.online if n.telemetry is not None}
        for name, uptime_s in now.items():
            first.setdefault(name, uptime_s)
        return len(now) == 2 and all(now[name] >= first[name] + seconds for name in now)

    await cluster.wait_for(f"{seconds:g} s to pass", passed)


async def works(raw: RawClient) -> None:
    """Deadlines hold: a job that has ten seconds is answered, one that has none is not."""
    for deadline_ms, status in (("10000", "ok"), ("0", "error")):
        answer = await asyncio.to_thread(raw.ask, JPEG, user=(("deadline_ms", deadline_ms),))
        assert answer["status"] == status, answer


async def test_a_story_puts_the_clock_of_a_node_right_and_says_so(
    tmp_path: Path, raw_for: Callable[[int], RawClient]
) -> None:
    """Its host name is the orchestrator's here, as it is among Pis that nobody gave names."""
    ahead_s = 90.0
    clock = [
        "env", f"LD_PRELOAD={LIBRARIES[0]}", f"FAKETIME=+{ahead_s:g}", "FAKETIME_DONT_FAKE_MONOTONIC=1",
    ]  # fmt: skip
    began = time.time()
    async with LocalCluster(tmp_path, agents=1) as cluster:
        await cluster.add_agent("ahead", wrap=clock)
        await cluster.wait_for_nodes(2)
        await cluster.serve(MODEL, ServeFlags(weights="none", min_stages=2, max_stages=2))
        await cluster.wait_for_model(MODEL)
        answer = await asyncio.to_thread(raw_for(cluster.broker.port).ask, JPEG)
        assert "ahead" in answer["nodes"]
        code, out, err = await amp4ec(cluster, "story", "node", "ahead", "--json")
        assert code == 0, err
        told = json.loads(out)
        assert told["clocks_s"]["ahead"] == pytest.approx(ahead_s, abs=1.0)
        entries = told["entries"]
        own = [entry for entry in entries if entry["source"] == "ahead"]
        now = time.time()
        assert own
        assert all(
            began - 1.0 <= datetime.fromisoformat(entry["at"]).timestamp() <= now + 1.0
            for entry in entries
        )
        where = {
            words: next(i for i, entry in enumerate(entries) if words in entry["text"])
            for words in ("agent started", "node ahead joined", "stage ready", "is active")
        }
        # Each causes the next, by turns on either machine.
        assert list(where.values()) == sorted(where.values()), entries
        code, _, err = await amp4ec(cluster, "story", "job", answer["job"])
        assert code == 0, err
        code, _, err = await amp4ec(cluster, "story", "node", "ahead")
        assert code == 0, err
        assert re.search(r"the clock of ahead is (89|90)\.\d\d s ahead of the orchestrator's", err)
        name = next(name for name in cluster.agents if name != "ahead")
        code, out, err = await amp4ec(cluster, "story", "node", name, "--json")
        assert json.loads(out)["clocks_s"] == {}, "whose clock is right keeps its own times"


@pytest.mark.parametrize("offset", ["-1d", "+1d", "+0"])
async def test_a_clock_that_is_set(
    cluster: LocalCluster, raw: RawClient, clock: Clock, offset: str
) -> None:
    """In this order: back by a day, forward by two, and back to the truth."""
    before = await told(cluster)
    generation = (await cluster.wait_for_model(MODEL)).generation
    async with watch(cluster.url, ROOT) as events:
        clock.set(offset)
        await works(raw)
        await later(cluster, 5.0)  # leases are two seconds, and the clock is read once a second
        await works(raw)
        # On a busy machine a node may be silent for seconds; a day's silence is the clock's.
        assert not [event for event in events.seen if LONG.search(event.text)]
    now = await told(cluster)
    assert incarnations(now) == incarnations(before)
    # Over a restart of each: lives and orders go on growing, wherever the clock stands.
    name = next(iter(cluster.agents))
    log = cluster.agents[name].log
    said = len(log.read_text())
    await cluster.kill_agent(name)
    await cluster.add_agent(name)
    reborn = await cluster.wait_for(
        "the agent's next life",
        lambda status: incarnations(status).get(name, 0) > incarnations(before)[name],
    )
    assert incarnations(reborn).keys() == incarnations(before).keys()
    after = await cluster.wait_for_model(MODEL, newer_than=generation)
    assert "runtime calibrated" not in log.read_text()[said:], "what was measured is in the cache"
    await works(raw)
    await cluster.kill_orchestrator()
    await cluster.start_orchestrator()
    await works(raw)
    again = await cluster.wait_for_model(MODEL)
    assert again.generation >= after.generation
    await works(raw)

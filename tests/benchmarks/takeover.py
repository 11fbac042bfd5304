"""How long jobs wait when the orchestrator that leads is gone and another takes over.

One agent serves MobileNetV2 whole, a client asks twenty times a second, and one orchestrator stands by. In
turn the leader is killed (SIGKILL), frozen (SIGSTOP; it wakes afterwards, and stands by) and asked to stop
(SIGTERM). `first answer` runs from the signal to the first answer to a job sent after it, whoever gives
it; `longest wait` is that of the job that waited longest. Every job must be answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from deploy.supervisor import Child
from shared.client import Client, ClusterStatus
from shared.errors import Amp4ecError
from shared.messages.operation import OrchestratorState
from tests.benchmarks.clusters import MODEL, calibrated, serve
from tests.benchmarks.context import Context
from tests.benchmarks.payloads import jpeg_input
from tests.benchmarks.report import Bar, Row, say

_PERIOD_S = 0.05
_BEFORE_S = 1.0
_WITHIN_S = 60.0
_TAKEN_OVER = Bar(3.0, of="high")
_WHOLE = ServeFlags(weights="none", runtime="onnxruntime", max_stages=1, timeout_s=110)
_METHOD = "20 JPEGs a second, one agent, one standby with a state directory of its own"
_FAULTS = {
    "SIGKILL": signal.SIGKILL,
    "SIGSTOP": signal.SIGSTOP,
    "SIGTERM (clean)": signal.SIGTERM,
}


@dataclass(slots=True)
class _Trickle:
    """Jobs at a steady rate; when each was sent and answered (monotonic)."""

    client: Client
    payload: bytes
    jobs: list[tuple[float, float]] = field(default_factory=list)
    failed: list[Amp4ecError] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask, and at the end wait for what is under way."""
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._go_on(group, ended))
            yield
            ended.set()

    async def _go_on(self, group: asyncio.TaskGroup, ended: asyncio.Event) -> None:
        while not ended.is_set():
            group.create_task(self._ask())
            await asyncio.sleep(_PERIOD_S)

    async def _ask(self) -> None:
        sent = time.monotonic()
        try:
            await self.client.infer(MODEL, self.payload, timeout_s=_WITHIN_S)
        except Amp4ecError as error:
            self.failed.append(error)
        else:
            self.jobs.append((sent, time.monotonic()))


@dataclass(slots=True)
class _Times:
    first_s: list[float] = field(default_factory=list)
    longest_s: list[float] = field(default_factory=list)
    sent: int = 0
    failed: int = 0


async def run(context: Context) -> list[Row]:
    """See the module."""
    cycles = context.choose(2, 10)
    times = {name: _Times() for name in _FAULTS}
    async with calibrated(context, "takeover", cpus=None, agents=1) as cluster:
        await serve(context, cluster, _WHOLE)
        async with cluster.client() as client:
            for cycle in range(cycles):
                for name, number in _FAULTS.items():
                    context.say(f"takeover: {cycle + 1} of {cycles}, {name}")
                    await _take_over(cluster, client, number, times[name])
    rows = []
    for name, seen in times.items():
        share = f"{seen.sent - seen.failed} of {seen.sent} jobs answered"
        rows += [
            Row.of(
                "takeover", f"{name} of the leader to first answer", "s", seen.first_s,
                method=_METHOD, against=share, bar=_TAKEN_OVER,
            ),
            Row.of("takeover", f"{name}: longest wait of a job", "s", seen.longest_s, method=_METHOD),
        ]  # fmt: skip
    return rows


async def _take_over(
    cluster: LocalCluster, client: Client, number: signal.Signals, times: _Times
) -> None:
    before = await _complete(cluster)
    leader = _process(cluster, before)
    trickle = _Trickle(client, jpeg_input())
    async with trickle.running():
        await asyncio.sleep(_BEFORE_S)
        began = time.monotonic()
        # The signal alone: to wait for the end is none of it.
        leader.process.send_signal(number)
        await cluster.wait_for(
            "another leader", lambda status: _led_after(status, before), _WITHIN_S
        )
        await asyncio.sleep(_BEFORE_S)
    if number is signal.SIGSTOP:
        leader.freeze(frozen=False)
    else:
        await leader.ended()
    after = [(sent, came) for sent, came in trickle.jobs if sent >= began]
    times.first_s.append(min(came for _, came in after) - began)
    times.longest_s.append(max(came - sent for sent, came in trickle.jobs))
    times.sent += len(trickle.jobs) + len(trickle.failed)
    times.failed += len(trickle.failed)
    for error in trickle.failed[:3]:
        say(f"takeover: a job failed: {error}")


async def _complete(cluster: LocalCluster) -> OrchestratorState:
    """A leader and a standby that is ready; the leader."""
    if len(_processes(cluster)) < 2:
        await cluster.start_standby()
    status = await cluster.wait_for(
        "a leader and a standby",
        lambda status: (
            status.orchestrator is not None
            and status.orchestrator.state == "online"
            and len(status.orchestrator.standbys) == 1
        ),
        _WITHIN_S,
    )
    assert status.orchestrator is not None
    return status.orchestrator


def _led_after(status: ClusterStatus, before: OrchestratorState) -> bool:
    now = status.orchestrator
    return now is not None and now.term > before.term and now.state == "online"


def _processes(cluster: LocalCluster) -> list[Child]:
    found = [cluster.orchestrator, *cluster.standbys.values()]
    return [child for child in found if child is not None and child.alive]


def _process(cluster: LocalCluster, state: OrchestratorState) -> Child:
    return next(child for child in _processes(cluster) if child.pid == state.pid)

"""Breaking things, and putting them right again: one context manager per kind of fault."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from deploy.link import network_missing
from deploy.supervisor import Child
from shared.errors import Amp4ecError
from tests.cluster.chaos.plant import Plant
from tests.cluster.chaos.schedule import Fault, FaultKind

_RATE_BYTES_PER_S = 400_000
_DELAY_S = 0.04
_SMALL_DISK, _LARGE_DISK = "64k", "64m"
"""Too small for a stage's weights; and large enough for all of them."""
_MEMORY_BYTES = 32 * 1024**2
_OOM_S = 15.0
# Takes more than the limit, and stays.
_HOG = f"held = [bytearray(b'x') * 1024**2 for _ in range({2 * _MEMORY_BYTES // 1024**2})]\n"
_JOIN = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"'


class FaultFailedError(Amp4ecError):
    """A fault could not be made: what was to break did not."""


def missing(kind: FaultKind) -> str:
    """Why this machine cannot have this fault; empty when it can."""
    if kind is FaultKind.MEMORY_FULL and _memory_group() is None:
        return "no memory controller of cgroup version 1 that may be written"
    return network_missing()


def broken(plant: Plant, fault: Fault) -> AbstractAsyncContextManager[None]:
    """Entering breaks, leaving puts right."""
    return _KINDS[fault.kind](plant, fault.victim)


@asynccontextmanager
async def _agent_kill(plant: Plant, victim: str) -> AsyncIterator[None]:
    await plant.cluster.kill_agent(victim)
    try:
        yield
    finally:
        await plant.start_agent(victim)


@asynccontextmanager
async def _agent_freeze(plant: Plant, victim: str) -> AsyncIterator[None]:
    agent = plant.cluster.agents[victim]
    agent.freeze(frozen=True)
    try:
        yield
    finally:
        agent.freeze(frozen=False)


@asynccontextmanager
async def _cut(plant: Plant, victim: str) -> AsyncIterator[None]:
    network = plant.cluster.network
    await asyncio.to_thread(network.cut, victim)
    try:
        yield
    finally:
        await asyncio.to_thread(network.heal, victim)


@asynccontextmanager
async def _agent_rate(plant: Plant, victim: str) -> AsyncIterator[None]:
    network = plant.cluster.network
    await asyncio.to_thread(network.rate, victim, _RATE_BYTES_PER_S)
    try:
        yield
    finally:
        await asyncio.to_thread(network.unrate, victim)


@asynccontextmanager
async def _agent_delay(plant: Plant, victim: str) -> AsyncIterator[None]:
    plant.relay.delay_s = _DELAY_S
    try:
        yield
    finally:
        plant.relay.delay_s = 0.0


@asynccontextmanager
async def _agent_slow(plant: Plant, victim: str) -> AsyncIterator[None]:
    """A neighbour in the agent's cgroup that wants all of its CPU."""
    limit = plant.cluster.agents[victim].limit
    assert limit is not None, "agents of a plant have a share"
    burner = await _helper(limit.wrap(["sh", "-c", "while :; do :; done"]))
    try:
        yield
    finally:
        await _ended(burner)


@asynccontextmanager
async def _disk_full(plant: Plant, victim: str) -> AsyncIterator[None]:
    """The agent starts anew with a cache on a disk too small for any stage; in the end the disk grows.

    The disk is in a mount namespace of the agent's own, and goes with it.
    """
    await plant.cluster.kill_agent(victim)
    disk = plant.cluster.directory / f"{victim}-disk"
    disk.mkdir(exist_ok=True)
    mount = f'mount -t tmpfs -o size={_SMALL_DISK} none "$1" && shift && exec "$@"'
    wrap = ["unshare", "--mount", "--propagation=private", "sh", "-c", mount, "sh", str(disk)]
    agent = await plant.start_agent(victim, wrap, f"--cache-dir={disk}")
    try:
        yield
    finally:
        grow = await _helper(
            [
                *("nsenter", f"--mount=/proc/{agent.pid}/ns/mnt", "--"),
                *("mount", "-o", f"remount,size={_LARGE_DISK}", str(disk)),
            ]
        )
        if await grow.wait() != 0 and agent.alive:
            raise FaultFailedError(f"the disk of {victim} does not grow")


@asynccontextmanager
async def _memory_full(plant: Plant, victim: str) -> AsyncIterator[None]:
    """A neighbour in the agent's cgroup takes its memory, until the kernel kills the agent."""
    agent = plant.cluster.agents[victim]
    try:
        await _out_of_memory(agent)
        yield
    finally:
        await agent.kill()
        await plant.start_agent(victim)


async def _out_of_memory(agent: Child) -> None:
    parent = _memory_group()
    assert parent is not None, "asked before"
    group = parent / f"amp4ec-chaos-{os.getpid()}-{agent.name}"
    try:
        _limit_memory(group, agent.pid)
        hog = await _helper(["sh", "-c", _JOIN, "sh", str(group), sys.executable, "-c", _HOG])
        try:
            await asyncio.wait_for(agent.process.wait(), _OOM_S)
        except TimeoutError:
            raise FaultFailedError(
                f"{agent.name} outlived its memory limit", expected="killed by the kernel"
            ) from None
        finally:
            await _ended(hog)
            await agent.kill()
    finally:
        await _remove(group)


@asynccontextmanager
async def _broker_restart(plant: Plant, victim: str) -> AsyncIterator[None]:
    await plant.cluster.broker.restart()
    yield


@asynccontextmanager
async def _broker_kill(plant: Plant, victim: str) -> AsyncIterator[None]:
    await plant.cluster.broker.kill()
    try:
        yield
    finally:
        await plant.cluster.broker.start()


@asynccontextmanager
async def _leader_kill(plant: Plant, victim: str) -> AsyncIterator[None]:
    leader = await plant.leader()
    await plant.orchestrators[leader].kill()
    try:
        yield
    finally:
        await plant.start_orchestrator(leader)


@asynccontextmanager
async def _leader_freeze(plant: Plant, victim: str) -> AsyncIterator[None]:
    """It does not know that it was away when it goes on."""
    leader = plant.orchestrators[await plant.leader()]
    leader.freeze(frozen=True)
    try:
        yield
    finally:
        leader.freeze(frozen=False)


@asynccontextmanager
async def _leader_cut(plant: Plant, victim: str) -> AsyncIterator[None]:
    async with _cut(plant, await plant.leader()):
        yield


@asynccontextmanager
async def _orchestrators_kill(plant: Plant, victim: str) -> AsyncIterator[None]:
    names = list(plant.orchestrators)
    await asyncio.gather(*(plant.orchestrators[name].kill() for name in names))
    try:
        yield
    finally:
        for name in names:
            await plant.start_orchestrator(name)


_KINDS: dict[FaultKind, Callable[[Plant, str], AbstractAsyncContextManager[None]]] = {
    FaultKind.AGENT_KILL: _agent_kill,
    FaultKind.AGENT_FREEZE: _agent_freeze,
    FaultKind.AGENT_CUT: _cut,
    FaultKind.AGENT_RATE: _agent_rate,
    FaultKind.AGENT_DELAY: _agent_delay,
    FaultKind.AGENT_SLOW: _agent_slow,
    FaultKind.DISK_FULL: _disk_full,
    FaultKind.MEMORY_FULL: _memory_full,
    FaultKind.BROKER_RESTART: _broker_restart,
    FaultKind.BROKER_KILL: _broker_kill,
    FaultKind.LEADER_KILL: _leader_kill,
    FaultKind.LEADER_FREEZE: _leader_freeze,
    FaultKind.LEADER_CUT: _leader_cut,
    FaultKind.ORCHESTRATORS_KILL: _orchestrators_kill,
}


async def _helper(line: Sequence[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *line, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
    )


async def _ended(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself
        process.kill()
    await process.wait()


def _memory_group() -> Path | None:
    """Our own cgroup of the memory controller, version 1, where it may have children."""
    mount = Path("/sys/fs/cgroup/memory")
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            own = mount / path.lstrip("/")
            found = own if own.is_dir() else mount
            return found if os.access(found, os.W_OK) and found.is_dir() else None
    return None


def _limit_memory(group: Path, pid: int) -> None:
    """A new cgroup with `pid` in it, the first to be killed."""
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(_MEMORY_BYTES))
    (group / "cgroup.procs").write_text(str(pid))
    Path("/proc", str(pid), "oom_score_adj").write_text("1000")


async def _remove(group: Path) -> None:
    """The kernel needs a moment after the last process."""
    for _ in range(100):
        try:
            await asyncio.to_thread(group.rmdir)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            return
    raise FaultFailedError("a cgroup is still in use", got=str(group))

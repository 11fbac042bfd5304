"""What the long-lived processes hold: memory, file descriptors, threads, once a second."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local import LocalCluster

PERIOD_S = 1.0
_KIB = 1024
_ARTIFACT = re.compile(r"/[0-9a-f]{2}/[0-9a-f]{64}$")
"""The path of what an artifact store keeps."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process held at a moment (monotonic).

    `files` are open file descriptors, but for artifacts (weights, graphs), whose number follows the plans;
    these are `artifacts`, and `copies` is how often the most opened one of them is open.
    """

    at: float
    name: str
    pid: int
    resident_bytes: int
    files: int
    threads: int
    artifacts: int = 0
    copies: int = 0


@dataclass(slots=True)
class Usage:
    """Everything seen of the processes of one cluster."""

    cluster: LocalCluster
    seen: list[Held] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look once per period until left."""

        async def watch() -> None:
            while True:
                self.look()
                await asyncio.sleep(PERIOD_S)

        task = asyncio.create_task(watch(), name="usage")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def look(self) -> None:
        """Once. What just ended is left out."""
        for name, pid in self._processes():
            # Between the look and the reading it may end; its last state says nothing.
            with contextlib.suppress(OSError, KeyError):
                self.seen.append(_held(name, pid))

    def lives(self) -> Iterator[tuple[str, list[Held]]]:
        """Each process with all that was seen of it, in time's order."""
        by_process: dict[tuple[str, int], list[Held]] = {}
        for held in self.seen:
            by_process.setdefault((held.name, held.pid), []).append(held)
        for (name, _), life in by_process.items():
            yield name, life

    def _processes(self) -> Iterator[tuple[str, int]]:
        if self.cluster.broker.running:
            yield "broker", self.cluster.broker.pid
        first = self.cluster.orchestrator
        children = [*self.cluster.agents.values(), *self.cluster.standbys.values()]
        for child in [*children, *([first] if first else [])]:
            if child.alive:
                yield child.name, child.pid


def _held(name: str, pid: int) -> Held:
    folder = Path("/proc", str(pid))
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    open_files = [str(entry.readlink()) for entry in (folder / "fd").iterdir()]
    artifacts = Counter(path for path in open_files if _ARTIFACT.search(path))
    return Held(
        at=time.monotonic(),
        name=name,
        pid=pid,
        resident_bytes=int(status["VmRSS"].split()[0]) * _KIB,
        files=len(open_files) - artifacts.total(),
        threads=int(status["Threads"]),
        artifacts=artifacts.total(),
        copies=max(artifacts.values(), default=0),
    )

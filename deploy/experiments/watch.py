"""CPU, memory and steadiness of the parts of a system, looked at once a second from outside.

The same for a cluster's agents and for one process with the whole model, so that both are measured alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from edge_agent.core.stability import Stability

PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """A process, and what it may use: CPUs and bytes; 0 CPUs where nothing limits it."""

    pid: int
    cpus: float
    memory_bytes: int


@dataclass(slots=True)
class Seen:
    """What was seen of one part: CPU seconds, largest resident bytes, and the paper's stability score."""

    cpu_s: float = 0.0
    resident_bytes: int = 0
    stability: float = 1.0


@dataclass(slots=True)
class Watch:
    """What was seen from the beginning to the end, by name; `seconds` is how long that was."""

    seen: dict[str, Seen] = field(default_factory=dict)
    seconds: float = 0.0

    def cpu_s(self, *names: str) -> float:
        """CPU seconds of these parts together."""
        return sum(self.seen[name].cpu_s for name in names if name in self.seen)

    def memory_mb(self, *names: str) -> float:
        """The largest resident memory of each of these parts, added up, in MB."""
        return sum(self.seen[name].resident_bytes for name in names if name in self.seen) / 1e6

    def stability(self, *names: str) -> float:
        """The mean score of these parts."""
        scores = [self.seen[name].stability for name in names if name in self.seen]
        return sum(scores) / len(scores) if scores else 0.0


@asynccontextmanager
async def watching(parts: Mapping[str, Part]) -> AsyncIterator[Watch]:
    """Watch these; what is yielded is filled in when the block ends. Parts that end are seen until then."""
    watch = Watch()
    processes = {}
    for name, part in parts.items():
        with contextlib.suppress(psutil.Error):
            processes[name] = psutil.Process(part.pid)
    began = time.monotonic()
    first = {name: _cpu_s(process) for name, process in processes.items()}
    last = {name: value or 0.0 for name, value in first.items()}
    scores = {name: Stability() for name in processes}
    watch.seen = {name: Seen() for name in processes}
    at = began

    def look() -> None:
        nonlocal at
        now = time.monotonic()
        for name, process in processes.items():
            used_s = _cpu_s(process)
            if used_s is None:
                continue
            seen, part = watch.seen[name], parts[name]
            with contextlib.suppress(psutil.Error):
                resident = process.memory_info().rss
                seen.resident_bytes = max(seen.resident_bytes, resident)
                if part.cpus and now - at > PERIOD_S / 2:
                    busy = (used_s - last[name]) / (now - at) / part.cpus
                    seen.stability = scores[name].add(busy, resident / part.memory_bytes)
            seen.cpu_s = used_s - (first[name] or 0.0)
            last[name] = used_s
        at = now

    async def every_second() -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            look()

    looking = asyncio.create_task(every_second(), name="watch")
    try:
        yield watch
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        look()
        watch.seconds = time.monotonic() - began


def bytes_through(pid: int) -> int | None:
    """Bytes that a process has read, by the kernel's count; None where that may not be seen.

    Of a broker: what all clients sent it.
    """
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def _cpu_s(process: psutil.Process) -> float | None:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)

"""Memory and CPU of everything that a system runs: all processes below its driver, daemons included."""

from __future__ import annotations

from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """All processes below a driver, without the driver itself, which stands for the user's program.

    `pss_bytes` counts pages that several processes share once, as on this one machine; `rss_bytes` once for
    each, as on devices of their own. `cpu_s` is by process, for differences.
    """

    processes: int
    pss_bytes: int
    rss_bytes: int
    cpu_s: dict[int, float]


def read_usage(driver: int) -> Usage:
    """Of the processes that run now; those that end meanwhile do not count."""
    pss = rss = 0
    cpu_s: dict[int, float] = {}
    for process in psutil.Process(driver).children(recursive=True):
        try:
            memory = process.memory_full_info()
            times = process.cpu_times()
        except psutil.Error:
            continue
        pss += memory.pss
        rss += memory.rss
        cpu_s[process.pid] = times.user + times.system
    return Usage(len(cpu_s), pss, rss, cpu_s)


def cpus(before: Usage, after: Usage, seconds: float, only: frozenset[int] | None = None) -> float:
    """CPUs used between two readings by the processes `only`, all when None."""
    used = sum(
        spent - before.cpu_s.get(pid, 0.0)
        for pid, spent in after.cpu_s.items()
        if only is None or pid in only
    )
    return used / seconds

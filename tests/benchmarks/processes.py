"""What processes use, as the kernel counts it: CPU, memory, and the time a quota made them stand still."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigurationError

_libc = ctypes.CDLL(None, use_errno=True)


def cpu_s(pid: int) -> float:
    """CPU seconds that process `pid` has used: all threads, those that ended too, but not its children.

    By the process's CPU clock (clock_getcpuclockid(3)): nanoseconds, where `/proc/PID/stat` counts the same
    in ticks of 10 ms.

    Raises:
        ConfigurationError: there is no such process.
    """
    clock = ctypes.c_int()
    error = _libc.clock_getcpuclockid(pid, ctypes.byref(clock))
    if error != 0:
        raise ConfigurationError(f"CPU clock of process {pid}", got=os.strerror(error))
    return time.clock_gettime(clock.value)


def resident_bytes(pid: int) -> int:
    """Resident memory of process `pid` (pages that it shares with others included).

    Raises:
        ConfigurationError: there is no such process.
    """
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError as error:
        raise ConfigurationError(f"memory of process {pid}", got=str(error)) from error
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Throttling:
    """A cgroup's record of its quota: periods, those in which it ran out, and the seconds it then waited."""

    periods: int
    throttled: int
    waited_s: float

    def since(self, before: Throttling) -> Throttling:
        """What was added after `before`."""
        return Throttling(
            self.periods - before.periods,
            self.throttled - before.throttled,
            self.waited_s - before.waited_s,
        )

    @property
    def share(self) -> float:
        """The share of the periods in which the quota ran out."""
        return self.throttled / self.periods if self.periods else 0.0


def throttling(directory: Path) -> Throttling:
    """Of a cgroup of version 1 (`throttled_time`, ns) or 2 (`throttled_usec`)."""
    values: dict[str, int] = {}
    for line in (directory / "cpu.stat").read_text().splitlines():
        key, _, value = line.partition(" ")
        values[key] = int(value)
    waited_s = values.get("throttled_time", 0) / 1e9 + values.get("throttled_usec", 0) / 1e6
    return Throttling(values.get("nr_periods", 0), values.get("nr_throttled", 0), waited_s)

"""What this device is and how it does, measured from the process itself.

CPU and memory are relative to what the process may really use: cgroup quotas of both versions along the whole
path, and CPU affinity. `psutil.cpu_percent` is not used: it is relative to the host, so that a saturated
0.4-CPU container reads as 20 % of two cores.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from edge_agent.cgroup import Cgroups
from edge_agent.core.stability import Stability
from edge_agent.kernel_file import KernelFile
from edge_agent.thermometer import Thermometer
from shared.messages.node import Hardware

DECLARED = "declared"
"""What limits a share that nothing but its own word does."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LIMITS_S = 5.0
"""Samples read limits so often: it takes a dozen files, half of a sample's CPU."""


@dataclass(frozen=True, slots=True)
class Share:
    """The CPUs that the process may use, and what limits it to them (empty: nothing)."""

    cpus: float
    cores: int
    limited_by: str


@dataclass(frozen=True, slots=True)
class Usage:
    """One sample. `cpu_percent` is of the share since the sample before.

    `memory_available_bytes` is what this process may take in all, what it has included: the limit less what
    others hold. `cpu_others_ratio` is the share of the machine's CPU time that others used, `temperature_c`
    the CPU's in degrees Celsius; None each where the machine does not say.
    """

    cpu_percent: float
    memory_used_bytes: int
    memory_limit_bytes: int
    memory_available_bytes: int
    cpu_others_ratio: float | None
    stability: float
    temperature_c: float | None


@dataclass(frozen=True, slots=True)
class _Limits:
    """What samples go by until then (monotonic seconds); `cgroup`: whether one limits the memory."""

    until_s: float
    cpus: float
    total_bytes: int
    cgroup: bool


class Probe:
    """Reads one process and its limits. `root` stands for `/`, so that tests can bring their own tree.

    `declared_cpus` is what somebody said this process may have, for where the kernel cannot be told: several
    agents on one machine would each count on all of its cores.

    Limits are read again every few seconds: a container's may be changed while it runs.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        affinity: int | None = None,
        *,
        declared_cpus: float | None = None,
    ) -> None:
        self._root = root
        self._affinity = affinity
        self._declared_cpus = declared_cpus
        self._cgroups = Cgroups(root)
        self._process = psutil.Process()
        self._stat = KernelFile(root / "proc/stat", 512)
        self._memory_table = KernelFile(root / "proc/meminfo", 8192)
        self._statm = KernelFile(Path("/proc/self/statm"), 128)
        self._stability = Stability()
        self._thermometer = Thermometer(root)
        self._cpu_s = time.process_time()
        self._at = time.monotonic()
        self._machine = self._machine_times()
        self._limits = _Limits(float("-inf"), 0.0, 0, cgroup=False)

    def share(self) -> Share:
        """The tightest of quota, affinity, cores and what was declared."""
        cores = self._affinity or _affinity()
        cpus, limited_by = float(cores), "" if cores >= (os.cpu_count() or 1) else "affinity"
        quota = self._cgroups.cpu_quota()
        if quota is not None and quota.cpus < cpus:
            cpus, limited_by = quota.cpus, quota.source
        if self._declared_cpus is not None and self._declared_cpus < cpus:
            cpus, limited_by = self._declared_cpus, DECLARED
        return Share(cpus, cores, limited_by)

    def memory(self) -> tuple[int, int]:
        """(used, limit) in bytes: the cgroup's where it limits, else this process's of the machine's."""
        used, limit, _ = self._memory(self._total_memory())
        return used, limit

    def _memory(self, total_bytes: int) -> tuple[int, int, bool]:
        """(used, limit, whether a cgroup limits it)."""
        limit = self._cgroups.memory_limit()
        if limit is not None and limit.limit_bytes < total_bytes:
            return limit.used_bytes, limit.limit_bytes, True
        return self._resident_bytes(), total_bytes, False

    def _resident_bytes(self) -> int:
        """This process's memory; psutil where there is no `/proc`."""
        try:
            return int(self._statm.read().split()[1]) * _PAGE_BYTES
        except OSError:
            return int(self._process.memory_info().rss)

    def hardware(self) -> Hardware:
        """What the birth says about this device."""
        share = self.share()
        return Hardware(
            cpu=share.cpus,
            cores=share.cores,
            memory_bytes=self.memory()[1],
            architecture=platform.machine(),
            cpu_model=self._cpu_model(),
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            cpu_limited_by=share.limited_by,
        )

    def sample(self) -> Usage:
        """Use since the sample before (or since the start). CPU counts threads that have ended, too."""
        cpu_s, now = time.process_time(), time.monotonic()
        elapsed = max(1e-6, now - self._at)
        own_s = cpu_s - self._cpu_s
        if now >= self._limits.until_s:
            total = self._total_memory()
            *_, in_cgroup = self._memory(total)
            self._limits = _Limits(now + _LIMITS_S, self.share().cpus, total, in_cgroup)
        limits = self._limits
        ratio = own_s / elapsed / limits.cpus
        self._cpu_s, self._at = cpu_s, now
        own = self._resident_bytes()
        used, limit = own, limits.total_bytes
        if limits.cgroup:
            used, limit, _ = self._memory(limits.total_bytes)
        return Usage(
            cpu_percent=100.0 * ratio,
            memory_used_bytes=used,
            memory_limit_bytes=limit,
            memory_available_bytes=self._available(own, used, limit),
            cpu_others_ratio=self._others(own_s),
            stability=self._stability.add(ratio, used / limit),
            temperature_c=self._thermometer.read_c(),
        )

    def _others(self, own_s: float) -> float | None:
        before, now = self._machine, self._machine_times()
        self._machine = now
        if before is None or now is None or now[1] <= before[1]:
            return None
        return min(max((now[0] - before[0] - own_s) / (now[1] - before[1]), 0.0), 1.0)

    def _machine_times(self) -> tuple[float, float] | None:
        """(busy, all) CPU seconds of the whole machine since its start."""
        try:
            first, *fields = self._stat.read().split(b"\n", 1)[0].split()
            user, nice, system, idle, waiting, *other = (
                int(each) / _TICKS_PER_S for each in fields
            )
        except (OSError, ValueError):
            return None
        if first != b"cpu":
            return None
        # Behind interrupts and what a hypervisor took come guests, which are in `user` already.
        busy = user + nice + system + sum(other[:3])
        return busy, busy + idle + waiting

    def _available(self, own_bytes: int, used_bytes: int, limit_bytes: int) -> int:
        """What others leave of the limit and of the machine: either, when used up, ends the process."""
        free = max(limit_bytes - used_bytes, 0)
        return min(limit_bytes, own_bytes + min(free, self._meminfo("MemAvailable", free)))

    def _total_memory(self) -> int:
        return self._meminfo("MemTotal", 0) or int(psutil.virtual_memory().total)

    def _meminfo(self, name: str, otherwise: int) -> int:
        """A line of the kernel's memory table in bytes, where it has that line."""
        try:
            _, found, rest = self._memory_table.read().partition(f"{name}:".encode())
            return int(rest.split(maxsplit=1)[0]) * 1024 if found else otherwise
        except (OSError, ValueError, IndexError):
            return otherwise

    def _cpu_model(self) -> str:
        """The board where the device tree names it (a Raspberry Pi's `/proc/cpuinfo` names no CPU)."""
        for name, key in (
            ("sys/firmware/devicetree/base/model", ""),
            ("proc/cpuinfo", "model name"),
        ):
            try:
                text = (self._root / name).read_text(errors="replace")
            except OSError:
                continue
            if not key:
                return text.strip("\0\n ")
            for line in text.splitlines():
                if line.startswith(key):
                    return line.partition(":")[2].strip()
        return platform.processor()


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1

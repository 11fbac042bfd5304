"""What the kernel lets this process have: CPU and memory limits of its cgroups, version 1 and 2.

A limit may stand on the process's own cgroup or on any above it, and both versions may be mounted at
once, so every directory from the process's cgroup up to the mount is read, and the tightest limit counts.
In a container `/proc/self/cgroup` may name a path of the host that is not below the mount; the mount itself
is then ours.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_AT_ONCE_BYTES = 1 << 16
_NO_MEMORY_LIMIT = 1 << 60
"""Version 1 writes "no limit" as the largest multiple of a page; anything this large is that."""


@dataclass(frozen=True, slots=True)
class CpuQuota:
    """`cpus` CPUs, handed out in periods of `period_s`; `source` is the file that says so."""

    cpus: float
    period_s: float
    source: str


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """`limit_bytes`, of which `used_bytes` are used (page cache that can be dropped not counted)."""

    limit_bytes: int
    used_bytes: int
    source: str


class Cgroups:
    """The cgroups of a process. `root` stands for `/`, so that tests can bring their own."""

    def __init__(self, root: Path = Path("/"), pid: str = "self") -> None:
        self._root = root
        self._pid = pid
        self._directories = self._find()

    def cpu_quota(self) -> CpuQuota | None:
        """The tightest CPU quota, or None where there is none."""
        quotas: list[CpuQuota] = []
        for controllers, directory in self._directories:
            if controllers is None:
                fields = _read(directory / "cpu.max").split()
                if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit():
                    quotas += _quota(int(fields[0]), int(fields[1]), directory / "cpu.max")
            elif "cpu" in controllers:
                quota = _read(directory / "cpu.cfs_quota_us")
                period = _read(directory / "cpu.cfs_period_us")
                if quota.isdigit() and period.isdigit():  # -1: no limit
                    quotas += _quota(int(quota), int(period), directory / "cpu.cfs_quota_us")
        return min(quotas, key=lambda quota: quota.cpus, default=None)

    def memory_limit(self) -> MemoryLimit | None:
        """The tightest memory limit with its use, or None where there is none."""
        limits: list[MemoryLimit] = []
        for controllers, directory in self._directories:
            if controllers is None:
                names = ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers:
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            limit = _read(directory / names[0])
            if not limit.isdigit() or not 0 < int(limit) < _NO_MEMORY_LIMIT:
                continue
            used = _read(directory / names[1])
            if used.isdigit():
                droppable = _field(_read(directory / "memory.stat"), names[2])
                limits.append(
                    MemoryLimit(
                        int(limit), max(0, int(used) - droppable), str(directory / names[0])
                    )
                )
        return min(limits, key=lambda limit: limit.limit_bytes, default=None)

    def _find(self) -> list[tuple[frozenset[str] | None, Path]]:
        """(version 1 controllers or None for version 2, directory), own cgroup first."""
        paths: dict[frozenset[str] | None, str] = {}
        for line in _read(self._root / "proc" / self._pid / "cgroup").splitlines():
            _, names, path = line.split(":", 2)
            paths[frozenset(names.split(",")) if names else None] = path
        found: list[tuple[frozenset[str] | None, Path]] = []
        for line in _read(self._root / "proc" / self._pid / "mountinfo").splitlines():
            # 36 35 0:33 /root /mount/point options... - type source options
            left, _, right = line.partition(" - ")
            fields, kind = left.split(), right.split()
            if len(fields) < 5 or not kind or kind[0] not in ("cgroup", "cgroup2"):
                continue
            mount_root, mount_point = fields[3], self._root / fields[4].lstrip("/")
            for controllers, path in paths.items():
                here = (
                    kind[0] == "cgroup2"
                    if controllers is None
                    else kind[0] == "cgroup" and controllers <= set(kind[-1].split(","))
                )
                if here:
                    found += [
                        (controllers, directory) for directory in _up(mount_point, mount_root, path)
                    ]
        return found


def _up(mount_point: Path, mount_root: str, path: str) -> list[Path]:
    try:
        relative = PurePosixPath(path).relative_to(mount_root)
    except ValueError:
        relative = PurePosixPath()
    directory = mount_point / relative
    if ".." in relative.parts or not directory.is_dir():
        return [mount_point]
    return [directory, *(p for p in directory.parents if p.is_relative_to(mount_point))]


def _quota(quota_us: int, period_us: int, source: Path) -> list[CpuQuota]:
    if quota_us <= 0 or period_us <= 0:
        return []
    return [CpuQuota(quota_us / period_us, period_us / 1e6, str(source))]


def _read(path: Path) -> str:
    """The text of a file of the kernel's, or nothing where it is not there or not ours to read.

    `Path.read_text` asks the kernel three times as much, and limits are read again every few seconds.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return b"".join(iter(lambda: os.read(fd, _AT_ONCE_BYTES), b"")).decode().strip()
        finally:
            os.close(fd)
    except OSError:
        return ""


def _field(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0

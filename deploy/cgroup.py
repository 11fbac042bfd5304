"""CPU limits for child processes by cgroup, version 1 or 2, where this process may set them.

A limited child is put into its cgroup before its program starts, so that what it measures of itself is right
from the first moment. Nothing is done to processes that are not ours.

Version 2 lets a cgroup have either processes or limited children, not both (the "no internal processes" rule
of the kernel's cgroup-v2 documentation). So the new cgroup goes to the nearest directory from our own upwards
that hands the cpu controller down already.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ConfigurationError

PERIOD_US = 100_000
"""The kernel's default period. A shorter one would let a stage run smoother, at more switches."""
PREFIX = "amp4ec-"
_OCTAL = re.compile(r"\\([0-7]{3})")
_REMOVE_S = 2.0


@dataclass(frozen=True, slots=True)
class CpuLimit:
    """A cgroup that gives its processes `cpus` CPUs together."""

    directory: Path
    cpus: float

    def wrap(self, command: Sequence[str]) -> list[str]:
        """`command`, started inside the cgroup under the same process id.

        A shell joins and then becomes the program; unlike code run between fork and exec in a process with
        threads, that cannot hang.
        """
        join = 'echo $$ > "$1" && shift && exec "$@"'
        return ["/bin/sh", "-c", join, "sh", str(self.directory / "cgroup.procs"), *command]

    def changed(self, cpus: float) -> CpuLimit:
        """The same cgroup with another quota, in force for what runs in it.

        Raises:
            ConfigurationError: the kernel does not take it, or the cgroup is gone.
        """
        version = 1 if (self.directory / "cpu.cfs_quota_us").exists() else 2
        try:
            _set_quota(version, self.directory, round(cpus * PERIOD_US))
        except OSError as error:
            raise ConfigurationError(
                f"{self.directory} takes no quota of {cpus:g} CPUs",
                expected="0.01 CPUs or more, and a process that runs",
                got=error.strerror or str(error),
            ) from error
        return CpuLimit(self.directory, cpus)

    def remove(self) -> None:
        """Take the cgroup away, and with it what a killed child may have left running inside.

        The kernel may need a moment after the last process; a cgroup that stays busy is left behind, to no
        effect.
        """
        deadline = time.monotonic() + _REMOVE_S
        while True:
            try:
                self.directory.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    return
                for pid in _words(self.directory / "cgroup.procs"):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.01)
            else:
                return


def limit_cpu(name: str, cpus: float, *, root: Path = Path("/")) -> CpuLimit:
    """A new cgroup `name` with a quota of `cpus` CPUs.

    What killed processes of ours left behind is taken away on the way.

    Args:
        name: for people; the directory's name has more, so that it is the only one on this machine.
        cpus: CPUs, 0.01 or more.
        root: stands for `/`, so that tests can bring their own tree.

    Raises:
        ConfigurationError: this process may not set limits; the message says why.
    """
    reasons: list[str] = []
    for version, parent in _parents(root, reasons):
        _sweep(parent)
        directory = parent / f"{PREFIX}{os.getpid()}-{uuid.uuid4().hex[:6]}-{name}"
        try:
            directory.mkdir()
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            continue
        try:
            _set_quota(version, directory, round(cpus * PERIOD_US))
        except OSError as error:
            reasons.append(f"{directory}: {error.strerror}")
            with contextlib.suppress(OSError):
                directory.rmdir()
            continue
        return CpuLimit(directory, cpus)
    raise ConfigurationError(
        "this process may not limit CPU by cgroup",
        expected="root, or a delegated cgroup with the cpu controller (`systemd-run --user --scope "
        "-p Delegate=yes amp4ec up ...`); or leave --cpus out",
        got="; ".join(reasons) or "no cgroup file system with a cpu controller",
    )


def _sweep(parent: Path) -> None:
    """Remove cgroups of processes that are gone and could not do it themselves (SIGKILL)."""
    for directory in parent.glob(f"{PREFIX}*"):
        owner = directory.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            with contextlib.suppress(OSError):  # in use after all
                directory.rmdir()


def _set_quota(version: int, directory: Path, quota_us: int) -> None:
    if version == 1:
        (directory / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (directory / "cpu.cfs_quota_us").write_text(str(quota_us))
    else:
        (directory / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")


def _parents(root: Path, reasons: list[str]) -> Iterator[tuple[int, Path]]:
    """(version, directory) where a limited cgroup may be made, best first."""
    for version, mount, own in _mounts(root):
        if version == 1:
            yield 1, own
            continue
        for directory in (own, *own.parents):
            if not directory.is_relative_to(mount):
                break
            controllers = _words(directory / "cgroup.subtree_control")
            if "cpu" in controllers:
                yield 2, directory
            elif directory == mount and "cpu" in _words(directory / "cgroup.controllers"):
                # Only the root of the hierarchy may have both processes and limited children.
                try:
                    (directory / "cgroup.subtree_control").write_text("+cpu")
                except OSError as error:
                    reasons.append(f"{directory}: {error.strerror}")
                else:
                    yield 2, directory
            else:
                reasons.append(f"{directory}: does not hand the cpu controller down")


def _mounts(root: Path) -> Iterator[tuple[int, Path, Path]]:
    """(version, mount point, our own cgroup below it) of every hierarchy that may limit CPU."""
    own: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path  # version 2 has no controllers there: the empty name
    for line in _lines(root / "proc/self/mountinfo"):
        # 36 35 0:33 /root /mount/point options... - type source options
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        version = {"cgroup": 1, "cgroup2": 2}.get(kind[0])
        controller = "cpu" if version == 1 else ""
        if version is None or controller not in own:
            continue
        if version == 1 and "cpu" not in kind[2].split(","):
            continue
        mount = root / _unescape(fields[4]).lstrip("/")
        path = own[controller]
        inside = path.removeprefix(_unescape(fields[3]).rstrip("/")).lstrip("/")
        directory = mount / inside
        yield version, mount, directory if directory.is_dir() else mount


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def available_cpus() -> float:
    """CPUs that this process may be scheduled on."""
    return float(len(os.sched_getaffinity(0)))

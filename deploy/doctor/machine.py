"""This machine: what is installed, what the kernel gives, what is left on disk, and a broker of its own."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from deploy.doctor.finding import Finding, error, note, ok, warning
from edge_agent.cgroup import Cgroups
from edge_agent.probe import Probe
from edge_agent.runtimes import available_runtimes, requirements_of
from shared.bus import BrokerUrl
from shared.bus.url import is_loopback

SMALL_CPUS: Final = 0.3
ROOM_BYTES: Final = {"onnxruntime": 150 << 20, "torch": 450 << 20}
"""What an agent holds with MobileNetV2 loaded, by runtime (FACTS: 113 and 370 MB), and some to spare."""
DISK_BYTES: Final = 1 << 30
"""A few models' weights."""
DISK_LEAST_BYTES: Final = 200 << 20
IMPORT_S: Final = 60.0
"""At 0.2 CPU importing torch takes ten seconds."""
_BESIDE: Final = {"torch": ("torchvision",), "onnxruntime": ("onnx",)}
"""What breaks with a runtime's own modules, where it is installed: what imports models."""


@dataclass(frozen=True, slots=True)
class Looks:
    """Where to look. `root` stands for `/` in what the kernel says."""

    directories: tuple[Path, ...]
    """Where an agent's cache and an orchestrator's state are, or would be."""
    root: Path = Path("/")


def examine(looks: Looks, url: BrokerUrl | None) -> list[Finding]:
    """Everything about this machine, and about the broker of that address where it is on it."""
    runtimes = available_runtimes()
    return [
        *check_runtimes(runtimes),
        *_packages(),
        *check_cpu(looks),
        *check_memory(looks, runtimes),
        *check_disk(looks.directories),
        *(() if url is None else check_persistence(url)),
    ]


def check_runtimes(runtimes: dict[str, str]) -> Iterator[Finding]:
    """Whether what is installed can be imported."""
    if not runtimes:
        yield note(
            "runtime.none",
            "no runtime is installed: this machine can ask and operate, and not be an agent",
            "for an agent: pip install 'amp4ec[agent,onnx]'",
        )
    for name, version in runtimes.items():
        needs, extra = requirements_of(name)
        beside = [module for module in _BESIDE.get(name, ()) if _installed(module)]
        failed = _import_error([*needs, *beside])
        if failed:
            yield error(
                "runtime.broken",
                f"{name} {version} is installed and cannot be imported: {failed}",
                f"pip install --force-reinstall '{extra}'",
            )
        else:
            yield ok("runtime", f"{name} {version}")


def _import_error(modules: Iterable[str]) -> str:
    """The last line of what importing them in another process says; empty where it works.

    Torchvision comes after the operators that a CPU build of torch leaves undeclared; the orchestrator
    declares them, so it is looked at there.
    """
    names = [module for module in modules if module != "torchvision"]
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {', '.join(names)}"],
            capture_output=True,
            text=True,
            timeout=IMPORT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {IMPORT_S:.0f} s"
    lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
    return lines[-1] if done.returncode else ""


def _packages() -> Iterator[Finding]:
    """Installed packages that do not fit what we, or torchvision, ask for."""
    asking = [name for name in ("amp4ec", "torchvision", "onnxruntime") if _installed(name)]
    try:
        misfits = [misfit for name in asking for misfit in misfitting(name)]
    except ImportError:
        # An agent needs it for nothing else.
        yield note(
            "package.unseen",
            "whether installed packages fit each other is not seen without the package packaging",
            "pip install packaging",
        )
        return
    for package, requirement, have in sorted(set(misfits)):
        yield error(
            "package",
            f"{package} asks for {requirement}, and {have} is installed",
            f"pip install '{requirement}'",
        )
    if asking and not misfits:
        yield ok("package", "installed packages fit each other")


def misfitting(package: str) -> Iterator[tuple[str, str, str]]:
    """(package, requirement, installed version) for what is installed and does not fit.

    Raises:
        ImportError: packaging is not installed.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    for text in importlib.metadata.requires(package) or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        # Of an extra only what is installed counts; a condition on the machine has to hold.
        marker = requirement.marker
        if marker is not None and "extra" not in str(marker) and not marker.evaluate():
            continue
        have = _version(requirement.name)
        if have is not None and not requirement.specifier.contains(have, prereleases=True):
            yield package, f"{requirement.name}{requirement.specifier}", have


def check_cpu(looks: Looks) -> Iterator[Finding]:
    """What quota and affinity leave."""
    share = Probe(looks.root).share()
    limited = f", limited by {share.limited_by}" if share.limited_by else ""
    text = f"{share.cpus:g} CPUs{limited}"
    quota = Cgroups(looks.root).cpu_quota()
    if share.cpus < SMALL_CPUS:
        stands_s = 0.0 if quota is None else quota.period_s * max(0.0, 1 - quota.cpus)
        yield warning(
            "cpu.quota",
            f"{text}: a start takes ten seconds and more, and of each period this machine stands still for "
            f"{stands_s * 1e3:.0f} ms",
            "give it 0.3 CPUs or more, or be patient: `--timeout`",
        )
    else:
        yield ok("cpu", text)


def check_memory(looks: Looks, runtimes: dict[str, str]) -> Iterator[Finding]:
    """Whether the lightest runtime fits."""
    usage = Probe(looks.root).sample()
    free = usage.memory_available_bytes
    needs = min((ROOM_BYTES[name] for name in runtimes), default=0)
    if free < needs:
        yield warning(
            "memory",
            f"{free / 1e6:.0f} MB can be had, an agent with {' or '.join(runtimes)} needs "
            f"{needs / 1e6:.0f}: it would be killed",
            "end something, raise the limit, or install the lighter runtime: "
            "pip install 'amp4ec[agent,onnx]'",
        )
    else:
        yield ok("memory", f"{free / 1e6:,.0f} MB can be had")


def check_disk(directories: Iterable[Path]) -> Iterator[Finding]:
    """Whether weights fit."""
    for directory in directories:
        there = next(path for path in (directory, *directory.parents) if path.exists())
        free = shutil.disk_usage(there).free
        text = f"{free / 1e6:,.0f} MB free for {directory}"
        mend = "make room, or another place: `amp4ec agent --cache-dir`, `amp4ec orchestrator --state-dir`"
        if free < DISK_LEAST_BYTES:
            yield error("disk", f"{text}: weights will not fit", mend)
        elif free < DISK_BYTES:
            yield warning("disk", text, mend)
        else:
            yield ok("disk", text)


def check_persistence(url: BrokerUrl) -> Iterator[Finding]:
    """Whether a Mosquitto on this machine forgets everything when it is restarted."""
    if not is_loopback(url.host) and url.host not in _own_addresses():
        yield note(
            "broker.persistence",
            "whether the broker keeps its state over a restart is not seen from here",
            "run this on the broker's machine, too",
        )
        return
    configuration = _configuration(url.port)
    if configuration is None:
        yield note(
            "broker.persistence",
            f"no configuration of a Mosquitto on port {url.port} could be read",
            "run this as root, where it is one of this machine's",
        )
    elif configuration.get("persistence") != "true":
        yield warning(
            "broker.persistence",
            "the broker keeps nothing over a restart: nodes, orders and waiting jobs are gone with it",
            "persistence true and persistence_location DIR in its configuration; "
            "`amp4ec broker --directory DIR`",
        )
    else:
        yield ok(
            "broker.persistence", f"state is kept in {configuration.get('persistence_location')}"
        )


def _configuration(port: int) -> dict[str, str] | None:
    """The options of the Mosquitto that listens on `port` here; None where there is none to be read."""
    try:
        listening = [
            each.pid
            for each in psutil.net_connections(kind="tcp")
            if each.status == psutil.CONN_LISTEN
            and each.laddr
            and each.laddr.port == port
            and each.pid
        ]
        for pid in listening:
            process = psutil.Process(pid)
            words = process.cmdline()
            if "mosquitto" in Path(words[0]).name:
                if "-c" not in words[:-1]:
                    return {}  # Mosquitto's own defaults
                file = Path(process.cwd(), words[words.index("-c") + 1])
                return _options(file)
    except (psutil.Error, OSError, IndexError):
        return None
    return None


def _options(file: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in file.read_text(errors="replace").splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "include_dir":
            for more in sorted(Path(value.strip()).glob("*.conf")):
                found |= _options(more)
        elif name and not name.startswith("#"):
            found[name] = value.strip()
    return found


def _own_addresses() -> set[str]:
    return {each.address for many in psutil.net_if_addrs().values() for each in many}


def _installed(package: str) -> bool:
    return _version(package) is not None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

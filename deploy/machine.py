"""What figures were measured on: the machine, the versions, and what else ran."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from broker.launcher import find_mosquitto
from edge_agent.probe import Probe
from shared.errors import BrokerError

_PACKAGES = (
    "torch",
    "torchvision",
    "onnxruntime",
    "numpy",
    "aiomqtt",
    "paho-mqtt",
    "msgspec",
    "pillow",
)
# What changes figures: those that were measured before, and lie beside the code, do not.
_CODE = ("*.py", "*.toml")
_TOP = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where and with what the figures were measured."""

    at: str
    cpu_model: str
    cores: int
    memory_bytes: int
    system: str
    load_average: float
    """Of the minute before the start: what else ran."""
    commit: str
    versions: dict[str, str]

    @property
    def processor(self) -> str:
        """What figures must have in common to be compared."""
        return _processor(self.cpu_model, self.cores)


def this_processor() -> str:
    """`Machine.processor` of the machine as it is now, without asking what else it has."""
    hardware = Probe().hardware()
    return _processor(hardware.cpu_model, hardware.cores)


def _processor(cpu_model: str, cores: int) -> str:
    return f"{cpu_model}, {cores} cores"


def this_machine() -> Machine:
    """The machine as it is now."""
    hardware = Probe().hardware()
    return Machine(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu_model=hardware.cpu_model,
        cores=hardware.cores,
        memory_bytes=hardware.memory_bytes,
        system=hardware.system,
        load_average=round(os.getloadavg()[0], 2),
        commit=commit_of(_TOP),
        versions={
            "python": platform.python_version(),
            "mosquitto": _mosquitto(),
            **{name: _version(name) for name in _PACKAGES},
        },
    )


def commit_of(top: Path) -> str:
    """The commit of a checkout, marked where its code was changed since; "unknown" of what is none."""
    git = ["git", "-C", str(top)]
    try:
        found = subprocess.run(
            [*git, "describe", "--always"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *_CODE], check=False)
    return found.stdout.strip() + ("" if same.returncode == 0 else "-dirty")


def _mosquitto() -> str:
    try:
        program = find_mosquitto()
    except BrokerError:
        return "none"
    # `-h` prints the version and ends with status 3.
    found = subprocess.run([str(program), "-h"], capture_output=True, text=True, check=False)
    return found.stdout.partition("\n")[0].rpartition(" ")[2]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"

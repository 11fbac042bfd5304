"""Wheels for an image, collected on this machine: a build needs no package index then, and no network.

They are kept below the user's cache directory (XDG), by what was asked for; remove `amp4ec/wheels` there to
collect anew.
"""

from __future__ import annotations

import email
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from shared.errors import ConfigurationError

TOP: Final = Path(__file__).resolve().parents[2]
"""The checkout's top folder, where this is one."""
PACKAGES: Final = ("broker", "deploy", "edge_agent", "orchestrator", "shared")
_GLIBC: Final = (17, 24, 27, 28, 31, 34, 35, 36)
"""Minor versions of manylinux_2_x that Debian 12 (glibc 2.36) runs."""


@dataclass(frozen=True, slots=True)
class Target:
    """The Python (`3.11`) and machine (`x86_64`, `aarch64`) that wheels are for."""

    python: str
    machine: str

    @property
    def here(self) -> bool:
        """Whether this interpreter is such a one."""
        ours = f"{sys.version_info.major}.{sys.version_info.minor}"
        same = (self.python, self.machine) == (ours, platform.machine())
        return same and sys.platform == "linux"


def is_checkout() -> bool:
    """Whether we run from a checkout, whose code goes into the images; else it is the released package."""
    return (TOP / "pyproject.toml").is_file()


def source_digest() -> str:
    """What identifies our code: of a checkout's files, or of the release."""
    digest = hashlib.sha256()
    if not is_checkout():
        digest.update(version("amp4ec").encode())
        return digest.hexdigest()
    files = [TOP / "pyproject.toml", TOP / "amp4ec.py"]
    for package in PACKAGES:
        files += (
            path
            for path in (TOP / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        )
    for path in sorted(files):
        digest.update(f"{path.relative_to(TOP)}\0{path.stat().st_mode & 0o111}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def own_wheel(directory: Path) -> Path:
    """Put our own wheel into `directory`.

    Raises:
        ConfigurationError: pip cannot make or find it.
    """
    if is_checkout():
        # Where the builder is installed anyway, nothing is fetched for it.
        bare = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
        _pip(["wheel", "--no-deps", *bare, "--wheel-dir", str(directory), str(TOP)])
    else:
        _pip(["download", "--no-deps", "--dest", str(directory), f"amp4ec=={version('amp4ec')}"])
    (wheel,) = directory.glob("amp4ec-*.whl")
    return wheel


def dependencies(wheel: Path, extras: str, target: Target) -> Path:
    """A folder with wheels of everything that `wheel[extras]` needs, pip itself among them.

    Raises:
        ConfigurationError: pip finds no wheel of something, or no index.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amp4ec" / "wheels"
    asked = [target.python, target.machine, extras, *_requirements(wheel)]
    place = base / hashlib.sha256("\n".join(asked).encode()).hexdigest()[:16]
    if place.is_dir():
        return place
    base.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=base, prefix="collecting-"))
    try:
        where = ["--dest", str(fresh), "--only-binary", ":all:", *_foreign(target)]
        _pip(["download", *where, f"{wheel}[{extras}]", "pip"])
        (fresh / wheel.name).unlink()
        try:
            fresh.rename(place)
        except OSError:  # somebody else was quicker
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return place


def _requirements(wheel: Path) -> Sequence[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    return sorted(metadata.get_all("Requires-Dist") or [])


def _foreign(target: Target) -> list[str]:
    """What pip is told where the target is another interpreter than this one."""
    if target.here:
        return []
    platforms = [f"manylinux2014_{target.machine}"]
    platforms += [f"manylinux_2_{minor}_{target.machine}" for minor in _GLIBC]
    return [
        *("--implementation", "cp", "--python-version", target.python),
        *(word for name in platforms for word in ("--platform", name)),
    ]


def _pip(arguments: list[str]) -> None:
    line = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [text for text in done.stderr.splitlines() if text.startswith("ERROR")]
        raise ConfigurationError(
            f"wheels for the images cannot be collected (pip {arguments[0]})",
            expected="pip, and an index or a folder of wheels that it is configured for",
            got=" ".join(said) or done.stderr.strip()[-400:],
        )

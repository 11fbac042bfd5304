"""An environment of its own for each peer: made when it is first needed, below a folder of the user's cache.

Packages come by name and pinned version through pip, as this user has configured it. A folder is named after
what is in it, so another pin makes another environment and an unfinished one is never used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import Amp4ecError

_TAIL_LINES = 8


class EnvironmentMissingError(Amp4ecError):
    """An environment that pip could not fill; the message has the end of what it said."""


def default_cache() -> Path:
    """Where the environments lie: `$XDG_CACHE_HOME/amp4ec/peers`, by default below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "amp4ec" / "peers"


@dataclass(frozen=True, slots=True)
class Environment:
    """What a peer needs: `name NAME==VERSION ...`; without requirements it is the one that runs this."""

    name: str
    requirements: tuple[str, ...] = ()

    def directory(self, cache: Path) -> Path:
        """Its folder."""
        line = "\n".join(
            (*self.requirements, f"python {sys.version_info[0]}.{sys.version_info[1]}")
        )
        return cache / f"{self.name}-{hashlib.sha256(line.encode()).hexdigest()[:10]}"

    def python(self, cache: Path, say: Callable[[str], None]) -> Path:
        """Its interpreter; makes the environment when there is none yet, which takes minutes.

        Raises:
            EnvironmentMissingError: a package cannot be had.
        """
        if not self.requirements:
            return Path(sys.executable)
        directory = self.directory(cache)
        python = directory / "bin" / "python"
        done = directory / "complete"
        if not done.is_file():
            say(f"{self.name}: installing {', '.join(self.requirements)} below {cache}")
            shutil.rmtree(directory, ignore_errors=True)
            venv.create(directory, with_pip=True)
            _install(self.name, python, self.requirements)
            done.write_text("\n".join(self.requirements) + "\n")
        return python


def _install(name: str, python: Path, requirements: Sequence[str]) -> None:
    found = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *requirements],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode != 0:
        tail = "\n".join(f"    {line}" for line in found.stderr.splitlines()[-_TAIL_LINES:])
        raise EnvironmentMissingError(
            f"the environment of {name} cannot be made; the end of what pip said:\n{tail}\n"
            "leave this peer out with --case, or point pip at an index that has these packages",
            expected=", ".join(requirements),
            got=f"pip's exit status {found.returncode}",
        )

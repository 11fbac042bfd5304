"""Child processes: started with a log each, ended in order, and never left behind.

A child of ours asks the kernel to be terminated when its parent dies (`follow_parent`, called by the
command's entry). So not even SIGKILL of the parent leaves one.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.cgroup import CpuLimit
from deploy.log_lines import readable

PARENT = "AMP4EC_PARENT_PID"
_PR_SET_PDEATHSIG = 1
_TAIL_BYTES = 16 * 1024


def command(*arguments: str) -> list[str]:
    """The command line that runs `amp4ec` with these arguments under this very interpreter.

    `-P`: a folder `shared` or `deploy` where somebody happens to stand must not be taken for ours.
    """
    return [sys.executable, "-P", "-m", "deploy.cli", *arguments]


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: ours, `extra`, our process id, and the way to a checkout's code."""
    environment = {**os.environ, **(extra or {}), PARENT: str(os.getpid())}
    top = Path(__file__).resolve().parents[1]
    if (top / "pyproject.toml").is_file():
        paths = [str(top), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def follow_parent() -> None:
    """Be terminated when the process that started us (named in `AMP4EC_PARENT_PID`) dies.

    Does nothing in a process that nobody started that way, or where the kernel cannot do it.
    """
    parent = os.environ.pop(PARENT, "")
    if not parent or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


@dataclass(slots=True)
class Child:
    """A running child; `log` has what it wrote to standard output and error."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    limit: CpuLimit | None = None

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: Sequence[str],
        log: Path,
        *,
        limit: CpuLimit | None = None,
        environment: Mapping[str, str] | None = None,
        wrap: Sequence[str] = (),
    ) -> Child:
        """Start `amp4ec` with `arguments`, in a session of its own: Ctrl-C reaches the parent alone.

        The log goes on where an earlier child of that name ended. `wrap` is what the command line begins
        with: a program that becomes the one named after it, under the same process id.
        """
        line = [*wrap, *command(*arguments)]
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(limit.wrap(line) if limit else line),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=child_environment(environment),
                start_new_session=True,
            )
        return cls(name, process, log, limit)

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended, as far as was noticed."""
        return self.process.returncode is None

    async def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM, and SIGKILL when that is not obeyed in time; the exit status."""
        if self.alive:
            self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), timeout_s)
        except TimeoutError:
            return await self.kill()
        return await self.ended()

    async def kill(self) -> int:
        """SIGKILL; the exit status."""
        if self.alive:
            self.process.kill()
        return await self.ended()

    def freeze(self, *, frozen: bool) -> None:
        """SIGSTOP, or SIGCONT: alive for the kernel, dead for everybody else."""
        self.process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    async def ended(self) -> int:
        """Wait for its end, and take its cgroup away; the exit status, negative for a signal."""
        status = await self.process.wait()
        if self.limit is not None:
            await asyncio.to_thread(self.limit.remove)
        return status

    @property
    def limits(self) -> str:
        """What it is limited to, for people; empty where it is not."""
        return f"{self.limit.cpus:g} CPU" if self.limit else ""

    def why(self) -> str:
        """Nothing more than the exit status is known of a process's end."""
        return ""

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the log, indented."""
        return log_tail(self.log, lines)


def log_tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return "\n".join(f"    {readable(line)}" for line in text.splitlines()[-lines:])

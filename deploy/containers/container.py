"""A running container as a part of a cluster: its log followed into a file, its end told to the loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from docker.errors import DockerException
from docker.models.containers import Container as DockerContainer
from requests.exceptions import RequestException

from deploy.cgroup import PERIOD_US
from deploy.containers.engine import asking
from deploy.supervisor import log_tail

GONE: Final = 255
"""The exit status of a container whose end nobody saw: the engine went away, or somebody removed it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may use; None is no limit."""

    cpus: float | None = None
    memory_bytes: int | None = None

    def options(self) -> dict[str, Any]:
        """The same as the engine takes it, for a container that is made or changed."""
        options: dict[str, Any] = {}
        if self.cpus is not None:
            options |= {"cpu_period": PERIOD_US, "cpu_quota": round(self.cpus * PERIOD_US)}
        if self.memory_bytes is not None:
            # As much with swap as without: what swaps is not lost, and is of no use either.
            options |= {"mem_limit": self.memory_bytes, "memswap_limit": self.memory_bytes}
        return options

    def __str__(self) -> str:
        """For people."""
        cpus = "" if self.cpus is None else f"{self.cpus:g} CPU"
        memory = "" if self.memory_bytes is None else f"{self.memory_bytes / 2**20:g} MiB"
        return ", ".join(filter(None, (cpus, memory)))


class Container:
    """A container that runs, or ran. Made by `start`; what it writes goes to `log`, after what is there."""

    def __init__(self, name: str, container: DockerContainer, log: Path, limits: Limits) -> None:
        """Take over a container that was started; called in the event loop."""
        self.name = name
        self.log = log
        self._container = container
        self._limits = limits
        self._pid = int(container.attrs["State"]["Pid"])
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._why = ""
        threading.Thread(target=self._follow, name=f"container {name}", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its first process's id on the machine that the engine runs on."""
        return self._pid

    @property
    def id(self) -> str:
        """The engine's name for it."""
        return str(self._container.id)

    @property
    def alive(self) -> bool:
        """Whether it has not ended, as far as was noticed."""
        return not self._ended.done()

    @property
    def limits(self) -> str:
        """What it is limited to, for people; empty where it is not."""
        return str(self._limits)

    async def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM, and SIGKILL when that is not obeyed in time; the exit status."""
        if self.alive:
            await asyncio.to_thread(self._ask, "stop", timeout=round(timeout_s))
        return await self.ended()

    async def kill(self) -> int:
        """SIGKILL; the exit status."""
        if self.alive:
            await asyncio.to_thread(self._ask, "kill")
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        return await asyncio.shield(self._ended)

    def why(self) -> str:
        """That memory ran out, with the limit, where it did."""
        return self._why

    def freeze(self, *, frozen: bool) -> None:
        """Let it stand still, or go on."""
        self._ask("pause" if frozen else "unpause")

    def limit(self, limits: Limits) -> None:
        """Give it these limits; None leaves one as it is.

        Raises:
            EngineError: the engine or the kernel does not take them.
        """
        with asking(f"{self.name} cannot be limited to {limits}"):
            self._container.update(**limits.options())
        now = self._limits
        self._limits = Limits(
            limits.cpus if limits.cpus is not None else now.cpus,
            limits.memory_bytes if limits.memory_bytes is not None else now.memory_bytes,
        )

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the log, indented."""
        return log_tail(self.log, lines)

    def _ask(self, what: str, **options: Any) -> None:
        try:
            with asking(f"{self.name}: {what}"):
                getattr(self._container, what)(**options)
        except Exception:
            # It ended by itself a moment before, or is removed: what was asked for is done.
            if what not in ("stop", "kill") or not self._is_gone():
                raise

    def _is_gone(self) -> bool:
        try:
            self._container.reload()
        except (DockerException, RequestException):
            return True
        return not self._container.attrs["State"]["Running"]

    def _follow(self) -> None:
        """In a thread of its own, until the container ends: the engine's answers block."""
        status = GONE
        try:
            with self.log.open("ab", buffering=0) as log:
                for chunk in self._container.logs(stream=True, follow=True):
                    log.write(chunk)
            status = _status(int(self._container.wait(timeout=None)["StatusCode"]))
            self._container.reload()
            if self._container.attrs["State"]["OOMKilled"]:
                limit_bytes = self._container.attrs["HostConfig"]["Memory"]
                self._why = f"out of memory: its limit is {limit_bytes / 2**20:g} MiB"
        except (DockerException, RequestException) as error:
            self._why = f"not seen: {error}"
        with contextlib.suppress(RuntimeError):  # the event loop ended before
            self._loop.call_soon_threadsafe(self._ended.set_result, status)


def _status(code: int) -> int:
    """The engine says 128 and the signal's number, as shells do."""
    return 128 - code if code > 128 else code

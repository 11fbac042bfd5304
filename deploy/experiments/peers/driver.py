"""The parent's end of a driver: started, asked for a load, and ended with everything it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from deploy.cgroup import CpuLimit
from deploy.experiments.peers.drivers.lines import PARENT
from deploy.experiments.peers.outcome import Item
from deploy.supervisor import child_environment
from shared.codec import decode_json, encode_json
from shared.errors import Amp4ecError

START_S = 300.0
"""At 0.2 CPU importing torch alone takes 10 s, and AMP4EC's agents measure themselves the first time."""
_STOP_S = 20.0
_LINE_BYTES = 16 * 1024 * 1024
_PACKAGE = Path(__file__).resolve().parents[2]
"""`deploy`, of which an environment of its own sees nothing else of what is installed beside it."""


class DriverEndedError(Amp4ecError):
    """A driver that ended, or did not answer in time; the message has the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    """Any line of a driver."""

    event: str
    stages: list[int] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    items: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A load: by `window`, or where `rate_per_s` is given by the clock; see `drivers.lines.Load.run`."""

    seconds: float
    window: int = 1
    rate_per_s: float | None = None
    item_timeout_s: float = 30.0


class Driver:
    """A running driver. Use with `async with`; `load` may be asked for again and again."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self.stages: Sequence[int] = ()
        """The process of each stage, as of the last load's end; empty where it cannot be told."""
        self.facts: dict[str, Any] = {}
        self._log = log

    @classmethod
    async def start(
        cls,
        python: Path,
        module: str,
        *,
        files: Path,
        limits: Sequence[CpuLimit],
        options: Mapping[str, Any],
        environment: Mapping[str, str],
        log: Path,
    ) -> Self:
        """Run a driver of this package under `python`, and wait until it is ready.

        Args:
            python: the interpreter of its environment.
            module: the driver, as `python -m` takes it.
            files: the folder that `export` wrote.
            limits: the cgroups that its stages join; none for a driver that limits them itself.
            options: the driver's own.
            environment: further variables.
            log: gets what it and its children write to standard error.

        Raises:
            DriverEndedError: it ended, or was not ready in time.
        """
        setup = {
            "files": str(files),
            "cgroups": [str(limit.directory / "cgroup.procs") for limit in limits],
            "options": dict(options),
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                str(python), "-P", "-m", module, encode_json(setup).decode(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={
                    **_environment(python, log.parent),
                    "OMP_NUM_THREADS": "1",  # by the quota, not by the machine's cores
                    **environment,
                    PARENT: str(os.getpid()),
                },
                limit=_LINE_BYTES,
                start_new_session=True,
            )  # fmt: skip
        driver = cls(module.rpartition(".")[2], process, log)
        try:
            ready = await driver._event(START_S)
        except BaseException:
            await driver.stop()
            raise
        driver.stages, driver.facts = ready.stages, ready.facts
        return driver

    @property
    def pid(self) -> int:
        """Its process; the system's are below it."""
        return self.process.pid

    async def load(self, ask: Ask) -> Loading:
        """Begin a load."""
        self._write(ask)
        return Loading(self, ask)

    async def stop(self) -> None:
        """Close its input, and kill what that does not end, with all that it started."""
        below = _below(self.process.pid)
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), _STOP_S)
        except TimeoutError:
            below += _below(self.process.pid)
            self.process.kill()
            await self.process.wait()
        for left in below:
            with contextlib.suppress(psutil.Error):
                left.kill()
        await asyncio.to_thread(psutil.wait_procs, below, _STOP_S)

    async def __aenter__(self) -> Self:
        """Itself, already started."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it."""
        await self.stop()

    def _write(self, value: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(encode_json(value) + b"\n")

    async def _event(self, timeout_s: float) -> _Event:
        assert self.process.stdout is not None
        try:
            line = await asyncio.wait_for(self.process.stdout.readline(), timeout_s)
        except TimeoutError:
            raise self._ended(f"said nothing for {timeout_s:g} s") from None
        if not line:
            raise self._ended(f"ended with status {await self.process.wait()}")
        return decode_json(line, _Event)

    def _ended(self, what: str) -> DriverEndedError:
        tail = self._log.read_text(errors="replace").splitlines()[-15:]
        text = "\n".join(f"    {line}" for line in tail)
        return DriverEndedError(f"{self.name} {what}; the end of {self._log}:\n{text}")


class Loading:
    """A load under way; `items` grows with `advance` until `over`."""

    def __init__(self, driver: Driver, ask: Ask) -> None:
        self.began = time.monotonic()
        self.items: list[Item] = []
        self.over = False
        self._driver = driver
        self._limit_s = ask.seconds + ask.item_timeout_s + _STOP_S
        self._told = False

    async def advance(self) -> None:
        """Take in the next report: a quarter of a second, and more where nothing ends.

        Raises:
            DriverEndedError: it ended instead.
        """
        event = await self._driver._event(self._limit_s)  # noqa: SLF001 - the two are one conversation
        match event.event:
            case "items":
                self.items += (Item(*fate) for fate in event.items)
            case "sent":
                self.enough()
            case _:
                self.over = True
                self._driver.stages, self._driver.facts = event.stages, event.facts

    async def finish(self) -> Sequence[Item]:
        """All items, when the last has ended."""
        while not self.over:
            await self.advance()
        return self.items

    def enough(self) -> None:
        """Send no more; what is under way still ends."""
        if not self._told:
            self._told = True
            self._driver._write({})  # noqa: SLF001


def _environment(python: Path, folder: Path) -> dict[str, str]:
    """Variables with which `python` finds the drivers, and a foreign one no other package of ours."""
    if python == Path(sys.executable):
        return child_environment()
    code = folder / "code"
    code.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (code / _PACKAGE.name).symlink_to(_PACKAGE, target_is_directory=True)
    return {**os.environ, "PYTHONPATH": str(code)}


def _below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []

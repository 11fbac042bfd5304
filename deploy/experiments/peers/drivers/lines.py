"""The driver's end of the pipe: a JSON line each way, and the load that every system gets alike.

A driver starts its system, says `ready`, and answers each `load` with the fate of every item. The load is
made here, by the same code for all of them, so that one system's client is not another's handicap. All times
are of the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float32]
Infer: TypeAlias = Callable[[Array], Awaitable[Array]]

PARENT = "PEERS_PARENT_PID"
"""The variable that names the process which a driver, or a child of it, is not to outlive."""
TOLERANCE = 1e-4
"""A larger difference, relative to the largest output, is a wrong answer. Fused kernels stay near 1e-6."""
WARM_UP_ROUNDS = 3
_REPORT_S = 0.25
_STAGES_S = 10.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Started:
    """A running system: how it is asked, and what its parent must know of it.

    `stages` tells the process of each stage, in order, as it is when it is asked; `facts` goes into the
    record as it stands.
    """

    infer: Infer
    stages: Callable[[], Awaitable[Sequence[int]]]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a driver is told on its command line.

    `cgroups` has a `cgroup.procs` file for each stage, or nothing where nothing is limited; `options` are the
    driver's own.
    """

    files: Path
    cgroups: tuple[str, ...]
    options: dict[str, Any]

    def stage_file(self, index: int) -> Path:
        """The module of a stage, as `export` wrote it."""
        return self.files / f"stage-{index}.pt"

    def join(self, index: int) -> None:
        """Move this process into the cgroup of a stage, before it imports what takes time to import."""
        if self.cgroups:
            Path(self.cgroups[index]).write_text(str(os.getpid()))

    @classmethod
    def parse(cls, text: str) -> Setup:
        """From the command line."""
        given = json.loads(text)
        return cls(Path(given["files"]), tuple(given["cgroups"]), given["options"])


def same(pids: Sequence[int]) -> Callable[[], Awaitable[Sequence[int]]]:
    """For systems whose stages have one process for life."""

    async def stages() -> Sequence[int]:
        return pids

    return stages


Start: TypeAlias = Callable[[Setup], AbstractAsyncContextManager[Started]]


def follow(parent: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Get the signal `how` when process `parent`, which started us, ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), how)


def drive(start: Start) -> None:
    """A driver's whole life: `python -m DRIVER SETUP`, where SETUP is a JSON object.

    Standard output carries the lines; what libraries print goes to standard error.
    """
    follow(int(os.environ[PARENT]), signal.SIGTERM)
    lines = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def say(**event: Any) -> None:
        lines.write(json.dumps(event) + "\n")

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_serve(start, Setup.parse(sys.argv[1]), say))


Say: TypeAlias = Callable[..., None]


async def _serve(start: Start, setup: Setup, say: Say) -> None:
    task = asyncio.current_task()
    assert task is not None
    # The system is taken down also when the parent was killed: some daemons would go on without us.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    samples = Samples.read(setup.files)
    async with start(setup) as system:
        for _ in range(WARM_UP_ROUNDS):
            answers = await asyncio.gather(*map(system.infer, samples.inputs))
            if any(samples.judge(at, answer) != "ok" for at, answer in enumerate(answers)):
                raise SystemExit("the system answers wrong before anything was measured")
        say(event="ready", stages=list(await system.stages()), facts=system.facts)
        while line := await reader.readline():
            request = json.loads(line)
            enough = asyncio.Event()
            # The one line that may come while the load runs says that it is enough.
            async with _listening(reader, enough):
                load = Load(system.infer, samples, say, enough)
                await load.run(**request)
            say(event="done", stages=await _stages(system), facts=system.facts)


async def _stages(system: Started) -> list[int]:
    """The processes of the stages now; none where the system can no longer say."""
    try:
        return list(await asyncio.wait_for(system.stages(), _STAGES_S))
    except Exception:  # noqa: BLE001 - a broken peer may raise anything, and that is not what was asked
        return []


@asynccontextmanager
async def _listening(reader: asyncio.StreamReader, enough: asyncio.Event) -> AsyncIterator[None]:
    async def listen() -> None:
        await reader.readline()
        enough.set()

    task = asyncio.create_task(listen(), name="enough")
    try:
        yield
        # The parent always says it, at the latest when it has been told of the last item.
        await task
    finally:
        task.cancel()


@dataclass(frozen=True, slots=True)
class Samples:
    """The inputs, [1, 3, 224, 224] each, and the original model's answers to them."""

    inputs: Sequence[Array]
    answers: Sequence[Array]

    @classmethod
    def read(cls, files: Path) -> Samples:
        """From the two files that `export` wrote."""
        return cls(
            [np.ascontiguousarray(one[None]) for one in np.load(files / "inputs.npy")],
            list(np.load(files / "answers.npy")),
        )

    def judge(self, index: int, answer: Array) -> str:
        """`ok` when it is the original model's answer to input `index`, else `wrong`."""
        expected = self.answers[index]
        if answer.size != expected.size:
            return "wrong"
        error = np.abs(np.asarray(answer).reshape(-1) - expected.reshape(-1)).max()
        return "ok" if error <= TOLERANCE * np.abs(expected).max() else "wrong"


class Load:
    """Items by a window or by a clock; each ends as `ok`, `wrong`, `lost` or `error: why`."""

    def __init__(self, infer: Infer, samples: Samples, say: Say, enough: asyncio.Event) -> None:
        self._infer = infer
        self._samples = samples
        self._say = say
        self._enough = enough
        self._fates: list[tuple[float, float, str]] = []
        self._sent = 0

    async def run(
        self, *, seconds: float, window: int, rate_per_s: float | None, item_timeout_s: float
    ) -> None:
        """Ask for `seconds` or until it is enough, then wait for what is under way.

        Args:
            seconds: at most so long.
            window: items kept under way; without meaning where a rate is given.
            rate_per_s: items are sent at this rate whatever became of those before; None for a window.
            item_timeout_s: what has no answer by then counts as lost.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        reporting = asyncio.create_task(self._report(), name="report")
        try:
            async with asyncio.TaskGroup() as group:
                if rate_per_s is None:
                    for _ in range(window):
                        group.create_task(self._lane(end, item_timeout_s))
                else:
                    due = loop.time()
                    while not self._over(end):
                        group.create_task(self._item(item_timeout_s))
                        due += 1.0 / rate_per_s
                        await asyncio.sleep(max(0.0, due - loop.time()))
        finally:
            reporting.cancel()
        self._tell()
        self._say(event="sent", items=self._sent)

    def _over(self, end: float) -> bool:
        return self._enough.is_set() or asyncio.get_running_loop().time() >= end

    async def _lane(self, end: float, item_timeout_s: float) -> None:
        while not self._over(end):
            if (await self._item(item_timeout_s)).startswith("error"):
                await asyncio.sleep(0.05)  # a broken system refuses at once: no busy loop

    async def _item(self, item_timeout_s: float) -> str:
        index = self._sent % len(self._samples.inputs)
        self._sent += 1
        sent_at = time.monotonic()
        try:
            answer = await asyncio.wait_for(
                self._infer(self._samples.inputs[index]), item_timeout_s
            )
        except TimeoutError:
            fate = "lost"
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is the item's fate
            fate = f"error: {type(error).__name__}: {error}"[:200]
        else:
            fate = self._samples.judge(index, answer)
        self._fates.append((sent_at, time.monotonic(), fate))
        return fate

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            self._tell()

    def _tell(self) -> None:
        # Also with nothing to tell: the parent goes by these lines.
        fates, self._fates = self._fates, []
        self._say(event="items", items=fates)

"""`torch.distributed.pipelining` on gloo: a rank for each stage, and one that asks and is answered.

Stages given by hand (`PipelineStage`), `ScheduleGPipe.eval`, whose micro-batches are one image each. Option
`microbatches`: images in a step of the schedule. Each step has its cost, and one that is larger than what is
there is filled up; which is better is measured. The first stage asks for its next image before it computes,
as overlapping needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import torch
import torch.distributed as dist

from deploy.experiments.peers.drivers.gloo_rank import IMAGE, join
from deploy.experiments.peers.drivers.lines import PARENT, Array, Setup, Started, drive, same

_STEP_S = 0.005
"""How long a step that is not full waits for another image."""
_END = None
_RANK = f"{__package__}.gloo_rank"


class Asker:
    """The rank beside the stages: images go to the first, answers come from the last, in the same order."""

    def __init__(self, stages: int, microbatches: int, outputs: int) -> None:
        self._stages = stages
        self._microbatches = microbatches
        self._outputs = outputs
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[tuple[Array, asyncio.Future[Array]] | None]
        self._waiting = queue.SimpleQueue()
        self._under_way: queue.SimpleQueue[list[asyncio.Future[Array]]] = queue.SimpleQueue()
        self._broken: Exception | None = None
        for work in (self._send, self._receive):
            threading.Thread(target=work, daemon=True).start()

    async def infer(self, image: Array) -> Array:
        """One image's answer.

        Raises:
            ConnectionError: a rank is gone, and with it the whole group.
        """
        if self._broken is not None:
            raise ConnectionError(f"the process group is broken: {self._broken}")
        future: asyncio.Future[Array] = self._loop.create_future()
        self._waiting.put((image, future))
        return await future

    def close(self) -> None:
        """Send no more."""
        self._waiting.put(_END)

    def _send(self) -> None:
        while True:
            items = self._step()
            if not items:
                return
            self._under_way.put([future for _, future in items])
            images = np.concatenate([image for image, _ in items])
            if (
                len(items) < self._microbatches
            ):  # a step has one size: the rest is computed for nothing
                images = np.resize(images, (self._microbatches, *IMAGE))
            try:
                dist.send(torch.from_numpy(images), dst=0)
            except RuntimeError as error:
                self._fail(error)
                return

    def _step(self) -> list[tuple[Array, asyncio.Future[Array]]]:
        """What goes into the schedule's next step, at most `microbatches`; nothing at the end."""
        items = []
        item = self._waiting.get()
        with contextlib.suppress(queue.Empty):
            while item is not _END:
                items.append(item)
                if len(items) == self._microbatches:
                    break
                item = self._waiting.get(timeout=_STEP_S)
        return items

    def _receive(self) -> None:
        answers = torch.empty((self._microbatches, self._outputs))
        try:
            while True:
                dist.recv(answers, src=self._stages - 1)
                futures = self._under_way.get()
                for future, answer in zip(futures, answers.numpy().copy(), strict=False):
                    self._loop.call_soon_threadsafe(_answer, future, answer)
        except RuntimeError as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._broken = error
        while not self._under_way.empty():
            for future in self._under_way.get():
                self._loop.call_soon_threadsafe(_refuse, future, error)


def _answer(future: asyncio.Future[Array], answer: Array) -> None:
    if not future.done():
        future.set_result(answer)


def _refuse(future: asyncio.Future[Array], error: Exception) -> None:
    if not future.done():
        future.set_exception(ConnectionError(str(error)))


@asynccontextmanager
async def start(setup: Setup) -> AsyncIterator[Started]:
    """See the module."""
    stages = int(setup.options["stages"])
    outputs = int(np.load(setup.files / "answers.npy", mmap_mode="r").shape[-1])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", _RANK, sys.argv[1], str(port), str(index),
            stdin=asyncio.subprocess.DEVNULL,
            env={**os.environ, PARENT: str(os.getpid())},
        )
        for index in range(stages)
    ]  # fmt: skip
    try:
        await asyncio.to_thread(join, port, stages, stages)
        asker = Asker(stages, int(setup.options["microbatches"]), outputs)
        yield Started(asker.infer, same([rank.pid for rank in ranks]), {"torch": torch.__version__})
        asker.close()
    finally:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                rank.kill()
            await rank.wait()


if __name__ == "__main__":
    drive(start)

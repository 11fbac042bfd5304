"""One process alone: the whole model behind a pipe, with the CPU that the stages of the others share."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection

import numpy as np

from deploy.experiments.peers.drivers.lines import Array, Setup, Started, drive, follow, same


def serve(setup: Setup, parent: int, pipe: Connection) -> None:
    """The process: an image's bytes in, the answer's bytes out."""
    follow(parent)
    setup.join(0)
    import torch

    torch.set_num_threads(1)
    module = torch.load(setup.files / "whole.pt", weights_only=False)
    with torch.inference_mode():
        while data := pipe.recv_bytes():
            image = torch.frombuffer(bytearray(data), dtype=torch.float32).view(1, 3, 224, 224)
            answer = module(image.contiguous(memory_format=torch.channels_last))
            pipe.send_bytes(answer.numpy().tobytes())


@asynccontextmanager
async def start(setup: Setup) -> AsyncIterator[Started]:
    """See the module."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(setup, os.getpid(), there), daemon=True)
    process.start()
    there.close()
    # One thread: the process takes one image after the other, and the rest waits here.
    executor = ThreadPoolExecutor(1)

    def ask(image: Array) -> Array:
        here.send_bytes(image.tobytes())
        return np.frombuffer(here.recv_bytes(), dtype=np.float32)

    async def infer(image: Array) -> Array:
        return await asyncio.get_running_loop().run_in_executor(executor, ask, image)

    assert process.pid is not None
    try:
        yield Started(infer, same([process.pid]), {"torch": version("torch")})
    finally:
        process.kill()
        executor.shutdown(cancel_futures=True)


if __name__ == "__main__":
    drive(start)

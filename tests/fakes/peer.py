"""A peer that answers from memory, for tests of the two ends of a driver's pipe: `--options` says how."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np

from deploy.experiments.peers.drivers.lines import Array, Setup, Started, drive, same


@asynccontextmanager
async def start(setup: Setup) -> AsyncIterator[Started]:
    """Right answers; `bad` after `good` items: wrong, refused, never, or the process ends."""
    inputs, answers = np.load(setup.files / "inputs.npy"), np.load(setup.files / "answers.npy")
    kept = {one.tobytes(): answer for one, answer in zip(inputs, answers, strict=True)}
    good, bad = int(setup.options["good"]), str(setup.options["bad"])
    asked = 0

    async def infer(image: Array) -> Array:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        answer: Array = kept[image[0].tobytes()]
        if asked <= good:
            return answer
        match bad:
            case "wrong":
                return answer * 1.01
            case "refused":
                raise ConnectionError("gone")
            case "never":
                await asyncio.Event().wait()
            case "end":
                sys.exit(7)
        return answer

    sys.stdout.write("libraries print what they like\n")
    # What a stage would be: it outlives a driver that does not end it.
    stage = await asyncio.create_subprocess_exec("sleep", "600", stdin=subprocess.DEVNULL)
    try:
        yield Started(infer, same([stage.pid]), {"kind": "fake"})
    finally:
        if setup.options["tidy"]:
            stage.kill()
            await stage.wait()


if __name__ == "__main__":
    drive(start)

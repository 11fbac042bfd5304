"""Ray: an actor for each stage, and object references from one to the next.

An answer's reference is made before it is computed, so the stages fetch from each other and the asker holds
no tensor in between. `max_restarts` and `max_task_retries` without a limit, as Ray's guide to fault tolerance
has it for actors that keep no state. (Ray's compiled graph was tried: with 2.60 and several images under way
from asyncio it came to a stop before the first answers.)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ray

from deploy.experiments.peers.drivers.lines import Array, Setup, Started, drive
from deploy.experiments.peers.drivers.ray_node import ray_node


class StageActor:
    """A stage in a process of Ray's."""

    def __init__(self, setup: Setup, index: int) -> None:
        setup.join(index)
        from deploy.experiments.peers.drivers.stage import ArrayStage

        self._stage = ArrayStage(setup, index)

    def pid(self) -> int:
        """Its process; the answer also says that the stage is loaded."""
        return os.getpid()

    def run(self, arrays: Any) -> Any:
        """The stage's outputs; the last one's answer alone."""
        return self._stage.run(arrays if isinstance(arrays, tuple) else (arrays,))


@asynccontextmanager
async def start(setup: Setup) -> AsyncIterator[Started]:
    """See the module."""
    with ray_node(setup):
        kind = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(StageActor)
        actors: list[Any] = [
            kind.remote(setup, index) for index in range(int(setup.options["stages"]))
        ]

        async def pids() -> list[int]:
            return list(await asyncio.gather(*(actor.pid.remote() for actor in actors)))

        await pids()  # they are loaded

        async def infer(image: Array) -> Array:
            # An image of its own in the object store, as each new one would be.
            last = ray.put(image)
            for actor in actors:
                last = actor.run.remote(last)
            (answer,) = await last
            return answer

        yield Started(infer, pids, {"ray": ray.__version__})


if __name__ == "__main__":
    drive(start)

"""Ray: an actor for each stage, and object references from one to the next.

An answer's reference is made before it is computed, so the stages fetch from each other and the asker holds
no tensor in between. `max_restarts` and `max_task_retries` without a limit, as Ray's guide to fault tolerance
has it for actors that keep no state. Option `mode`: `actors`, or `compiled`, which is Ray's compiled graph:
the same actors on channels that are made once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ray
from ray.dag import InputNode

from deploy.experiments.peers.drivers.lines import Array, Setup, Started, drive, same
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

        first = await pids()  # they are loaded
        facts = {"ray": ray.__version__, "mode": setup.options["mode"]}
        if setup.options["mode"] == "compiled":
            with InputNode() as image:
                last = image
                for actor in actors:
                    last = actor.run.bind(last)
            graph = last.experimental_compile(
                enable_asyncio=True, _max_inflight_executions=int(setup.options["window"])
            )
            try:
                # Its actors do nothing but run it: they answer no other question, and none is restarted.
                yield Started(_compiled(graph), same(first), facts)
            finally:
                await asyncio.to_thread(graph.teardown)
        else:
            yield Started(_chained(actors), pids, facts)


def _chained(actors: list[Any]) -> Any:
    async def infer(image: Array) -> Array:
        # An image of its own in the object store, as each new one would be.
        last = ray.put(image)
        for actor in actors:
            last = actor.run.remote(last)
        (answer,) = await last
        return answer

    return infer


def _compiled(graph: Any) -> Any:
    async def infer(image: Array) -> Array:
        future = await graph.execute_async(image)
        (answer,) = await future
        return answer

    return infer


if __name__ == "__main__":
    drive(start)

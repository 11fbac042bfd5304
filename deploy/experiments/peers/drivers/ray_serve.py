"""Ray Serve: a deployment for each stage, composed by handing one's response to the next.

Handles from the asker straight to the stages, no HTTP proxy, `RAY_SERVE_THROUGHPUT_OPTIMIZED` set by who
starts this, as Serve's guide to performance has it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ray
from ray import serve

from deploy.experiments.peers.drivers.lines import Array, Setup, Started, drive
from deploy.experiments.peers.drivers.ray_node import ray_node


class StageDeployment:
    """A stage in a replica of Serve's."""

    def __init__(self, setup: Setup, index: int) -> None:
        setup.join(index)
        from deploy.experiments.peers.drivers.stage import ArrayStage

        self._stage = ArrayStage(setup, index)

    def pid(self) -> int:
        """Its process."""
        return os.getpid()

    def __call__(self, arrays: Any) -> Any:
        """The stage's outputs."""
        return self._stage.run(arrays if isinstance(arrays, tuple) else (arrays,))


@asynccontextmanager
async def start(setup: Setup) -> AsyncIterator[Started]:
    """See the module."""
    stages = range(int(setup.options["stages"]))
    with ray_node(setup):
        serve.start(proxy_location="Disabled")
        kind = serve.deployment(
            num_replicas=1,
            max_ongoing_requests=int(setup.options["window"]),
            ray_actor_options={"num_cpus": 0},
        )(StageDeployment)
        handles: list[Any] = []
        for index in stages:
            app = kind.bind(setup, index)
            handles.append(serve.run(app, name=f"stage-{index}", route_prefix=None))

        async def pids() -> list[int]:
            return [await handle.pid.remote() for handle in handles]

        async def infer(image: Array) -> Array:
            last: Any = image
            for handle in handles:
                last = handle.remote(last)
            (answer,) = await last
            return answer

        try:
            yield Started(infer, pids, {"ray": ray.__version__})
        finally:
            await serve.shutdown_async()


if __name__ == "__main__":
    drive(start)

"""AMP4EC itself, by the same rules as its peers: the same load, cgroups, inputs and judge.

Options: `directory` (kept between rounds, so that agents are calibrated once), `shares` (CPU of each agent),
`runtime`, and `model`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from deploy.experiments.peers.drivers.lines import Array, Setup, Started, drive
from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from shared.client import ClusterStatus

_START_S = 300.0


@asynccontextmanager
async def start(setup: Setup) -> AsyncIterator[Started]:
    """See the module."""
    model, shares = str(setup.options["model"]), list(setup.options["shares"])
    cluster = LocalCluster(
        Path(setup.options["directory"]), agents=len(shares), cpus=shares, log_level="warning"
    )
    flags = ServeFlags(
        weights=str(setup.files / "weights.safetensors"),
        min_stages=len(shares),
        max_stages=len(shares),
        runtime=str(setup.options["runtime"]),
        timeout_s=_START_S,
    )
    async with cluster:
        await cluster.wait_for_nodes(timeout_s=_START_S)
        await cluster.wait_for("calibrations", _calibrated, _START_S)
        await cluster.serve(model, flags)
        facts: dict[str, Any] = {}
        cpus = dict(zip(cluster.agents, shares, strict=True))
        async with cluster.client() as client:

            async def infer(image: Array) -> Array:
                result = await client.infer(model, image, tensors=True)
                (output,) = (result.tensors or {}).values()
                return output.astype("float32", copy=False)

            async def stages() -> list[int]:
                rows = (await cluster.wait_for_model(model)).pipelines[0].stages
                # Measured stage times may have moved them since.
                facts["cuts"] = [row.blocks[0] for row in rows[1:]]
                facts["shares"] = [cpus[row.node] for row in rows]
                return [cluster.agents[row.node].pid for row in rows]

            yield Started(infer, stages, facts)


def _calibrated(status: ClusterStatus) -> bool:
    return all(node.state.calibration for node in status.online)


if __name__ == "__main__":
    drive(start)

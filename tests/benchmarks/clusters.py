"""Clusters to measure: started, calibrated, and serving."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from shared.client import ClusterStatus
from tests.benchmarks.context import Context

MODEL = "mobilenet_v2"
SHARES = (0.5, 0.3, 0.2)
# What whole models are measured with, too.
RUNTIME = "torch"
THREE_STAGES = ServeFlags(
    weights="none", min_stages=3, max_stages=3, runtime=RUNTIME, timeout_s=300.0
)
CHOSEN_FREELY = ServeFlags(weights="none", runtime=RUNTIME, timeout_s=300.0)
_CALIBRATION_S = 180.0
"""At 0.2 CPU importing torch alone takes 10 s, and three agents do it at once."""


@asynccontextmanager
async def calibrated(
    context: Context,
    name: str,
    *,
    cpus: Sequence[float] | None = SHARES,
    agents: int = len(SHARES),
    agent_arguments: Sequence[str] = (),
    orchestrator_arguments: Sequence[str] = (),
    kind: type[LocalCluster] = LocalCluster,
    isolated: bool = False,
) -> AsyncIterator[LocalCluster]:
    """A cluster whose agents have measured themselves, so that nothing does so during a measurement.

    Args:
        context: of the run.
        name: of its directory.
        cpus: each agent's share; None for equal parts of the machine.
        agents: how many.
        agent_arguments: further flags of `amp4ec agent`.
        orchestrator_arguments: further flags of `amp4ec orchestrator`.
        kind: of cluster.
        isolated: each node in a network of its own.
    """
    cluster = kind(
        context.directory / name,
        agents=agents,
        cpus=cpus,
        agent_arguments=agent_arguments,
        orchestrator_arguments=orchestrator_arguments,
        isolated=isolated,
    )
    context.say(f"{name}: starting broker, orchestrator and {agents} agents")
    async with cluster:
        await cluster.wait_for_nodes()
        await cluster.wait_for("calibrations", _all_calibrated, _CALIBRATION_S)
        yield cluster


def _all_calibrated(status: ClusterStatus) -> bool:
    return all(node.state.calibration for node in status.online)


async def serve(context: Context, cluster: LocalCluster, flags: ServeFlags) -> None:
    """Have MobileNetV2 served.

    Raises:
        ChildEndedError: it was not; says why.
    """
    await cluster.serve(MODEL, flags, on_line=lambda line: context.say(f"  {line}"))

"""One model over two brokers: a stage on each, a client at the branch, a cut between them and its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from amp4ec import Client
from broker.bridge import Bridge
from broker.config import BrokerConfig
from broker.launcher import Broker
from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from deploy.supervisor import Child
from orchestrator.models.source import InputShape
from shared.bus import BrokerUrl
from shared.client import ClusterStatus
from tests.cluster.conftest import ROOT
from tests.fakes.delay import DelayRelay

pytestmark = pytest.mark.timeout(300)
MODEL = "encoder"
FLAGS = ServeFlags(
    input_shapes=tuple(InputShape.parse(f"{name}:1x12:int64") for name in ("ids", "mask")),
    min_stages=2,
    max_stages=2,
    timeout_s=110,
)
TOKENS = {"ids": np.arange(12)[None], "mask": np.ones((1, 12), np.int64)}


async def status_when(
    client: Client, condition: str, deadline_s: float, nodes: set[str]
) -> ClusterStatus:
    """Wait until the model runs on exactly `nodes`."""
    async with asyncio.timeout(deadline_s):
        while True:
            status = await client.status()
            model = status.model(MODEL)
            if model is not None and model.state == "serving":
                used = {row.node for pipeline in model.pipelines for row in pipeline.stages}
                if used == nodes:
                    return status
            await asyncio.sleep(0.2)
    raise AssertionError(condition)


@contextlib.asynccontextmanager
async def two_sites(directory: Path) -> AsyncIterator[tuple[LocalCluster, Broker, DelayRelay]]:
    """A cluster with one agent, and a branch with another, `agent-2`."""
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(LocalCluster(directory / "main", agents=1))
        wire = await stack.enter_async_context(DelayRelay("127.0.0.1", cluster.broker.port))
        bridge = Bridge(remote=BrokerUrl.parse(f"127.0.0.1:{wire.port}"), root=ROOT, name="barn")
        branch = await stack.enter_async_context(
            Broker(directory=directory / "branch", config=BrokerConfig(bridge=bridge))
        )
        agent = await Child.start(
            "agent-2",
            ("agent", "--broker", branch.url, "--name", "agent-2", "--cpus", "1",
             "--cache-dir", str(directory / "cache-2")),
            directory / "agent-2.log",
        )  # fmt: skip
        stack.push_async_callback(agent.stop)
        yield cluster, branch, wire


async def test_a_pipeline_crosses_the_bridge_and_outlives_a_cut(tmp_path: Path) -> None:
    async with (
        two_sites(tmp_path) as (cluster, branch, wire),
        cluster.client() as at_main,
        Client(branch.url) as at_branch,
    ):
        await cluster.wait_for_nodes(2)
        await cluster.serve("tests.fakes.nets:encoder", FLAGS)
        for client in (at_main, at_branch):
            result = await client.infer(MODEL, TOKENS)
            assert set(result.nodes) == {"agent-1", "agent-2"}
            assert result.exact
        before = await at_branch.infer(MODEL, TOKENS, tensors=True)

        wire.cut()
        # Nobody announces it: the branch's node falls silent, and the model runs without it.
        await status_when(at_main, "served by one", 120, {"agent-1"})
        assert set((await at_main.infer(MODEL, TOKENS)).nodes) == {"agent-1"}
        # A job of the branch waits there, and is answered when the bridge stands again.
        waiting = asyncio.create_task(at_branch.infer(MODEL, TOKENS, tensors=True, timeout_s=150))
        await asyncio.wait((waiting,), timeout=1.0)
        assert not waiting.done()
        wire.heal()
        answer = await waiting
        assert answer.tensors is not None
        assert before.tensors is not None
        for name, want in before.tensors.items():
            assert np.abs(answer.tensors[name] - want).max() <= 1e-5 * np.abs(want).max()
        await status_when(at_main, "served by both again", 120, {"agent-1", "agent-2"})
        assert set((await at_branch.infer(MODEL, TOKENS)).nodes) == {"agent-1", "agent-2"}

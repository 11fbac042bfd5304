"""A node is drained before it is switched off, by command, while jobs flow; and comes back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from deploy.local import LocalCluster
from deploy.supervisor import child_environment, command
from tests.cluster.conftest import JPEG, MODEL, RawClient
from tests.cluster.test_losses import answered_once, stream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


async def amp4ec(cluster: LocalCluster, *arguments: str) -> tuple[int, str, str]:
    """The command as people run it: its code, and what it said."""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments, "--broker", cluster.broker.url),
        env=child_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def used(cluster: LocalCluster) -> set[str]:
    state = await cluster.wait_for_model(MODEL)
    return {stage.node for pipeline in state.pipelines for stage in pipeline.stages}


async def shown(cluster: LocalCluster, node: str) -> dict[str, Any]:
    code, out, err = await amp4ec(cluster, "status", "--json")
    assert code == 0, err
    (row,) = [row for row in json.loads(out)["nodes"] if row["state"]["node"] == node]
    assert isinstance(row, dict)
    return row


async def test_a_node_is_drained_under_load_and_used_again(
    cluster: LocalCluster, raw: RawClient
) -> None:
    await cluster.wait_for_nodes(3)
    node = min(await used(cluster))
    streaming = asyncio.create_task(stream(raw, cluster))
    await asyncio.to_thread(raw.wait, lambda: len(raw.answers) >= 5)
    code, out, err = await amp4ec(cluster, "drain", node, "--reason", "new fan")
    assert (code, out) == (0, f"{node} holds nothing any more, and may be switched off\n"), err
    assert node not in await used(cluster)
    await answered_once(raw, cluster, await streaming)
    row = await shown(cluster, node)
    assert row["cordon"]["drain"] is True
    assert row["cordon"]["reason"] == "new fan"
    assert row["telemetry"]["stages"] == []
    await cluster.restart_orchestrator()
    await cluster.wait_for_model(MODEL)
    assert node not in await used(cluster)
    assert (await amp4ec(cluster, "uncordon", node))[0] == 0
    assert (await shown(cluster, node))["cordon"] is None


async def test_what_cannot_be_drained_is_said(cluster: LocalCluster, raw: RawClient) -> None:
    await cluster.wait_for_nodes(3)
    for node in sorted(cluster.agents)[1:]:
        assert (await amp4ec(cluster, "drain", node))[0] == 0
    last = min(cluster.agents)
    code, _, err = await amp4ec(cluster, "drain", last, "--timeout", "1s")
    assert code == 1
    assert f"{MODEL} still runs on {last}" in err
    assert (await asyncio.to_thread(raw.ask, JPEG))["status"] == "ok"
    for node in sorted(cluster.agents):
        assert (await amp4ec(cluster, "uncordon", node))[0] == 0
    code, _, err = await amp4ec(cluster, "drain", "nobody")
    assert code == 1
    assert f"there is no node 'nobody'; there are: {', '.join(sorted(cluster.agents))}" in err

"""`amp4ec plan --live`: the planner asked about a cluster that runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from deploy.local import LocalCluster
from deploy.supervisor import child_environment, command
from tests.cluster.conftest import MODEL

pytestmark = pytest.mark.asyncio(loop_scope="module")

FACTORY = """
import torch


def net():
    return torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
"""


async def plan(
    cluster: LocalCluster, *arguments: str, cwd: Path | None = None
) -> tuple[int, str, str]:
    line = command("plan", *arguments, "--live", "--broker", cluster.broker.url)
    process = await asyncio.create_subprocess_exec(
        *line,
        cwd=cwd,
        env=child_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def document(
    cluster: LocalCluster, *arguments: str, cwd: Path | None = None
) -> dict[str, Any]:
    status, out, err = await plan(cluster, *arguments, "--json", cwd=cwd)
    assert status == 0, err
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def stages(found: dict[str, Any]) -> list[list[tuple[str, list[int]]]]:
    return [[(s["node"], s["blocks"]) for s in p["stages"]] for p in found["pipelines"]]


async def test_a_served_model(cluster: LocalCluster) -> None:
    free = await document(cluster, MODEL, "--explain")
    for pipeline in stages(free):
        assert [blocks[0] for _, blocks in pipeline] == [0, *(b[1] for _, b in pipeline[:-1])]
        assert {node for node, _ in pipeline} <= set(cluster.agents)
    asked = await document(cluster, MODEL, "--min-stages", "2", "--max-stages", "2")
    assert all(len(pipeline) == 2 for pipeline in stages(asked))
    # What it was asked for costs something, or nothing: it never helps
    assert asked["predicted"]["throughput_per_s"] <= free["predicted"]["throughput_per_s"] * (
        1 + 1e-9
    )
    run = free["dry_run"]["saturated"]["throughput_per_s"]
    assert run == pytest.approx(free["predicted"]["throughput_per_s"], rel=0.05)


async def test_for_people(cluster: LocalCluster) -> None:
    status, out, err = await plan(cluster, MODEL, "--strategy", "single")
    assert status == 0
    assert f"{MODEL}: one node, 1 of 3 nodes" in out
    assert "◀ bottleneck" in out
    assert "asking the orchestrator" in err


async def test_a_model_that_is_not_served(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(FACTORY)
    found = await document(
        cluster, "small:net", "--input-shape", "1x8", "--runtime", "torch", cwd=tmp_path
    )
    assert found["model"] == "net"
    assert stages(found)[0][-1][1][1] == 2
    async with cluster.client() as client:
        assert [model.model for model in (await client.status()).models] == [MODEL]


async def test_no_plan_is_told(cluster: LocalCluster) -> None:
    status, out, err = await plan(cluster, MODEL, "--min-stages", "4")
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: 4 stages cannot be had")
    status, _, err = await plan(cluster, "no_such_net", "--weights", "none")
    assert status == 1
    assert "no_such_net" in err.splitlines()[-1]

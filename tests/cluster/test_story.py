"""One command tells what became of a job whose node died, across the processes that had to do with it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from deploy.local import LocalCluster
from tests.cluster.conftest import JPEG, MODEL, RawClient
from tests.cluster.test_drain import amp4ec

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


async def story(cluster: LocalCluster, *of: str) -> list[dict[str, Any]]:
    """The entries; none where nothing is known."""
    code, out, err = await amp4ec(cluster, "story", *of, "--json")
    if code == 1:
        assert "nothing is known of" in err
        return []
    assert code == 0, err
    entries = json.loads(out)["entries"]
    assert isinstance(entries, list)
    return entries


def position(entries: list[dict[str, Any]], *words: str) -> int:
    """Where the first entry stands that has all of the words."""
    for index, entry in enumerate(entries):
        if all(word in entry["text"] for word in words):
            return index
    raise AssertionError(f"{words} is nowhere in {[entry['text'] for entry in entries]}")


async def test_a_job_whose_node_dies(cluster: LocalCluster, raw: RawClient) -> None:
    await cluster.wait_for_nodes(3)
    state = await cluster.wait_for_model(MODEL)
    victim = state.pipelines[0].stages[-1].node
    before = [stage.node for stage in state.pipelines[0].stages]
    cluster.agents[victim].freeze(frozen=True)
    job = raw.send(JPEG)
    async with asyncio.timeout(60):
        while not any("is sent to" in e["text"] for e in await story(cluster, "job", job)):
            pass  # the command takes its time
    await cluster.kill_agent(victim)
    await asyncio.to_thread(raw.wait, lambda: bool(raw.answers[job]))
    (answer,) = raw.answers[job]
    assert answer["status"] == "ok"
    told = await story(cluster, "job", job)
    order = [
        position(told, f"job {job} accepted"),
        position(told, "is sent to", " > ".join(before)),
        position(told, f"node {victim}"),
        position(told, "its pipeline was lost"),
        position(told, "again (attempt 2)", " > ".join(answer["nodes"])),
        position(told, "answered after"),
    ]
    assert order == sorted(order)
    times = [entry["at"] for entry in told]
    assert times == sorted(times)
    assert victim not in answer["nodes"]
    code, out, err = await amp4ec(cluster, "story", "job", job)
    assert code == 0, err
    assert "answered after" in out
    # Found by the processes that run here: the log of one that was killed lies beside theirs.
    of_node = await story(cluster, "node", victim)
    assert position(of_node, "agent started") < position(of_node, "stage ready")
    assert position(of_node, f"node {victim} joined") < position(of_node, "stage ready")
    said = [index for index, each in enumerate(of_node) if f"node {victim} " in each["text"]]
    assert position(of_node, "stage ready") < said[-1], "that it was lost comes last"
    assert {entry["source"] for entry in of_node} == {victim, "orchestrator"}
    of_model = await story(cluster, "model", MODEL)
    assert position(of_model, "is to be served") < position(of_model, "generation 2 is active")
    code, _, err = await amp4ec(cluster, "story", "node", "nobody")
    assert code == 1
    assert "nothing is known of node nobody" in err

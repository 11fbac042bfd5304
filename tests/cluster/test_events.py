"""What happened, asked for afterwards and followed as it happens, by command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from typing import Any

import pytest

from deploy.local import LocalCluster
from deploy.supervisor import child_environment, command
from tests.cluster.conftest import MODEL
from tests.cluster.test_drain import amp4ec

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


async def listed(cluster: LocalCluster, *arguments: str) -> list[dict[str, Any]]:
    code, out, err = await amp4ec(cluster, "events", "--json", *arguments)
    assert code == 0, err
    events = json.loads(out)["events"]
    assert isinstance(events, list)
    return events


async def test_what_happened(cluster: LocalCluster) -> None:
    await cluster.wait_for_nodes(3)
    events = await listed(cluster, "--last", "1000")
    names = [event["event"] for event in events]
    assert names.count("node_joined") >= 3
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    assert await listed(cluster, "--last", "2") == events[-2:]
    of_model = await listed(cluster, "--model", MODEL, "--last", "1000")
    assert {event["model"] for event in of_model} == {MODEL}
    assert "replanned" in {event["event"] for event in of_model}
    node = next(iter(cluster.agents))
    assert {event["node"] for event in await listed(cluster, "--node", node)} == {node}
    assert await listed(cluster, "--node", "nobody") == []
    code, out, _ = await amp4ec(cluster, "events", "--model", MODEL, "--last", "1")
    assert code == 0
    assert of_model[-1]["text"] in out


async def test_what_happens(cluster: LocalCluster) -> None:
    """Followed: what was before comes once, then what comes, each as it comes; Ctrl-C is no failure."""
    await cluster.wait_for_nodes(3)
    before = (await listed(cluster, "--last", "1"))[0]
    process = await asyncio.create_subprocess_exec(
        *command("events", "--follow", "--last", "1", "--json", "--broker", cluster.broker.url),
        env=child_environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    lines: list[dict[str, Any]] = []

    async def until_event(name: str) -> None:
        assert process.stdout is not None
        while not lines or lines[-1]["event"] != name:
            lines.append(json.loads(await process.stdout.readline()))

    try:
        await asyncio.wait_for(until_event(before["event"]), 60)
        await amp4ec(cluster, "cordon", "agent-1")
        await asyncio.wait_for(until_event("node_cordoned"), 60)
        await amp4ec(cluster, "uncordon", "agent-1")
        await asyncio.wait_for(until_event("node_uncordoned"), 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        code = await asyncio.wait_for(process.wait(), 60)
    assert code == 0
    assert lines[0] == before
    assert len({json.dumps(line) for line in lines}) == len(lines)

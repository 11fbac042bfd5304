"""`amp4ec health` and `doctor` after a crash: what the orchestrator said last is history, and so called."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from deploy.local import LocalCluster
from shared.bus import MqttControlBus
from shared.codec import decode_json
from shared.messages.health import Health
from shared.topics import Topics
from tests.cluster.test_drain import amp4ec

pytestmark = pytest.mark.timeout(120)


async def becomes(cluster: LocalCluster, grade: str) -> None:
    """Wait until that is retained."""
    topic = Topics(cluster.root).topic("health")
    bus = MqttControlBus(cluster.url, client_id="looks", first_connect_timeout_s=10)
    async with bus, asyncio.timeout(40):
        await bus.subscribe(topic)
        async for message in bus.messages():
            if message.payload and decode_json(message.payload, Health).health == grade:
                return


async def test_a_leader_that_crashed_is_not_ok(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, agents=1) as cluster:
        await cluster.wait_for_nodes(1)
        await becomes(cluster, "ok")
        assert cluster.orchestrator is not None
        pid = cluster.orchestrator.pid
        code, out, err = await amp4ec(cluster, "health")
        assert (code, out) == (0, "ok: 1 node online, nothing is to be served\n"), err
        await cluster.kill_orchestrator()
        code, out, err = await amp4ec(cluster, "health", "--json")
        assert code == 1, err
        told = json.loads(out)
        assert told["health"] == "failing"
        assert told["text"].startswith("failing: the orchestrator is lost, last on ")
        assert f"(pid {pid}): jobs wait until one leads. The last word, of 20" in told["text"]
        assert told["text"].endswith(": ok: 1 node online, nothing is to be served")
        (finding,) = told["findings"]
        assert (finding["about"], finding["grade"]) == ("orchestrator", "failing")
        _, out, _ = await amp4ec(cluster, "doctor", "--json")
        assert any(each["check"] == "orchestrator.away" for each in json.loads(out)["findings"])
        await cluster.start_orchestrator()
        await cluster.wait_for_nodes(1)
        code, out, err = await amp4ec(cluster, "health")
        assert (code, out) == (0, "ok: 1 node online, nothing is to be served\n"), err

"""The paper's test bed in containers: what is done to a node, and what becomes of the answers."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from deploy.containers.cluster import DockerCluster
from deploy.containers.control import nodes
from deploy.containers.links import container_link
from deploy.containers.usage import Sample, compare, record
from deploy.link import run_tool
from shared.client import Client
from shared.tensor import Array
from tests.containers.conftest import INPUT, MODEL, NODES, answered, listed, told

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(500)]
MIB = 2**20


async def test_three_nodes_answer_exactly(
    cluster: DockerCluster, client: Client, expected: Array
) -> None:
    assert sorted(await answered(client, expected)) == sorted(NODES)
    status = await client.status()
    hardware = {node.state.node: node.state.hardware for node in status.nodes}
    found = {name: (of.cpu, of.memory_bytes) for name, of in hardware.items() if of is not None}
    assert found == {
        "high": (0.5, 1024 * MIB),
        "medium": (0.3, 512 * MIB),
        "low": (0.2, 512 * MIB),
    }
    for name in (*NODES, "orchestrator"):
        assert (cluster.directory / f"{name}.log").stat().st_size > 0


async def test_a_killed_node_is_done_without_and_comes_back(
    cluster: DockerCluster, client: Client, expected: Array
) -> None:
    await told("docker", "kill", "medium", "--cluster", cluster.id)
    assert await cluster.agents["medium"].ended() == -9
    assert "medium" not in await answered(client, expected)
    assert listed(cluster.id)["medium"]["reason"] == "signal 9"
    assert (await cluster.restart_agent("medium")).alive


async def test_a_paused_node_is_done_without_and_comes_back(
    cluster: DockerCluster, client: Client, expected: Array
) -> None:
    await told("docker", "pause", "low", "--cluster", cluster.id)
    assert "low" not in await answered(client, expected)
    assert listed(cluster.id)["low"]["state"] == "paused"
    await told("docker", "unpause", "low", "--cluster", cluster.id)


async def test_a_node_that_is_cut_off_is_done_without_and_comes_back(
    cluster: DockerCluster, client: Client, expected: Array
) -> None:
    await told("docker", "cut", "high", "--cluster", cluster.id)
    assert "high" not in await answered(client, expected)
    await told("docker", "heal", "high", "--cluster", cluster.id)


async def test_a_slow_link_is_slow(cluster: DockerCluster, client: Client) -> None:
    """What a bucket of 16 KiB does not let through at once takes its time; it cannot take less."""
    await told("docker", "rate", "high", "200kbit", "--cluster", cluster.id)
    assert await asyncio.to_thread(seconds_to_send, cluster, "high", 65_536) > 49_152 / 25_000 * 0.9
    port = container_link(cluster.agents["high"].pid).port
    assert "tbf" in run_tool(["tc", "qdisc", "show", "dev", port])
    await told("docker", "rate", "high", "off", "--cluster", cluster.id)
    assert "tbf" not in run_tool(["tc", "qdisc", "show", "dev", port])
    assert (await client.status()).online


def seconds_to_send(cluster: DockerCluster, node: str, size_bytes: int) -> float:
    """How long bytes from a node take to this machine, which has an address on the cluster's network."""
    network = cluster.engine.networks.get(f"amp4ec-{cluster.id}")
    gateway = network.attrs["IPAM"]["Config"][0]["Gateway"]
    with socket.create_server((gateway, 0)) as server:
        server.settimeout(60)
        address = (gateway, server.getsockname()[1])
        send = f"import socket; socket.create_connection({address}).sendall(bytes({size_bytes}))"
        container = cluster.engine.containers.get(cluster.agents[node].id)
        container.exec_run(["python3", "-c", send], detach=True)
        connection, _ = server.accept()
        began, came = time.monotonic(), 0
        with connection:
            while data := connection.recv(65_536):
                came += len(data)
    assert came == size_bytes
    return time.monotonic() - began


async def test_limits_are_changed_and_seen_by_the_agent(
    cluster: DockerCluster, client: Client
) -> None:
    limit = ("docker", "limit", "high", "--cluster", cluster.id)
    await told(*limit, "--cpus", "0.4", "--memory", "700MiB")
    await cluster.wait_for(
        "the new memory limit",
        lambda status: any(
            node.telemetry is not None and node.telemetry.memory_limit_bytes == 700 * MIB
            for node in status.nodes
        ),
    )
    await cluster.limit_agent("high", cpus=0.5, memory_bytes=1024 * MIB)
    assert cluster.agents["high"].limits == "0.5 CPU, 1024 MiB"
    assert (listed(cluster.id)["high"]["cpus"], client.topics.root) == (0.5, cluster.root)


async def test_a_node_that_ran_out_of_memory_is_said_to_have(cluster: DockerCluster) -> None:
    tiny = await cluster.add_agent("tiny", 0.2, memory_bytes=20 * MIB)
    assert await tiny.ended() == -9
    assert tiny.why() == "out of memory: its limit is 20 MiB"
    assert listed(cluster.id)["tiny"]["reason"] == tiny.why()


async def test_engine_and_agents_agree(cluster: DockerCluster, client: Client) -> None:
    """Under load, since of next to nothing ten percent cannot be told."""

    async def ask() -> None:
        while True:
            await client.infer(MODEL, INPUT, timeout_s=60)

    watched = [each for each in nodes(cluster.engine, cluster.id) if each.node in NODES]
    samples: list[Sample] = []
    load = [asyncio.create_task(ask(), name=f"load {number}") for number in range(6)]
    try:
        await record(watched, cluster.url, cluster.root, 15.0, samples.append)
    finally:
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)
    found = compare(samples)
    assert len(found) == 4 * len(NODES)
    assert not [each for each in found if not each.agrees]
    assert all(each.engine > each.least for each in found if each.figure == "cpu")

"""Who is there, on real processes: frozen, of one name, back at once, told of wrongly."""

from __future__ import annotations

import asyncio
from pathlib import Path

import paho.mqtt.publish as mqtt
import pytest

from deploy.flags import ServeFlags
from deploy.link import network_missing
from deploy.local import LocalCluster
from deploy.supervisor import Child
from deploy.watch import Events, watch
from shared.bus import Message, MqttControlBus
from shared.codec import decode_json, encode_json
from shared.messages.node import NodeState, Ping
from shared.messages.operation import Happening
from shared.messages.stage import Assignment, Report
from shared.topics import Topics
from tests.cluster.conftest import JPEG, MODEL, ROOT, RawClient, until
from tests.cluster.test_losses import answered_once, stream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


async def happened(events: Events, event: str, node: str, *, since: int = 0) -> Happening:
    return await events.wait_for(lambda e: (e.event, e.node) == (event, node), since=since)


async def states(cluster: LocalCluster) -> dict[str, NodeState]:
    async with cluster.client() as client:
        status = await client.status(wait_s=0.0)
    return {node.state.node: node.state for node in status.nodes}


async def becomes(cluster: LocalCluster, node: str, state: str) -> None:
    """Wait until that is retained of a node."""
    await cluster.wait_for(
        f"{node} {state}",
        lambda status: any(
            (each.state.node, each.state.state) == (node, state) for each in status.nodes
        ),
        timeout_s=40.0,
    )


async def has_all(cluster: LocalCluster, node: str) -> None:
    """Wait until a node has what it was told to have: of one that loads, silence alone is no loss."""
    topics = Topics(ROOT)
    told, report = topics.topic("assignment", node=node), topics.topic("report", node=node)
    seen: dict[str, Message] = {}
    async with (
        asyncio.timeout(40),
        MqttControlBus(cluster.url, client_id="looks", first_connect_timeout_s=5) as bus,
    ):
        await bus.subscribe(told)
        await bus.subscribe(report)
        # It reports changes by itself, and how it is when it is asked.
        await bus.publish(topics.topic("ping", node=node), encode_json(Ping(node=node)))
        async for message in bus.messages():
            seen[message.topic] = message
            if seen.keys() == {told, report}:
                is_told = decode_json(seen[told].payload, Assignment)
                has = decode_json(seen[report].payload, Report)
                phases = {stage.state for stage in has.stages}
                if has.revision >= is_told.revision and phases == {"ready"}:
                    return


async def used(cluster: LocalCluster) -> list[str]:
    """The nodes of the plan in force."""
    state = await cluster.wait_for_model(MODEL)
    return [stage.node for pipeline in state.pipelines for stage in pipeline.stages]


async def second_of(cluster: LocalCluster, name: str, directory: Path) -> Child:
    """Another agent of that name, with a cache of its own, as on another machine."""
    await asyncio.to_thread(directory.mkdir)
    return await Child.start(
        f"{name}-too",
        ["agent", "--name", name, "--cache-dir", str(directory), "--broker", cluster.broker.url,
         "--root", ROOT, "--cpus", "0.5"],
        directory / "agent.log",
    )  # fmt: skip


@pytest.mark.parametrize("until_its_will", [False, True])
async def test_a_frozen_agent(
    cluster: LocalCluster, raw: RawClient, *, until_its_will: bool
) -> None:
    """SIGSTOP: found out by its silence. Frozen on, the broker finds out too. SIGCONT brings it back."""
    await cluster.wait_for_nodes(3)
    victim = (await used(cluster))[-1]
    incarnation = (await states(cluster))[victim].incarnation
    async with watch(cluster.url, ROOT) as events:
        streaming = asyncio.create_task(stream(raw, cluster))
        await asyncio.to_thread(raw.wait, lambda: len(raw.answers) >= 5)
        await has_all(cluster, victim)
        cluster.agents[victim].freeze(frozen=True)
        try:
            left = await happened(events, "node_left", victim)
            assert "does not answer" in (left.reason or "")
            sent = await streaming
            assert victim not in await used(cluster)
            if until_its_will:
                await becomes(cluster, victim, "lost")
        finally:
            since = len(events.seen)
            cluster.agents[victim].freeze(frozen=False)
        await happened(events, "node_joined", victim, since=since)
        await answered_once(raw, cluster, sent)
    await cluster.wait_for_nodes(3)
    assert (await states(cluster))[victim].incarnation == incarnation, "the same life goes on"


async def test_a_second_agent_of_a_name_is_told_and_ends(
    cluster: LocalCluster, raw: RawClient, tmp_path: Path
) -> None:
    await cluster.wait_for_nodes(3)
    name = (await used(cluster))[0]
    first = (await states(cluster))[name]
    second = await second_of(cluster, name, tmp_path / "second")
    assert await asyncio.wait_for(second.ended(), 30) == 2
    assert (
        f"another agent has the name '{name}' (process {first.pid} on {first.host})"
        in second.log_tail()
    )
    assert cluster.agents[name].alive
    assert (await states(cluster))[name] == first
    assert (await asyncio.to_thread(raw.ask, JPEG))["status"] == "ok"


async def test_of_two_agents_that_start_together_one_stays(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    two = await asyncio.gather(
        *(second_of(cluster, "twin", tmp_path / each) for each in ("left", "right"))
    )
    ends = [asyncio.create_task(child.ended()) for child in two]
    done, going = await asyncio.wait(ends, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [2]
    assert len(going) == 1
    (stayed,) = [child for child in two if child.alive]
    (ended,) = [child for child in two if not child.alive]
    assert f"(process {stayed.pid} on " in ended.log_tail()
    await becomes(cluster, "twin", "online")
    assert (await states(cluster))["twin"].pid == stayed.pid
    assert await stayed.stop() == 0, stayed.log_tail()
    await becomes(cluster, "twin", "offline")


async def test_an_agent_that_is_back_at_once_and_a_will_that_comes_late(
    cluster: LocalCluster, raw: RawClient
) -> None:
    """As under systemd: killed and started again, its old will on the way."""
    await cluster.wait_for_nodes(3)
    name = (await used(cluster))[0]
    before = (await states(cluster))[name]
    await cluster.kill_agent(name)
    await cluster.add_agent(name)
    await cluster.wait_for(
        f"{name} born again",
        lambda status: any(
            node.state.node == name
            and node.state.state == "online"
            and node.state.incarnation > before.incarnation
            for node in status.nodes
        ),
    )
    late = NodeState(state="lost", node=name, incarnation=before.incarnation)
    async with watch(cluster.url, ROOT) as events:
        mqtt.single(
            f"{ROOT}/node/{name}/state", encode_json(late), qos=1, retain=True,
            hostname="127.0.0.1", port=cluster.broker.port,
        )  # fmt: skip
        await becomes(cluster, name, "online")
        assert (await asyncio.to_thread(raw.ask, JPEG))["status"] == "ok"
        assert not [event for event in events.seen if event.event == "node_left"]
    assert (await states(cluster))[name].incarnation > before.incarnation


async def test_an_agent_that_comes_and_goes(cluster: LocalCluster, raw: RawClient) -> None:
    """Killed as soon as it is there, again and again: jobs are answered, and it is left out for a while."""
    await cluster.wait_for_nodes(3)
    sent: list[str] = []
    async with watch(cluster.url, ROOT) as events:
        for _ in range(3):
            await cluster.add_agent("moth")
            await becomes(cluster, "moth", "online")
            sent += [raw.send(JPEG) for _ in range(5)]
            await cluster.kill_agent("moth")
            await becomes(cluster, "moth", "lost")
        left_out = await happened(events, "node_left_out", "moth")
        assert "left out of plans for 10 s" in left_out.text
        await cluster.add_agent("moth")
        await cluster.wait_for(
            "moth to be shown as left out",
            lambda status: any(
                node.standing is not None and node.standing.state == "left_out"
                for node in status.nodes
            ),
        )
        assert "moth" not in await used(cluster)
        await asyncio.to_thread(raw.wait, lambda: all(raw.answers[job] for job in sent))
        assert {raw.answers[job][0]["status"] for job in sent} == {"ok"}
        plans = [event for event in events.seen if event.event == "replanned"]
        assert len(plans) <= 2 * 3
    assert await cluster.stop_agent("moth") == 0


async def test_nothing_is_left_of_an_agent_that_is_gone_for_good(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    """On a cluster that forgets after seconds: what was retained, also for nobody, is cleared."""
    await cluster.wait_for_nodes(3)
    await cluster.restart_orchestrator(["--forget-after", "3s"])
    gone = await second_of(cluster, "ghost", tmp_path / "ghost")
    await becomes(cluster, "ghost", "online")
    await gone.kill()
    mqtt.single(
        f"{ROOT}/node/nobody/assignment", b'{"v": 1, "node": "nobody", "revision": 1}', qos=1,
        retain=True, hostname="127.0.0.1", port=cluster.broker.port,
    )  # fmt: skip
    await becomes(cluster, "ghost", "lost")
    await cluster.restart_orchestrator(["--forget-after", "3s"])
    await cluster.wait_for(
        "the ghost to be forgotten",
        lambda status: "ghost" not in {node.state.node for node in status.nodes},
    )
    async with MqttControlBus(cluster.url, client_id="looks", first_connect_timeout_s=5) as bus:
        await bus.subscribe(f"{ROOT}/node/+/+")
        names = set()
        async for message in bus.messages():
            if not message.retain:
                break  # telemetry: what was retained came before
            names.add(message.topic.split("/")[3])
    assert "ghost" not in names
    assert "nobody" not in names
    assert set(cluster.agents) >= names
    await cluster.restart_orchestrator([])


async def test_a_restart_of_the_orchestrator_leaves_the_stages_loaded(
    cluster: LocalCluster, raw: RawClient
) -> None:
    """They finish what they hold meanwhile, and are neither unloaded nor loaded again."""
    await cluster.wait_for_nodes(3)
    await asyncio.to_thread(raw.ask, JPEG)
    logs = {name: agent.log for name, agent in cluster.agents.items() if agent.alive}
    before = {name: len(log.read_text()) for name, log in logs.items()}
    sent = [raw.send(JPEG) for _ in range(20)]
    await cluster.kill_orchestrator()
    await cluster.start_orchestrator()
    sent += [raw.send(JPEG) for _ in range(20)]
    await asyncio.to_thread(raw.wait, lambda: all(raw.answers[job] for job in sent))
    await answered_once(raw, cluster, sent)
    for name, log in logs.items():
        since = log.read_text()[before[name] :]
        assert "loading" not in since, since


@pytest.mark.skipif(bool(network_missing()), reason=network_missing())
async def test_a_half_open_connection_is_noticed_from_both_sides(tmp_path: Path) -> None:
    """Packets vanish without a reset: its jobs run elsewhere, and it notices by itself that it is cut off."""
    async with LocalCluster(tmp_path, agents=2, isolated=True) as cluster:
        await cluster.wait_for_nodes()
        flags = ServeFlags(weights="none", min_stages=2, max_stages=2, timeout_s=110)
        await cluster.serve(MODEL, flags)
        async with watch(cluster.url, ROOT) as events, cluster.client() as client:
            cluster.network.cut("agent-2")
            result = await client.infer(MODEL, JPEG, timeout_s=60)
            assert set(result.nodes) == {"agent-1"}
            left = await happened(events, "node_left", "agent-2")
            assert "does not answer" in (left.reason or "")
            log = cluster.agents["agent-2"].log
            await asyncio.to_thread(
                until, lambda: "no connection to" in log.read_text(), 20.0
            )  # the kernel gives it up after 10 s, and the keep-alive is 15
            since = len(events.seen)
            cluster.network.heal("agent-2")
            await happened(events, "node_joined", "agent-2", since=since)
            await cluster.wait_for_model(MODEL, newer_than=result.generation)
            result = await client.infer(MODEL, JPEG, timeout_s=60)
            assert set(result.nodes) == {"agent-1", "agent-2"}

"""kill -9 under load: every job is answered exactly once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from deploy.local import LocalCluster
from deploy.watch import watch
from shared.client import Result
from shared.codec import encode_msgpack
from shared.messages.job import BatchInput
from tests.cluster.conftest import FLAGS, JPEG, MODEL, ROOT, RawClient

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
JOBS = 40
EVERY_S = 0.05


async def stream(raw: RawClient, cluster: LocalCluster, jobs: int = JOBS) -> list[str]:
    """Jobs of the raw client and of ours, at a steady rate; returns when ours are answered."""
    sent: list[str] = []
    async with cluster.client() as client, asyncio.TaskGroup() as group:
        ours = []
        for _ in range(jobs):
            sent.append(raw.send(JPEG))
            ours.append(group.create_task(client.infer(MODEL, JPEG, timeout_s=90)))
            await asyncio.sleep(EVERY_S)
        for task in ours:
            result = await task
            assert isinstance(result, Result)
    await asyncio.to_thread(raw.wait, lambda: all(raw.answers[job] for job in sent))
    return sent


async def answered_once(raw: RawClient, cluster: LocalCluster, sent: list[str]) -> None:
    # One more goes through the whole way: what came before it twice would be here by then.
    await asyncio.to_thread(raw.ask, JPEG)
    assert {job: len(raw.answers[job]) for job in sent} == dict.fromkeys(sent, 1)
    assert {raw.answers[job][0]["status"] for job in sent} == {"ok"}
    tops = {str(raw.answers[job][0]["top"]) for job in sent}
    assert len(tops) == 1, "the same photograph, the same answer, whatever the cut"


async def test_agent_is_killed(cluster: LocalCluster, raw: RawClient) -> None:
    before = await cluster.wait_for_model(MODEL)
    victim = before.pipelines[0].stages[-1].node
    async with watch(cluster.url, ROOT) as events:
        streaming = asyncio.create_task(stream(raw, cluster))
        await asyncio.to_thread(raw.wait, lambda: len(raw.answers) >= 5)
        await cluster.kill_agent(victim)
        sent = await streaming
        await answered_once(raw, cluster, sent)
        left = await events.wait_for(lambda event: event.event == "node_left")
        assert left.node == victim
    after = await cluster.wait_for_model(MODEL, newer_than=before.generation)
    nodes = {stage.node for pipeline in after.pipelines for stage in pipeline.stages}
    assert victim not in nodes
    await cluster.add_agent(victim)
    await cluster.wait_for_nodes(3)


async def test_orchestrator_is_killed(cluster: LocalCluster, raw: RawClient) -> None:
    streaming = asyncio.create_task(stream(raw, cluster))
    await asyncio.to_thread(raw.wait, lambda: len(raw.answers) >= 5)
    await cluster.kill_orchestrator()
    await cluster.start_orchestrator()
    sent = await streaming
    await answered_once(raw, cluster, sent)


async def test_orchestrator_is_restarted_cleanly(cluster: LocalCluster, raw: RawClient) -> None:
    before = await cluster.wait_for_model(MODEL)
    streaming = asyncio.create_task(stream(raw, cluster))
    await asyncio.to_thread(raw.wait, lambda: len(raw.answers) >= 5)
    await cluster.restart_orchestrator()
    sent = await streaming
    await answered_once(raw, cluster, sent)
    after = await cluster.wait_for_model(MODEL)
    assert after.generation == before.generation, "pipelines that run are not stopped"


async def test_broker_is_restarted(cluster: LocalCluster, raw: RawClient) -> None:
    streaming = asyncio.create_task(stream(raw, cluster, jobs=20))
    await asyncio.to_thread(raw.wait, lambda: len(raw.answers) >= 3)
    await cluster.broker.restart()
    await streaming
    await cluster.wait_for_nodes(3)
    answer = await asyncio.to_thread(raw.ask, JPEG)
    assert answer["status"] == "ok"


async def test_broker_and_orchestrator_are_killed_together(
    cluster: LocalCluster, raw: RawClient
) -> None:
    """Mosquitto forgets what it had not saved: what was served, who is there, and its queue. We do not."""
    before = await cluster.wait_for_model(MODEL)
    async with cluster.client() as client, asyncio.TaskGroup() as group:
        ours = [group.create_task(client.infer(MODEL, JPEG, timeout_s=90)) for _ in range(JOBS)]
        await asyncio.wait(ours, return_when=asyncio.FIRST_COMPLETED)
        await cluster.broker.kill()
        await cluster.kill_orchestrator()
        assert sum(task.done() for task in ours) < JOBS, "some were under way"
        await cluster.broker.start()
        await cluster.start_orchestrator()
    assert {result.top[0].label for result in (task.result() for task in ours)} == {
        ours[0].result().top[0].label
    }
    after = await cluster.wait_for_model(MODEL)
    assert after.generation >= before.generation
    await cluster.wait_for_nodes(3)
    answer = await asyncio.to_thread(raw.ask, JPEG)
    assert answer["status"] == "ok"


async def test_agent_and_orchestrator_are_killed_together(
    cluster: LocalCluster, raw: RawClient
) -> None:
    """The one who would notice is gone, too."""
    before = await cluster.wait_for_model(MODEL)
    victim = before.pipelines[0].stages[-1].node
    streaming = asyncio.create_task(stream(raw, cluster))
    await asyncio.to_thread(raw.wait, lambda: len(raw.answers) >= 5)
    await cluster.kill_agent(victim)
    await cluster.kill_orchestrator()
    await cluster.start_orchestrator()
    sent = await streaming
    await answered_once(raw, cluster, sent)
    await cluster.add_agent(victim)
    await cluster.wait_for_nodes(3)


async def test_all_are_killed_together(cluster: LocalCluster, raw: RawClient) -> None:
    """Broker, orchestrator and every agent at once, as by a power cut: our client has every answer, once."""
    await cluster.wait_for_model(MODEL)
    names = list(cluster.agents)
    async with cluster.client() as client, asyncio.TaskGroup() as group:
        ours = [group.create_task(client.infer(MODEL, JPEG, timeout_s=150)) for _ in range(JOBS)]
        await asyncio.wait(ours, return_when=asyncio.FIRST_COMPLETED)
        await cluster.broker.kill()
        await cluster.kill_orchestrator()
        await asyncio.gather(*(cluster.kill_agent(name) for name in names))
        assert sum(task.done() for task in ours) < JOBS, "some were under way"
        await cluster.broker.start()
        await cluster.start_orchestrator()
        for name in names:
            await cluster.add_agent(name)
    assert len({str(task.result().top) for task in ours}) == 1, "one photograph, one answer"
    answer = await asyncio.to_thread(raw.ask, JPEG)
    assert answer["status"] == "ok"


async def test_agent_is_killed_with_micro_batches_under_way(
    cluster: LocalCluster, raw: RawClient
) -> None:
    """What was in them runs again, item by item: each answered once, in order, and nobody is blamed."""
    await cluster.serve(MODEL, replace(FLAGS, micro_batch=4))
    await cluster.wait_for(
        "the size asked for to be in force",
        lambda status: any(
            row.micro_batch is not None and row.micro_batch.size == 4
            for model in status.models
            for row in model.pipelines
        ),
    )
    served = await cluster.wait_for_model(MODEL)
    victim = served.pipelines[0].stages[-1].node
    images = [JPEG, b"no photograph", JPEG] * 12
    payload = bytes(encode_msgpack(BatchInput(images=[memoryview(image) for image in images])))
    sent = [raw.send(payload) for _ in range(3)]
    await asyncio.to_thread(raw.wait, lambda: len(raw.answers) >= 1)
    await cluster.kill_agent(victim)
    await asyncio.to_thread(raw.wait, lambda: all(raw.answers[job] for job in sent), 120)
    await asyncio.to_thread(raw.ask, JPEG)
    for job in sent:
        (answer,) = raw.answers[job]
        assert [item["status"] for item in answer["results"]] == ["ok", "error", "ok"] * 12
        assert {item["error"]["code"] for item in answer["results"][1::3]} == {"bad_input"}
        assert len({str(item["top"]) for item in answer["results"] if item["status"] == "ok"}) == 1
    await cluster.add_agent(victim)
    await cluster.wait_for_nodes(3)


async def test_agent_leaves_by_itself(cluster: LocalCluster, raw: RawClient) -> None:
    before = await cluster.wait_for_model(MODEL)
    leaver = before.pipelines[0].stages[0].node
    streaming = asyncio.create_task(stream(raw, cluster))
    await asyncio.to_thread(raw.wait, lambda: len(raw.answers) >= 5)
    assert await cluster.stop_agent(leaver) == 0
    sent = await streaming
    await answered_once(raw, cluster, sent)

"""The orchestrator on the fake wire: nodes come, models are asked for, it dies and comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.codec import decode_json, encode_json
from shared.errors import ErrorCode
from shared.messages.cordon import CordonRequest, DrainRequest, UncordonRequest
from shared.messages.operation import OrchestratorState, ReplanRequest, StopRequest
from tests.fakes.cluster import FakeAgent, Model, until
from tests.shell.orchestrator_world import JPEG, STATE, TOPICS, World, world_in


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as world:
        yield world


async def test_from_birth_to_serving_to_stopped(world: World) -> None:
    async with world.orchestrator(), world.agents("a", "b") as (first, second):
        response = await world.operator.serve(Model(), min_stages=2, max_stages=2)
        assert response.status == "ok"
        assert response.data["state"] == "serving"
        state = world.operator.state()
        assert state is not None
        assert state.state == "serving"
        stages = [stage for row in state.pipelines for stage in row.stages]
        assert sorted(stage.node for stage in stages) == ["a", "b"]
        assert [tuple(stage.blocks) for stage in stages] == [(0, 2), (2, 4)]
        assert len(first.assignments[-1].prefetch) == 2, "the weights that the other one holds"
        progress = [r.data["text"] for r in world.operator.responses if r.status == "progress"]
        assert progress[0].startswith("fetching 5 artifacts")
        said = await world.answer()
        assert said["status"] == "ok"
        assert said["top"][0]["label"] == "dog"
        assert said["nodes"] == [stage.node for stage in stages]
        stopped = await world.operator.ask("stop", StopRequest(transaction="s", model="m"))
        assert stopped.status == "ok"
        await until(lambda: world.operator.state() is None)
        assert TOPICS.topic("model_state", model="m") not in world.broker.retained
        await until(lambda: not first.assignments[-1].stages + second.assignments[-1].stages)
        assert (await world.answer("2"))["error"]["code"] == "unknown_model"


async def test_its_own_state_online_offline_and_lost(world: World) -> None:
    async with world.orchestrator() as orchestrator:
        state = decode_json(world.broker.retained[STATE].payload, OrchestratorState)
        assert (state.state, state.incarnation) == ("online", orchestrator.incarnation)
        assert state.limits is not None
        world.broker.cut("orchestrator")
        assert world.retained("orchestrator_state")["state"] == "lost"
        world.broker.mend("orchestrator")
        await until(lambda: world.retained("orchestrator_state")["state"] == "online")
    assert world.retained("orchestrator_state")["state"] == "offline"
    assert not world.broker.sessions["dispatcher"].receiver, "its session waits for a successor"


async def test_malformed_messages_cost_nothing(world: World) -> None:
    async with world.orchestrator() as orchestrator, world.agents("a"):
        for topic in ("node/x/state", "node/x/telemetry", "node/x/report", "node/a/assignment",
                      "model/x/state", "orchestrator/state", "artifact/orchestrator/want",
                      "nothing/of/ours"):  # fmt: skip
            world.broker.publish(f"test/{topic}", b"\xffnot json", 1)
        other = encode_json(FakeAgent(TOPICS, world.control, "y").state)
        world.broker.publish("test/node/x/state", other, 1)
        await until(lambda: orchestrator._counters["bad_messages"] >= 5)
        for _ in range(5):
            world.broker.publish(
                "test/node/a/telemetry", b'{"node": "a", "incarnation": 1, "cpu_percent": -1}', 1
            )
        await until(lambda: orchestrator._counters["bad_messages"] >= 10)
        expected = {"birth": ["x"], "report": ["x"], "telemetry": ["x", "a"]}
        await until(lambda: len(world.operator.told("telemetry_refused")) == 2)
        for what, nodes in expected.items():
            assert [told.node for told in world.operator.told(f"{what}_refused")] == nodes
        assert [node.name for node in orchestrator._cluster.alive()] == ["a"]
        assert (await world.operator.serve(Model())).status == "ok"
        assert orchestrator._counters["internal_errors"] == 0


async def test_who_sends_too_much_or_too_fast_is_not_read(world: World) -> None:
    async with world.orchestrator() as orchestrator, world.agents("a", "b"):
        world.broker.publish("test/node/a/report", b"x" * (2 << 20), 1)
        await until(lambda: orchestrator._counters["bad_messages"] == 1)
        for _ in range(2000):
            world.broker.publish("test/node/loud/telemetry", b"{}", 0)
        world.broker.publish("test/node/b/report", b"{}", 1)
        await until(lambda: world.operator.told("rate_limited"))
        (told,) = world.operator.told("rate_limited")
        assert told.node == "loud"
        await until(lambda: len(world.operator.told("report_refused")) == 2)
        assert [told.node for told in world.operator.told("report_refused")] == ["a", "b"]
        assert orchestrator._counters["rate_limited"] > 0
        assert (await world.operator.serve(Model())).status == "ok"


async def test_a_node_out_of_plans_is_so_under_the_next_orchestrator_too(world: World) -> None:
    async with world.agents("a", "b"):
        async with world.orchestrator():
            await world.operator.serve(Model(), max_stages=1)
            request = DrainRequest(transaction="d", node="a", reason="new fan")
            response = await world.operator.ask("drain", request)
            assert (response.status, response.data) == ("ok", {"node": "a"})
            kept = world.retained("cordon", node="a")
            assert (kept["node"], kept["drain"], kept["reason"]) == ("a", True, "new fan")
        async with world.orchestrator():
            await world.operator.serve(Model(), max_stages=1)
            assert (await world.answer())["nodes"] == ["b"]
            again = await world.operator.ask("uncordon", UncordonRequest(transaction="u", node="a"))
            assert again.status == "ok"
            await until(lambda: TOPICS.topic("cordon", node="a") not in world.broker.retained)
            missing = CordonRequest(transaction="c", node="c")
            refused = await world.operator.ask("cordon", missing)
            assert refused.error is not None
            assert refused.error.message == "there is no node 'c'; there are: a, b"


@pytest.mark.parametrize(
    ("verb", "payload", "words"),
    [
        ("serve", b'{"transaction": "x", "model": "m", "manifest": 1}', "manifest"),
        ("serve", b'{"transaction": "x", "v": 7}', "v"),
        ("stop", b'{"transaction": "x", "model": "no/name"}', "model"),
        ("dance", b'{"transaction": "x"}', "unknown verb"),
    ],
)
async def test_a_malformed_request_is_refused(
    world: World, verb: str, payload: bytes, words: str
) -> None:
    async with world.orchestrator():
        await world.operator.send(verb, payload)
        response = await world.operator.ended("x")
        assert response.error is not None
        assert response.error.code is ErrorCode.BAD_INPUT
        assert words in response.error.message


async def test_a_request_without_a_transaction_is_answered_without_one(world: World) -> None:
    async with world.orchestrator():
        await world.operator.send("serve", b"\xff")
        await world.operator.send("stop", b"[]")
        await world.operator.send("health", b"{}")
        await until(lambda: len(world.operator.responses) == 3)
        for response, expected in zip(
            world.operator.responses, ("ServeRequest", "StopRequest", "HealthRequest"), strict=True
        ):
            assert (response.transaction, response.status) == ("", "error")
            assert response.error is not None
            assert response.error.code is ErrorCode.BAD_INPUT
            assert response.error.expected == f"{expected} as JSON"
        stopped = await world.operator.ask("stop", StopRequest(transaction="s", model="m"))
        assert stopped.error is not None
        assert stopped.error.code is ErrorCode.UNKNOWN_MODEL
        again = await world.operator.ask("replan", ReplanRequest(transaction="r", model="m"))
        assert again.error is not None
        assert len(world.operator.responses) == 5


async def refused(world: World, package: Model, transaction: str = "t", **more: Any) -> str:
    world.operator.blobs.update(package.blobs)
    request = package.request(transaction, world.operator.peer, **more)
    response = await world.operator.ask("serve", request)
    assert response.status == "error"
    assert response.error is not None
    assert response.error.code is ErrorCode.BAD_INPUT
    return f"{response.error.message} {response.error.expected} {response.error.got}"


async def test_packages_that_make_no_sense_are_refused(world: World) -> None:
    async with world.orchestrator() as orchestrator, world.agents("a"):
        # somebody else's model under this name
        other = Model("other")
        assert "another model" in await refused(world, other, "t1", model="m")
        # weights that the package names, and the request does not
        missing = Model(salt=b"missing")
        assert "not in the orchestrator's store" in await refused(world, missing, "t2", blobs=[])
        # weights that the provider does not have
        gone = missing.package.weights[0]
        world.operator.blobs.clear()
        del missing.blobs[gone.digest]
        assert "no such blob" in await refused(world, missing, "t3", blobs=[gone])
        # an operator off the list
        text = Model(salt=b"op").package.to_bytes().replace(b'"conv2d"', b'"os.system"')
        assert "os.system" in await refused(world, with_package(text), "t4")
        # not a package
        assert "ModelPackage" in await refused(world, with_package(b"{}"), "t5")
        # bytes that are not those of the digest
        liar = Model(salt=b"liar")
        liar.blobs[liar.manifest.digest] = b"x" * liar.manifest.size
        assert "wrong" in await refused(world, liar, "t6")
        # a runtime that it was not measured with
        assert "tflite" in await refused(world, Model(salt=b"runtime"), "t7", runtime="tflite")
        assert world.operator.state() is None
        assert orchestrator._counters["internal_errors"] == 0
        assert (await world.operator.serve(Model(), "t8")).status == "ok"


def with_package(package: bytes) -> Model:
    model = Model()
    model.manifest = model.put(package)
    return model


async def test_a_provider_that_never_answers_ends_with_the_time(world: World) -> None:
    async with world.orchestrator():
        request = Model().request("t", "nobody", timeout_s=0.3)
        response = await world.operator.ask("serve", request)
        assert response.error is not None
        assert response.error.code is ErrorCode.UNAVAILABLE
        assert (response.error.expected, response.error.got) == ("within 0.3 s", "5 missing")


async def test_a_blob_that_rots_on_disk_is_fetched_again(world: World) -> None:
    model = Model()
    store = world.options.state_dir / "artifacts"
    digest = model.package.weights[0].digest
    (store / digest[:2]).mkdir(parents=True)
    (store / digest[:2] / digest).write_bytes(b"rotten")
    async with world.orchestrator(), world.agents("a"):
        assert (await world.operator.serve(model)).status == "ok"


async def test_two_models_at_once(world: World) -> None:
    async with world.orchestrator(), world.agents("a", "b") as agents:
        one, two = Model("one"), Model("two")
        responses = await asyncio.gather(
            world.operator.serve(one, "t1"), world.operator.serve(two, "t2")
        )
        assert [response.status for response in responses] == ["ok", "ok"]
        held = {stage.model for agent in agents for stage in agent.assignments[-1].stages}
        assert held == {"one", "two"}


async def test_of_two_requests_under_one_name_the_later_counts(world: World) -> None:
    async with world.orchestrator(), world.agents("a"):
        early, late = Model(salt=b"1"), Model(salt=b"2")
        # nobody gives the first one its blobs: it is being prepared when the second comes
        await world.operator.send("serve", early.request("t1", "nobody"))
        assert (await world.operator.serve(late, "t2")).status == "ok"
        first = await world.operator.ended("t1")
        assert first.error is not None
        assert "something else" in first.error.message
        await world.operator.send("serve", early.request("t3", "nobody"))
        stopped = await world.operator.ask("stop", StopRequest(transaction="t4", model="m"))
        assert stopped.status == "ok"
        third = await world.operator.ended("t3")
        assert third.error is not None
        assert "stopped" in third.error.message


async def test_stopping_what_is_only_being_prepared(world: World) -> None:
    async with world.orchestrator():
        await world.operator.send("serve", Model().request("t1", "nobody"))
        stopped = await world.operator.ask("stop", StopRequest(transaction="t2", model="m"))
        assert stopped.status == "ok"


async def test_a_load_that_fails_is_told(world: World) -> None:
    async with world.orchestrator(), world.agents("a") as (agent,):
        agent.reports_as, agent.reason = "failed", "no memory left"
        response = await world.operator.serve(Model(), timeout_s=1.0)
        assert response.error is not None
        assert "no memory left" in response.error.message


async def test_a_restart_takes_over_without_a_new_assignment(world: World) -> None:
    model = Model()
    async with world.agents("a", "b") as agents:
        first = world.make()
        running = asyncio.create_task(first.run())
        await until(lambda: first._dispatcher.ident is not None)
        assert (await world.operator.serve(model, min_stages=2, max_stages=2)).status == "ok"
        before = [agent.assignments[-1].stages for agent in agents]
        seen = [(agent, len(agent.assignments)) for agent in agents]
        generation = world.retained("model_state", model="m")["generation"]
        await world.killed(first, running)
        assert world.retained("orchestrator_state")["state"] == "lost"
        # a job that comes while nobody is there
        world.broker.publish("test/model/m/infer/client/early", JPEG, 1)
        async with world.orchestrator() as second:
            assert second.incarnation > first.incarnation
            assert (await world.answer("2"))["status"] == "ok"
            answers = [m.topic for m in world.broker.published if m.topic.startswith("test/result")]
            assert sorted(answers) == ["test/result/client/2", "test/result/client/early"]
            state = world.retained("model_state", model="m")
            assert (state["state"], state["generation"]) == ("serving", generation)
            assert [agent.assignments[-1].stages for agent in agents] == before
            assert all(new.stages for agent, n in seen for new in agent.assignments[n:])


async def test_a_model_that_cannot_be_taken_over_is_told_about(
    world: World, tmp_path: Path
) -> None:
    async with world.orchestrator(), world.agents("a"):
        assert (await world.operator.serve(Model())).status == "ok"
    world.options = replace(world.options, state_dir=tmp_path / "empty")
    async with world.orchestrator():
        await until(lambda: world.operator.told("model_lost"))
        assert "cannot be taken over" in world.operator.told("model_lost")[0].text
        await until(lambda: world.operator.state() is None)


async def test_models_that_somebody_invents_are_cleared_and_not_each_told_of(world: World) -> None:
    async with world.agents("a"):
        async with world.orchestrator():
            assert (await world.operator.serve(Model())).status == "ok"
        genuine = bytes(world.broker.retained[TOPICS.topic("model_state", model="m")].payload)
        digest = json.loads(genuine)["manifest"].encode()
        invented = [TOPICS.topic("model_state", model=f"evil-{number}") for number in range(50)]
        for index, topic in enumerate(invented):
            # packages that nobody has, and the one that we have, under another name
            payload = genuine if index % 2 else genuine.replace(digest, b"0" * 64)
            world.broker.publish(topic, payload, 1, retain=True)
        async with world.orchestrator() as second:
            await until(lambda: not set(invented) & set(world.broker.retained))
            assert set(second._cluster.models) == {"m"}
            assert (await world.answer())["status"] == "ok"
            lost = [told.text for told in world.operator.told("model_lost")]
            assert len(lost) == 21
            assert "50 models in all" in lost[-1]


async def test_without_a_broker_nothing_is_decided(world: World) -> None:
    async with world.orchestrator(), world.agents("a") as (agent,):
        assert (await world.operator.serve(Model())).status == "ok"
        held = agent.assignments[-1]
    world.broker.stop()
    orchestrator = world.make()
    stop = asyncio.Event()
    running = asyncio.create_task(orchestrator.run(stop))
    await until(lambda: orchestrator._loop is not None)
    assert not orchestrator.restore.over
    world.broker.start()
    await until(lambda: orchestrator.restore.over)
    topic = TOPICS.topic("assignment", node="a")
    stages = json.loads(world.broker.retained[topic].payload)["stages"]
    assert len(stages) == len(held.stages)
    stop.set()
    assert await running == 0


async def test_what_the_broker_forgot_is_published_again(world: World) -> None:
    async with world.orchestrator(), world.agents("a"):
        assert (await world.operator.serve(Model())).status == "ok"
        before = dict(world.broker.retained)
        world.broker.stop()
        world.broker.retained.clear()
        world.broker.start()
        ours = {TOPICS.topic("assignment", node="a"), TOPICS.topic("model_state", model="m")}
        await until(lambda: ours <= set(world.broker.retained))
        for topic in ours:
            assert world.broker.retained[topic].payload == before[topic].payload
        count = len(world.broker.published)
        world.broker.cut("orchestrator")
        world.broker.mend("orchestrator")
        await until(lambda: world.retained("orchestrator_state")["state"] == "online")
        again = [m.topic for m in world.broker.published[count:] if m.retain]
        assert set(again) == {STATE}, "what it remembers is not"


async def test_a_later_orchestrators_leftovers_do_not_end_us(world: World) -> None:
    """As after a clock that was set back."""
    earlier = OrchestratorState(state="online", incarnation=10**9)
    world.broker.publish(STATE, encode_json(earlier), 1, retain=True)
    async with world.orchestrator(), world.agents("a"):
        assert (await world.operator.serve(Model())).status == "ok"


async def test_a_message_that_we_fail_at_costs_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.orchestrator() as orchestrator, world.agents("a"):
        await until(orchestrator._cluster.alive)
        monkeypatch.setattr(orchestrator._cluster, "model_state", None)
        response = await world.operator.serve(Model())
        assert response.error is not None
        monkeypatch.undo()
        assert orchestrator._counters["internal_errors"] + len(world.operator.events) > 0
        assert (await world.operator.serve(Model(), "t2")).status == "ok"


async def test_measured_figures_are_published_seldom(world: World) -> None:
    async with world.orchestrator(), world.agents("a"):
        assert (await world.operator.serve(Model())).status == "ok"
        states = len(world.operator.states["m"])
        for job in range(20):
            assert (await world.answer(str(job)))["status"] == "ok"
        await until(lambda: len(world.operator.metrics) >= 2)
        assert len(world.operator.states["m"]) <= states + 1
        models = [m.models["m"] for m in world.operator.metrics if "m" in m.models]
        assert sum(model.answered_per_s for model in models) > 0
        counters = world.operator.metrics[-1].counters
        assert counters["answered"] == 20
        await until(
            lambda: any(
                "m" in m.models and m.models["m"].prediction_error is not None
                for m in world.operator.metrics
            )
        )


async def test_dropped_jobs_are_put_on_event(world: World) -> None:
    async with world.orchestrator():
        world.broker.publish("test/model/m/infer", JPEG, 1)
        await until(lambda: world.operator.told("message_dropped"))
        assert "no response topic" in world.operator.told("message_dropped")[0].text


async def test_what_is_not_served_any_more_may_be_evicted(world: World) -> None:
    old, new = Model(salt=b"old"), Model(salt=b"new")
    async with world.orchestrator() as orchestrator, world.agents("a") as (agent,):
        assert (await world.operator.serve(old)).status == "ok"
        pinned = orchestrator._library.store._pins
        await until(lambda: old.manifest.digest in pinned)
        assert (await world.operator.serve(new, "t2")).status == "ok"
        await until(lambda: old.manifest.digest not in pinned)
        assert old.package.weights[0].digest not in pinned
        assert new.package.weights[0].digest in pinned

        def held() -> set[str]:
            return {blob.digest for s in agent.assignments[-1].stages for blob in s.weights}

        # The order to let go of the old one may come a moment after the answer.
        await until(lambda: held() <= set(pinned))
        await world.operator.ask("stop", StopRequest(transaction="s", model="m"))
        await until(lambda: not pinned)

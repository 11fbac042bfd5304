"""The `plan` request on the fake wire: what the orchestrator would plan with, and what it would choose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deploy.planning import Wish
from orchestrator.core.figures import Objective
from orchestrator.core.plan_document import plan_document
from orchestrator.core.planner import plan
from shared.codec import convert
from shared.errors import ErrorCode
from shared.messages.model import ServeOptions
from shared.messages.operation import PlanAnswer, PlanRequest
from tests.fakes.cluster import Model, until
from tests.shell.orchestrator_world import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    async with world.operator.running():
        yield world


async def ask(world: World, transaction: str = "p", **more: Any) -> PlanAnswer:
    response = await world.operator.ask(
        "plan", PlanRequest(transaction=transaction, **({"model": "m"} | more))
    )
    assert response.error is None, response.error
    return convert(response.data, PlanAnswer)


async def refusal(world: World, transaction: str = "p", **more: Any) -> tuple[ErrorCode, str]:
    response = await world.operator.ask(
        "plan", PlanRequest(transaction=transaction, **({"model": "m"} | more))
    )
    assert response.error is not None
    return response.error.code, str(response.error)


async def test_a_served_model_is_planned_as_it_was(world: World) -> None:
    async with world.orchestrator(), world.agents("a", "b"):
        await world.operator.serve(Model(), min_stages=2, max_stages=2)
        asked = await ask(world)
        assert asked.plan is None
        assert asked.runtime == "torch"
        assert [node.name for node in asked.nodes] == ["a", "b"]
        # Its own memory counts as free
        assert asked.nodes[0].memory_bytes == 10**9
        # The same planner says here what is served there
        chosen = plan(Wish(min_stages=2, max_stages=2).request(asked.profile, asked.nodes))
        state = world.operator.state()
        assert state is not None
        assert [
            [(row.node, row.blocks) for row in pipeline.stages] for pipeline in state.pipelines
        ] == [[(stage.node, stage.blocks) for stage in p.stages] for p in chosen.pipelines]


async def test_options_bring_a_plan(world: World) -> None:
    async with world.orchestrator(), world.agents("a", "b"):
        await world.operator.serve(Model())
        asked = await ask(world, options=ServeOptions(objective="latency"))
        wish = Wish(objective=Objective.LATENCY)
        assert asked.plan == plan_document(plan(wish.request(asked.profile, asked.nodes)))
        # Nothing was changed by asking
        state = world.operator.state()
        assert state is not None
        assert (state.generation, state.options.objective) == (1, "throughput")


async def test_a_model_that_is_not_served(world: World) -> None:
    async with world.orchestrator() as orchestrator, world.agents("a"):
        model = Model("other")
        # The weights are not wanted for it: the package alone is given
        world.operator.blobs[model.manifest.digest] = model.blobs[model.manifest.digest]
        asked = await ask(
            world, model="other", manifest=model.manifest, provider=world.operator.peer
        )
        assert asked.profile == model.package.profile("torch")
        assert not orchestrator._cluster.models
        assert not orchestrator._library._open
        assert not orchestrator._library.store._pins


async def test_what_others_hold_is_not_offered(world: World) -> None:
    async with world.orchestrator(), world.agents("a"):
        await world.operator.serve(Model())
        other = Model("other")
        world.operator.blobs.update(other.blobs)
        more: Any = {"manifest": other.manifest, "provider": world.operator.peer}
        beside = await ask(world, "1", model="other", **more)
        assert beside.nodes[0].memory_bytes < 10**9
        assert beside.nodes[0].cpu < 1.0
        # Under the name of what is served it would take its place
        instead = Model(salt=b"another")
        world.operator.blobs.update(instead.blobs)
        alone = await ask(world, "2", manifest=instead.manifest, provider=world.operator.peer)
        assert alone.nodes[0].memory_bytes == 10**9


async def test_what_cannot_be_planned_is_told(world: World) -> None:
    async with world.orchestrator() as orchestrator:
        code, said = await refusal(world, "1")
        assert code is ErrorCode.UNKNOWN_MODEL
        assert "no such model is served" in said
        model = Model()
        world.operator.blobs.update(model.blobs)
        there: Any = {"manifest": model.manifest, "provider": world.operator.peer}
        code, said = await refusal(world, "2", **there)
        assert code is ErrorCode.UNAVAILABLE
        assert "no node is here" in said
        async with world.agents("a"):
            code, said = await refusal(
                world, "3", **there, options=ServeOptions(max_latency_s=1e-6)
            )
            assert code is ErrorCode.UNAVAILABLE
            code, said = await refusal(world, "4", **there, options=ServeOptions(strategy="best"))
            assert code is ErrorCode.BAD_INPUT
            assert "optimal" in said
            gone = Model(salt=b"gone")
            code, said = await refusal(
                world, "5", **there | {"manifest": gone.manifest, "model": "gone"}
            )
            assert code is ErrorCode.BAD_INPUT
            assert "no such blob" in said
            # And it goes on
            assert (await ask(world, "6", **there)).nodes
        assert orchestrator._counters["internal_errors"] == 0


async def test_a_request_that_comes_twice_is_answered_once(world: World) -> None:
    async with world.orchestrator() as orchestrator, world.agents("a"):
        await world.operator.serve(Model())
        plans = orchestrator.operators._plans
        request = PlanRequest(transaction="twice", model="m", options=ServeOptions())
        async with plans._one_at_a_time:
            await world.operator.send("plan", request)
            await world.operator.send("plan", request)
            await world.operator.send("plan", PlanRequest(transaction="after", model="m"))
            await until(lambda: "after" in plans._tasks)
        await world.operator.ended("after")
        answers = [r for r in world.operator.responses if r.transaction == "twice"]
        assert len(answers) == 1
        assert answers[0].status == "ok"

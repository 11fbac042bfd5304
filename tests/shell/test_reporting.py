"""How the cluster is, as it is told: what lasts, at once where it is asked for, and not after the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.codec import convert
from shared.messages.health import Health, HealthRequest
from tests.fakes.cluster import Model, until
from tests.shell.orchestrator_world import World, world_in


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as world:
        yield world


async def asked(world: World, transaction: str) -> Health:
    request = HealthRequest(transaction=transaction)
    return convert((await world.operator.ask("health", request)).data, Health)


def graded(world: World, grade: str) -> bool:
    told = world.retained("health")
    return told is not None and told["health"] == grade


async def test_what_is_wrong_is_retained_told_once_and_goes_with_the_orchestrator(
    world: World,
) -> None:
    async with world.orchestrator(), world.agents("a"):
        assert (await asked(world, "1")).text == "ok: 1 node online, nothing is to be served"
        await world.operator.serve(Model())
        await until(lambda: graded(world, "ok"))
        assert world.retained("health")["text"] == "ok: 1 node online, serving m"
        assert world.operator.told("health_changed") == [], "it was never otherwise"
        world.broker.cut("agent-a")
        await until(lambda: world.operator.told("node_left"))
        found = await asked(world, "2")
        assert (found.health, found.models) == ("failing", {"m": "unserved"})
        await until(lambda: graded(world, "failing"))
        await until(lambda: world.operator.told("health_changed"))
        (told,) = world.operator.told("health_changed")
        assert told.text.startswith("failing: m is not served")
    assert world.retained("health") is None, "nobody looks"


async def test_a_disk_that_fails_is_told(world: World) -> None:
    async with world.orchestrator() as orchestrator, world.agents("a"):
        orchestrator._jobs.failure = "the disk is full"
        (found,) = (await asked(world, "1")).findings
        assert (found.about, found.grade) == ("store", "degraded")

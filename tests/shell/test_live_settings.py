"""Settings that are changed while the orchestrator leads: checked, told, kept, and gone by."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.dispatch_settings import DispatchSettings
from orchestrator.core.scheduler_settings import SchedulerSettings
from orchestrator.live_settings import check, expected, schema, settings_of, with_settings
from orchestrator.options import OrchestratorOptions
from shared.bus import BrokerUrl
from shared.codec import convert
from shared.errors import ConfigurationError, ErrorCode, JobError
from shared.messages.operation import Response, ServeRequest
from shared.messages.settings import InfoRequest, OrchestratorInfo, SetRequest, Settings
from tests.fakes.cluster import Model, until
from tests.shell.orchestrator_world import TOPICS, World, world_in

OPTIONS = OrchestratorOptions(broker=BrokerUrl.parse("mqtt://nowhere"), state_dir=Path())


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as world:
        yield world


async def change(world: World, transaction: str = "s", **settings: Any) -> Response:
    request = SetRequest(transaction=transaction, settings=settings)
    return await world.operator.ask("set", request)


def test_an_orchestrator_without_flags_has_the_defaults_of_the_schema() -> None:
    assert settings_of(OPTIONS) == Settings()


def test_options_made_of_settings_say_the_same_settings() -> None:
    other = Settings(
        gain_threshold_ratio=0.5, cool_down_s=1.0, load_timeout_s=2.0, blocked_s=3.0,
        forget_after_s=4.0, prefetch=False, scheduler="nsa", nsa_form="literal",
        nsa_weights=(1.0, 0.0, 0.0, 0.0), nsa_max_load_ratio=0.7, nsa_max_latency_s=0.1,
        log_decisions=True, max_item_bytes=5, max_queued_items=6, max_queued_bytes=7,
        unserved_limit_s=8.0,
    )  # fmt: skip
    assert all(getattr(other, f.name) != getattr(Settings(), f.name) for f in fields(Settings))
    assert settings_of(with_settings(OPTIONS, asdict(other))) == other


def test_the_schema_has_units_bounds_and_what_this_orchestrator_was_started_with() -> None:
    document = schema(Settings(cool_down_s=5.0))
    assert set(document["properties"]) == {field.name for field in fields(Settings)}
    cool_down = document["properties"]["cool_down_s"]
    assert (cool_down["unit"], cool_down["default"]) == ("s", 5.0)
    assert (cool_down["minimum"], cool_down["maximum"]) == (0, 86400.0)
    for name, each in document["properties"].items():
        assert each["description"].endswith("."), name
        suffix = name.rpartition("_")[2]
        unit = {"s": "s", "bytes": "bytes", "ratio": "ratio"}.get(suffix)
        assert each.get("unit") == unit or unit is None, name


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("cool_down_s", -1, "a number, 0 to 86400 s"),
        ("cool_down_s", "long", "a number, 0 to 86400 s"),
        ("cool_down_s", 1e300, "a number, 0 to 86400 s"),
        ("nsa_max_load_ratio", 0, "a number, above 0 to 1"),
        ("max_queued_items", 0, "a whole number, 1 to 1000000 inputs"),
        ("max_queued_items", 1.5, "a whole number, 1 to 1000000 inputs"),
        ("prefetch", "yes", "true or false"),
        ("scheduler", "best", "one of least-outstanding, nsa, shortest-completion"),
        ("nsa_weights", [1, 2], "4 numbers"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_what_was_expected(
    name: str, value: object, words: str
) -> None:
    with pytest.raises(JobError) as refused:
        check(name, value)
    assert (refused.value.code, refused.value.expected) == (ErrorCode.BAD_INPUT, words)
    assert json.loads(refused.value.got or "") == value


def test_what_makes_no_sense_together_is_refused_too() -> None:
    values = asdict(Settings()) | {"nsa_weights": (0.0, 0.0, 0.0, 0.0)}
    with pytest.raises(ConfigurationError, match="not all 0"):
        with_settings(OPTIONS, values)


def test_every_setting_can_be_put_into_words() -> None:
    for each in schema(Settings())["properties"].values():
        assert expected(each)


async def test_a_change_is_told_retained_and_gone_by(world: World) -> None:
    async with world.orchestrator() as orchestrator:
        await until(lambda: world.retained("orchestrator_info"))
        before = convert(world.retained("orchestrator_info"), OrchestratorInfo)
        assert (before.changed, before.revision) == ({}, 0)
        assert before.settings == settings_of(world.options)
        said = await change(
            world, cool_down_s=60, forget_after_s=10, max_queued_items=5, prefetch=False
        )
        info = convert(said.data, OrchestratorInfo)
        assert info.settings.cool_down_s == 60.0
        assert set(info.changed) == {
            "cool_down_s", "forget_after_s", "max_queued_items", "prefetch",
        }  # fmt: skip
        await until(lambda: world.retained("orchestrator_info")["revision"] == 1)
        assert convert(world.retained("orchestrator_info"), OrchestratorInfo) == info
        cluster = orchestrator._cluster
        assert cluster.settings.cool_down_s == 60.0
        assert cluster.settings.settle_s == 0.05, "what is no setting stays"
        assert cluster._context.members.forget_after_s == 10.0
        assert not orchestrator._deployer.prefetch
        core = orchestrator._dispatcher._core
        await until(lambda: core._settings.max_queued_items == 5)
        assert core._items._settings is core._settings
        await until(lambda: world.operator.orchestrators[-1].limits.max_queue_items == 5)  # type: ignore[union-attr]
        (told,) = world.operator.told("settings_changed")
        assert "cool_down_s is 60.0 now, it was 30.0" in told.text


async def test_all_are_changed_or_none(world: World) -> None:
    async with world.orchestrator() as orchestrator:
        refused = await change(world, cool_down_s=60, gain_threshold_ratio=-1)
        assert refused.error is not None
        assert refused.error.code is ErrorCode.BAD_INPUT
        assert (refused.error.expected, refused.error.got) == ("a number, 0 to 100", "-1")
        unknown = await change(world, "u", cool_down=60)
        assert unknown.error is not None
        assert "cool_down_s" in (unknown.error.expected or "")
        assert orchestrator._cluster.settings.cool_down_s == 30.0
        assert world.operator.told("settings_changed") == []
        assert world.retained("orchestrator_info")["revision"] == 0


async def test_the_same_again_changes_nothing_and_null_goes_back(world: World) -> None:
    scheduling = SchedulerSettings(max_latency_s=0.5)
    world.options = replace(world.options, dispatch=DispatchSettings(scheduling=scheduling))
    async with world.orchestrator():
        await change(world, nsa_max_latency_s=0.1)
        again = convert((await change(world, "2", nsa_max_latency_s=0.1)).data, OrchestratorInfo)
        assert again.revision == 1
        back = convert((await change(world, "3", nsa_max_latency_s=None)).data, OrchestratorInfo)
        assert (back.settings.nsa_max_latency_s, back.changed, back.revision) == (0.5, {}, 2)
        request = InfoRequest(transaction="i")
        asked = convert((await world.operator.ask("info", request)).data, OrchestratorInfo)
        assert asked == back


async def test_the_next_orchestrator_keeps_to_them_and_its_flags_otherwise(world: World) -> None:
    async with world.orchestrator():
        await change(world, cool_down_s=60, log_decisions=True)
    world.options = replace(world.options, prefetch=False)
    async with world.orchestrator() as orchestrator:
        await until(lambda: world.retained("orchestrator_info")["settings"]["prefetch"] is False)
        assert orchestrator._cluster.settings.cool_down_s == 60.0
        info = convert(world.retained("orchestrator_info"), OrchestratorInfo)
        assert (info.revision, set(info.changed)) == (1, {"cool_down_s", "log_decisions"})
        await change(world, "back", cool_down_s=None, log_decisions=None)
    async with world.orchestrator() as orchestrator:
        assert orchestrator._cluster.settings.cool_down_s == 30.0


@pytest.mark.parametrize("forgets", ["the broker", "the disk", "the broker the last of it"])
async def test_broker_and_disk_each_remember(world: World, forgets: str) -> None:
    topic = TOPICS.topic("orchestrator_info")
    async with world.orchestrator():
        await change(world, "1", cool_down_s=50)
        await until(lambda: world.retained("orchestrator_info")["revision"] == 1)
        old = world.broker.retained[topic]
        await change(world, "2", cool_down_s=60)
    match forgets:
        case "the broker":
            del world.broker.retained[topic]
        case "the disk":
            (world.options.state_dir / "settings.json").unlink()
        case _:
            world.broker.retained[topic] = old
    async with world.orchestrator() as orchestrator:
        assert orchestrator._cluster.settings.cool_down_s == 60.0
        await until(lambda: world.retained("orchestrator_info")["revision"] == 2)


async def test_a_kept_value_that_fits_no_more_is_left_out_alone(world: World) -> None:
    kept = {"root": "test", "revision": 3, "changed": {"cool_down_s": -5, "old": 1, "blocked_s": 9}}
    (world.options.state_dir / "settings.json").write_text(json.dumps(kept))
    async with world.orchestrator() as orchestrator:
        assert orchestrator._cluster.settings.blocked_s == 9.0
        assert orchestrator._cluster.settings.cool_down_s == 30.0
        await until(lambda: len(world.operator.told("settings_changed")) == 2)
        assert world.retained("orchestrator_info")["changed"] == {"blocked_s": 9.0}


async def test_the_scheduler_is_changed_under_load(world: World) -> None:
    async with world.orchestrator(), world.agents("a", "b"):
        await world.operator.serve(Model())
        assert (await world.answer("1"))["status"] == "ok"
        await change(world, scheduler="nsa", log_decisions=True)
        assert (await world.answer("2"))["status"] == "ok"

        def rules() -> set[str]:
            told = [event for event in world.operator.events if event.event == "item_dispatched"]
            return {event.data["decision"]["scheduler"] for event in told}

        await until(lambda: rules() == {"nsa"})


async def test_what_is_too_large_is_judged_by_the_limit_of_now(world: World) -> None:
    async with world.orchestrator() as orchestrator, world.agents("a"):
        await world.operator.serve(Model())
        await change(world, max_item_bytes=4)
        await until(lambda: orchestrator._dispatcher._settings.max_item_bytes == 4)
        refused = await world.answer("1")
        assert refused["error"]["code"] == "too_large"
        await change(world, "2", max_item_bytes=None)
        await until(lambda: orchestrator._dispatcher._settings.max_item_bytes > 4)
        assert (await world.answer("2"))["status"] == "ok"


async def test_a_served_model_is_served_otherwise_without_its_package(world: World) -> None:
    async with world.orchestrator(), world.agents("a", "b"):
        await world.operator.serve(Model())
        request = ServeRequest(
            transaction="o",
            model="m",
            options=replace(ServeRequest(transaction="x", model="m").options, min_stages=2),
        )
        response = await world.operator.ask("serve", request)
        assert response.status == "ok"
        assert [len(each["stages"]) for each in response.data["pipelines"]] == [2]
        unknown = await world.operator.ask("serve", replace(request, transaction="u", model="n"))
        assert unknown.error is not None
        assert unknown.error.code is ErrorCode.UNKNOWN_MODEL
        assert unknown.error.expected is not None
        assert unknown.error.expected.endswith("one of the models served: m")

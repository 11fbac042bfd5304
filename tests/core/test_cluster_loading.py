"""Loading, failing to load, making room, draining."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.core.cluster import ClusterSettings
from orchestrator.core.cluster_events import (
    ActivatePipeline,
    DrainPipeline,
    LosePipeline,
    ModelKnown,
    NodeHeard,
    NodeReported,
    PipelineDrained,
    PushAssignment,
    StageMeasured,
)
from orchestrator.core.footprint import crowded, footprints
from orchestrator.core.generation import pipeline_name
from orchestrator.core.speeds import BYTE_CPU_S, MESSAGE_CPU_S
from tests.core.cluster_world import MB, World, entry, stage_report, telemetry


def loading(*names: str, **options: Any) -> World:
    world = World()
    world.join(*names)
    world.serve(entry(**options))
    assert world.state().state == "loading"
    return world


def test_it_is_active_when_the_last_stage_is_ready() -> None:
    world = loading("a", "b", "c", min_stages=3)
    for name, state in (("a", "ready"), ("b", "fetching"), ("c", "ready"), ("b", "loading")):
        assert not world.report(name, "ready" if state == "ready" else "loading")
    actions = world.report("b")
    assert sum(isinstance(a, ActivatePipeline) for a in actions) == 1
    assert world.finished()[0].error is None
    assert world.state().state == "serving"


def test_a_node_that_is_lost_while_it_loads_is_planned_around_at_once() -> None:
    world = loading("a", "b", "c", min_stages=3)
    world.report("a")
    actions = world.kill("b")
    assert not any(isinstance(a, LosePipeline) for a in actions), "the dispatcher had nothing"
    assert "m generation 2: a[0:3] > c[3:6]" in world.told("replanned")[-1].text
    world.settle()
    assert world.stages() == [["a", "c"]]


def test_a_node_that_is_not_of_the_plan_may_leave_while_it_loads() -> None:
    world = loading("a", "b", strategy="single")
    world.kill("b")
    assert world.state().generation == 1
    world.settle()
    assert world.stages() == [["a"]]


def test_a_stage_may_take_back_that_it_is_ready() -> None:
    world = loading("a", "b", min_stages=2)
    world.report("a")
    world.report("a", "loading")
    world.report("b")
    assert world.state().state == "loading"
    world.report("a")
    assert world.state().state == "serving"


def test_a_load_that_fails_is_tried_on_the_others() -> None:
    world = World()
    world.join("a", "b", "c")
    world.serve(entry(min_stages=3), timeout_s=30.0)
    world.agents["b"].broken.add("m")
    world.settle()
    assert world.stages() == [["a", "c"]]
    assert world.told("load_failed")[0].text == "m could not be loaded on b: no memory"
    assert not world.finished(), "two stages are not what was asked for"
    world.agents["b"].broken.clear()
    world.wait(70)
    assert world.stages() == [["a", "b", "c"]], "a while later it may try again"
    assert [f.error for f in world.finished()] == [
        "served, but with 2 of the 3 stages asked for: 2 of 3 nodes can load it"
    ]


def test_nobody_can_load_it_and_a_new_life_of_a_node_can() -> None:
    world = loading("a")
    world.agents["a"].broken.add("m")
    world.settle()
    assert (world.state().state, world.state().reason) == (
        "failed",
        "could not be loaded on a: no memory",
    )
    assert world.finished()[0].error == "could not be loaded on a: no memory"
    assert world.wait(20) == []
    world.join("a")
    world.settle()
    assert world.state().state == "serving"


def test_a_failure_is_forgotten_with_its_node() -> None:
    world = loading("a")
    world.agents["a"].broken.add("m")
    world.settle()
    world.kill("a")
    assert world.state().state == "unserved"
    assert world.state().reason.startswith("no node is here")


def test_a_failed_load_is_tried_again_after_a_while_and_when_asked() -> None:
    world = loading("a")
    world.agents["a"].broken.add("m")
    world.settle()
    world.wait(62)
    assert len(world.told("load_failed")) == 2
    world.agents["a"].broken.clear()
    world.serve(entry())
    world.settle()
    assert world.state().state == "serving"


def test_a_failure_without_a_reason_and_of_an_earlier_plan() -> None:
    world = loading("a")
    ref = world.agents["a"].stages[0]
    report = world.agents["a"].report()
    old = replace(stage_report(ref, "failed"), generation=99)
    world.send(NodeReported(world.now, replace(report, stages=[old])))
    assert world.state().state == "loading"
    now = stage_report(ref, "failed", reason="")
    world.send(NodeReported(world.now, replace(report, stages=[now])))
    assert world.state().reason == "could not be loaded on a: no reason given"


def test_what_takes_too_long_is_blamed_on_all_that_are_slow() -> None:
    world = World(ClusterSettings(load_timeout_s=5.0))
    world.join("a", "b", "c")
    world.serve(entry(min_stages=3))
    world.report("b")
    world.wait(6, settle=False)
    assert [t.node for t in world.told("load_failed")] == ["a", "c"]
    world.settle()
    assert world.stages() == [["b"]]


def test_a_node_that_failed_still_holds_what_runs_on_it() -> None:
    """The better plan of three fails on `b`: the plan of `a` and `b` is no worse for that."""
    world = World()
    world.join("a", "b")
    world.serve(entry(max_stages=1))
    world.settle()
    world.join("c")
    world.agents["b"].broken.add("m")
    world.answers()
    assert world.told("load_failed")[0].node == "b"
    world.agents["b"].broken.clear()
    assert "cannot run" not in "".join(tell.text for tell in world.told("replanned"))
    world.settle()
    assert world.state().state == "serving"


def test_a_stage_that_is_not_held_any_more_is_lost_and_planned_again() -> None:
    world = loading("a", "b", min_stages=2)
    world.settle()
    agent = world.agents["b"]
    for stages in ([], [stage_report(agent.stages[0], "failed")]):
        generation = world.state().generation
        actions = world.send(NodeReported(world.now, replace(agent.report(), stages=stages)))
        assert LosePipeline("m", "m-0", generation) in actions
        assert world.told("stage_lost")[-1].node == "b"
        agent.reported = None
        world.settle()
        assert world.stages() == [["a", "b"]]


def test_a_report_that_comes_late_or_twice_loses_nothing() -> None:
    world = loading("a", "b", min_stages=2)
    agent = world.agents["b"]
    early = [replace(agent.report(), revision=0, stages=[]), agent.report("loading")]
    world.settle()
    for report in early:
        assert world.send(NodeReported(world.now, report)) == []


def test_make_before_break() -> None:
    world = loading("a")
    world.settle()
    world.join("b")
    assert world.state().generation == 1
    assert [ref.generation for ref in world.agents["a"].stages] == [1, 2]
    world.answers()
    kinds = [type(a) for a in world.log if isinstance(a, ActivatePipeline | DrainPipeline)]
    assert kinds == [ActivatePipeline, ActivatePipeline, ActivatePipeline, DrainPipeline]
    assert [ref.generation for ref in world.agents["a"].stages] == [1, 2], "the old one drains"
    world.drains()
    assert [ref.generation for ref in world.agents["a"].stages] == [2]
    assert world.told("generation_drained")[0].text == "m generation 1 is drained and unloaded"


def test_a_draining_pipeline_is_lost_with_its_node() -> None:
    world = loading("a", "b", max_stages=1)
    world.settle()
    world.join("c")
    world.answers()
    assert len(world.checks.draining) == 2
    assert world.send(PipelineDrained(world.now, "m", "m-9", 1)) == []
    world.send(PipelineDrained(world.now, "m", "m-0", 1))
    world.checks.draining.remove(("m", "m-0", 1))
    actions = world.kill("b")
    assert LosePipeline("m", "m-1", 1, "b") in actions
    assert not world.cluster._context.draining
    assert world.send(PipelineDrained(world.now, "m", "m-1", 1)) == []


def test_a_whole_generation_goes_with_its_node() -> None:
    world = loading("a", strategy="single")
    world.settle()
    world.join("b", cpu=2.0)
    world.answers()
    world.kill("a")
    assert world.told("generation_drained")[0].text == "m generation 1 is gone with its nodes"


def tight() -> World:
    """`a` and `b` hold half of the model each and `c` joins; nobody has room for two generations."""
    world = World()
    world.join("a", "b", memory=75 * MB)
    world.serve(entry(weight=15 * MB, min_stages=2))
    world.settle()
    assert world.stages() == [["a", "b"]]
    world.serve(entry(weight=15 * MB, min_stages=2, manifest="b"))
    return world


def test_break_before_make_where_memory_is_short() -> None:
    world = tight()
    assert world.told("break_before_make")[0].text == (
        "m generations 1 and 2 do not fit together on a, b: the old one is drained first, "
        "requests wait"
    )
    assert world.state().state == "loading"
    assert [ref.generation for ref in world.agents["a"].stages] == [1]
    world.drains()
    assert [ref.generation for ref in world.agents["a"].stages] == [2]
    world.settle()
    assert world.state().state == "serving"
    assert world.finished()[-1].error is None


def test_the_time_to_load_begins_when_there_is_room() -> None:
    world = tight()
    for _ in range(5):
        world.now += 25
        for name in world.agents:
            world.send(NodeHeard(world.now, telemetry(name)))
        world.tick()
    assert world.state().state == "loading"
    world.drains()
    assert world.tick() == []
    assert not world.told("load_failed")


def test_what_is_held_back_goes_on_when_what_drains_is_lost() -> None:
    world = tight()
    world.kill("a")
    assert world.state().state == "unserved"
    world.join("a", memory=75 * MB)
    world.settle()
    assert world.stages() == [["a", "b"]]


def test_what_ran_before_comes_back_when_its_successor_cannot_load() -> None:
    world = tight()
    for agent in world.agents.values():
        agent.broken.add("b" * 64)
    world.drains()
    world.answers()
    assert world.finished()[-1].error == "could not be loaded on a: no memory"
    assert world.state().manifest == "a" * 64
    world.settle()
    assert world.state().state == "serving"
    assert world.state().reason.startswith("what was to replace it could not be loaded on a")


def test_a_third_generation_waits_until_the_first_has_made_room() -> None:
    world = World()
    world.join("a", memory=240 * MB)
    for number, manifest in enumerate("abc"):
        world.serve(entry(weight=15 * MB, manifest=manifest))
        if number < 2:
            world.answers()
    assert world.state().state == "serving"
    assert world.state().manifest == "b" * 64
    assert [ref.generation for ref in world.agents["a"].stages] == [1, 2]
    assert not world.told("break_before_make")
    world.drains()
    assert [ref.generation for ref in world.agents["a"].stages] == [2, 3]
    world.settle()
    assert world.state().manifest == "c" * 64


def test_shared_weights_and_runtime_count_once() -> None:
    world = World()
    world.join("a", memory=120 * MB)
    world.serve(entry(weight=15 * MB))
    world.settle()
    active = world.served().active
    assert active is not None
    twice = replace(active, number=2)
    alone = footprints([active])["a"].bytes
    assert footprints([active, twice])["a"].bytes - alone < MB
    node = world.cluster.nodes["a"].profile(active.entry)
    assert node is not None
    assert crowded(twice, [active], [node]) == []


def test_what_joined_while_it_loaded_is_considered_then() -> None:
    world = loading("a")
    world.join("b")
    assert world.state().generation == 1
    world.report("a")
    assert "node b joined" in world.told("replanned")[-1].text
    world.settle()
    assert world.stages() == [["a"], ["b"]]


def test_few_words_about_the_same_thing() -> None:
    world = loading("a", "b", min_stages=2)
    published = len(world.checks.published)
    for _ in range(5):
        world.report("a", "loading")
        world.tick(0.2)
    assert len(world.checks.published) == published == 1
    world.settle()
    assert len(world.checks.published) == 2


def test_only_what_changed_is_pushed() -> None:
    world = loading("a", strategy="single")
    world.settle()
    assert [a.node for a in world.join("c") if isinstance(a, PushAssignment)] == ["c"]


def test_long_names_of_two_models_do_not_meet() -> None:
    one = entry("x" * 63 + "1", manifest="a")
    two = entry("x" * 63 + "2", manifest="b")
    assert pipeline_name(one, 0) != pipeline_name(two, 0)
    assert len(pipeline_name(one, 999)) <= 64
    assert pipeline_name(entry("m"), 1) == "m-1"


def test_measured_times_show_and_strange_ones_do_not() -> None:
    world = loading("a", "b", min_stages=2)
    measured = StageMeasured(world.now, "m", "m-0", 1, 1, "b", 10, 0.06, 0.05)
    world.send(measured)
    assert world.cluster.nodes["b"].corrections_of("torch").models == (), "it does not run yet"
    world.settle()
    for strange in (
        replace(measured, model="z"),
        replace(measured, node="z"),
        replace(measured, node="a"),
        replace(measured, generation=9),
        replace(measured, pipeline="m-9"),
        replace(measured, stage=7),
    ):
        assert world.send(strange) == []
    assert world.cluster.nodes["b"].corrections_of("torch").models == ()
    world.send(replace(measured, items=4))
    assert world.state().prediction_error is None, "too few to say anything"
    world.send(measured)
    # Three blocks of 10 ms, and two messages.
    first_sight_s = 0.03 + 2 * MESSAGE_CPU_S + BYTE_CPU_S * (1000 + entry("m").profile.output_bytes)
    row = world.state().pipelines[0].stages[1]
    assert row.measured_s == 0.06
    assert row.first_sight_s == row.expected_s == row.predicted_s == pytest.approx(first_sight_s)
    error = world.state().prediction_error
    assert error is not None
    assert (
        error.first_sight_ratio
        == error.now_ratio
        == pytest.approx(1 - first_sight_s / 0.06, abs=1e-4)
    )
    assert (error.stages, error.items) == (1, 14)
    assert world.cluster.prediction_errors() == {"m": error}
    for _ in range(6):
        world.send(measured)
    row, error = world.state().pipelines[0].stages[1], world.state().prediction_error
    assert error is not None
    assert row.first_sight_s == pytest.approx(first_sight_s)
    assert row.expected_s == pytest.approx(0.06, rel=0.02)
    assert error.now_ratio < 0.05 < error.first_sight_ratio


def test_what_a_stopped_model_taught_of_a_node_stays() -> None:
    world = loading("a", "b", min_stages=2)
    world.settle()
    world.stop()
    for _ in range(9):
        world.send(StageMeasured(world.now, "m", "m-0", 1, 1, "b", 10, 0.06, 0.05))
    node = world.cluster.nodes["b"].profile(entry("n"))
    assert node is not None
    # Not all of it: some of that was the model's own.
    assert 0.5 < node.speed < 0.6


def test_the_model_is_known_before_it_is_active() -> None:
    world = loading("a")
    world.settle()
    kinds = [type(a) for a in world.log if isinstance(a, ModelKnown | ActivatePipeline)]
    assert kinds == [ModelKnown, ActivatePipeline]

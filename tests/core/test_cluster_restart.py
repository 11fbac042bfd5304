"""An orchestrator starts anew: what serves goes on, what is gone is planned for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.core.cluster import ClusterSettings
from orchestrator.core.cluster_events import (
    ActivatePipeline,
    AssignmentSeen,
    ModelRestored,
    NodeBorn,
    PushAssignment,
    RestoreEnded,
)
from shared.messages.model import ModelState
from tests.core.cluster_world import MB, World, birth, entry

ENTRIES = {made.manifest: made for made in (entry(), entry(manifest="b"))}


def serving(**options: Any) -> World:
    world = World()
    world.join("a", "b", "c")
    world.serve(entry(**options))
    world.settle()
    return world


def since(world: World, mark: int, kind: type) -> list[Any]:
    return [action for action in world.log[mark:] if isinstance(action, kind)]


@pytest.mark.parametrize("reports_first", [False, True])
def test_what_serves_goes_on_and_loads_nothing(reports_first: bool) -> None:
    world = serving(min_stages=3)
    before, mark = {n: a.stages for n, a in world.agents.items()}, len(world.log)
    world.restart(ENTRIES, reports_first=reports_first)
    (activate,) = since(world, mark, ActivatePipeline)
    assert (activate.pipeline, activate.generation) == ("m-0", 1)
    assert activate.throughput_per_s == pytest.approx(50, rel=0.05)
    pushed = since(world, mark, PushAssignment)
    assert [p.node for p in pushed] == ["a", "b", "c"]
    for node, agent in world.agents.items():
        assert [r.key for r in agent.stages] == [r.key for r in before[node]]
    world.settle()
    assert world.state().generation == 1
    assert world.wait(100) == []


def test_nothing_is_pushed_before_all_is_read() -> None:
    world = World(restoring=True)
    world.join("a")
    assert not any(isinstance(a, PushAssignment) for a in world.log)
    world.serve(entry())
    assert not any(isinstance(a, PushAssignment) for a in world.log)
    mark = len(world.log)
    world.send(RestoreEnded(world.now))
    (push,) = since(world, mark, PushAssignment)
    assert len(push.stages) == 1


def test_a_node_of_it_is_gone() -> None:
    world = serving(min_stages=3)
    world.agents["b"].up = False
    mark = len(world.log)
    world.restart(ENTRIES)
    assert not since(world, mark, ActivatePipeline)
    assert world.state().generation == 2
    assert world.state().reason.startswith("the orchestrator started anew; nothing ran any more")
    assert world.checks.assigned["b"] == (), "its retained assignment becomes empty"
    world.settle()
    assert world.stages() == [["a", "c"]]


def test_copies_that_are_left_go_on() -> None:
    world = serving()
    world.kill("a")
    world.settle()
    assert [row.pipeline for row in world.state().pipelines] == ["m-1", "m-2"]
    mark = len(world.log)
    world.restart(ENTRIES)
    assert [a.pipeline for a in since(world, mark, ActivatePipeline)] == ["m-1", "m-2"]
    world.agents["b"].up = False
    mark = len(world.log)
    world.restart(ENTRIES)
    assert [a.pipeline for a in since(world, mark, ActivatePipeline)] == ["m-2"]
    assert world.state().generation == 1
    assert world.state().predicted.throughput_per_s == pytest.approx(1 / 0.06, rel=0.02)


def test_what_was_loading_goes_on_loading() -> None:
    world = World()
    world.join("a", "b")
    world.serve(entry(min_stages=2))
    world.report("a")
    mark = len(world.log)
    world.checks.asked.clear()
    world.restart(ENTRIES, reports_first=False)
    assert world.state().state == "loading"
    assert world.state().generation == 1
    world.report("a")
    assert world.state().state == "loading", "nothing is taken for ready that was not"
    world.report("b")
    assert world.state().state == "serving"
    assert not world.told("replanned")[1:]
    assert len(since(world, mark, ActivatePipeline)) == 1


def test_what_was_loading_on_a_node_that_is_gone_is_planned_anew() -> None:
    world = World()
    world.join("a", "b")
    world.serve(entry(min_stages=2))
    world.agents["b"].up = False
    world.checks.asked.clear()
    world.restart(ENTRIES)
    assert world.state().generation == 2
    world.settle()
    assert world.stages() == [["a"]]


def test_a_node_that_started_anew_meanwhile_says_that_it_loads() -> None:
    world = serving(min_stages=3)
    mark = len(world.log)
    world.restart(ENTRIES)
    assert len(since(world, mark, ActivatePipeline)) == 1, "believed until it speaks"
    world.report("b", "loading")
    assert world.told("stage_lost")[0].node == "b"
    world.settle()
    assert world.state().generation == 2


@pytest.mark.parametrize("said", ["loading", "failed", "nothing"])
def test_what_a_node_said_before_the_model_was_read_counts(said: str) -> None:
    world = serving(min_stages=3)
    state = world.state()
    again = World(restoring=True)
    for name in ("a", "b", "c"):
        again.join(name)
        agent = again.agents[name]
        agent.revision, agent.stages = 5, world.agents[name].stages
    if said == "nothing":
        again.agents["b"].stages = ()
    again.report("b", "failed" if said == "failed" else "loading")
    again.checks.restored.add(("m", 1))
    again.checks.numbers["m"] = 1
    again.send(ModelRestored(again.now, entry(min_stages=3), state))
    again.send(RestoreEnded(again.now))
    if said == "loading":
        assert again.state().state == "loading"
        assert again.state().generation == 1
        again.report("b")
        assert again.state().state == "serving"
    else:
        assert again.state().generation == 2
        again.settle()
        assert again.stages() == [["a", "b", "c"]]


def test_a_model_asked_for_before_it_is_read_is_what_was_asked_for() -> None:
    state = serving().state()
    world = World(restoring=True)
    world.join("a")
    world.serve(entry(manifest="b"))
    world.send(ModelRestored(world.now, entry(), replace(state, generation=7)))
    world.send(RestoreEnded(world.now))
    world.settle()
    assert world.state().manifest == "b" * 64


def restored(world: World, state: ModelState) -> None:
    world.checks.numbers["m"] = state.generation
    world.send(ModelRestored(world.now, entry(), state))
    world.send(RestoreEnded(world.now))


def test_a_state_that_does_not_fit_itself_is_not_trusted() -> None:
    good = serving(min_stages=2, max_stages=2).state()
    (pipeline,) = good.pipelines
    first, second = pipeline.stages
    holes = [
        replace(pipeline, stages=[first]),
        replace(pipeline, stages=[first, replace(second, blocks=(4, 6))]),
        replace(pipeline, stages=[first, replace(second, node=first.node)]),
        replace(pipeline, stages=[first, replace(second, blocks=(second.blocks[0], 99))]),
    ]
    for pipelines in ([hole] for hole in holes):
        world = World(restoring=True)
        world.join("a", "b")
        restored(world, replace(good, pipelines=pipelines))
        assert world.state().generation == good.generation + 1
    world = World(restoring=True)
    world.join("a", "b")
    restored(world, replace(good, pipelines=[pipeline, pipeline]))
    assert world.state().generation == good.generation + 1


def test_a_strategy_of_a_later_version() -> None:
    state = serving().state()
    world = World(restoring=True)
    world.join("a")
    world.send(ModelRestored(world.now, entry(strategy="magic"), state))
    world.send(RestoreEnded(world.now))
    assert world.state().state == "unserved"
    assert "strategy" in world.state().reason


@pytest.mark.parametrize("word", ["unserved", "failed"])
def test_what_was_not_served_is_tried_again(word: Any) -> None:
    world = World(restoring=True)
    world.join("a")
    restored(world, ModelState(state=word, model="m", generation=3, manifest="a" * 64))
    assert world.state().state == "loading"
    assert world.state().generation == 4


def test_figures_that_cannot_be_worked_out_anew_are_those_that_were_published() -> None:
    """The node says that it has less memory now: what runs on it goes on, until there is better."""
    state = serving(strategy="single").state()
    world = World(restoring=True)
    world.join("a", memory=11 * MB)
    world.checks.restored.add(("m", state.generation))
    restored(world, state)
    assert world.state().state == "serving"
    assert world.state().predicted.latency_s == pytest.approx(0.06, rel=0.02)


# --- revisions and numbers


def test_revisions_and_numbers_go_on_from_what_is_retained() -> None:
    world = World(first_revision=1000, restoring=True)
    assert world.cluster.first_revision == 1000
    assert world.cluster.settings == ClusterSettings()
    world.send(AssignmentSeen(world.now, "z", 900, (("m", 4),)))
    world.send(AssignmentSeen(world.now, "a", 5000))
    world.join("a")
    world.serve(entry())
    world.checks.numbers["m"] = 4
    actions = world.send(RestoreEnded(world.now))
    assert [(p.node, p.revision) for p in actions if isinstance(p, PushAssignment)] == [
        ("a", 5001),
        ("z", 5002),
    ], "even a clock that was set back does not make agents drop it; what is left behind is emptied"
    assert world.state().generation == 5


def test_our_own_assignments_that_come_again_change_nothing() -> None:
    world = serving()
    for node, agent in world.agents.items():
        assert world.send(AssignmentSeen(world.now, node, agent.revision)) == []
    ahead = world.send(AssignmentSeen(world.now, "a", 10**6))
    assert [(type(p), p.node) for p in ahead if isinstance(p, PushAssignment)] == [
        (PushAssignment, "a")
    ]


def test_births_come_again_with_a_reconnection() -> None:
    world = serving()
    for node in ("a", "b", "c"):
        assert world.send(NodeBorn(world.now, birth(node))) == []


def test_an_agent_that_is_ahead_of_us_is_overtaken() -> None:
    world = serving()
    agent = world.agents["a"]
    agent.revision = 5000
    pushed = [a for a in world.report("a") if isinstance(a, PushAssignment)]
    assert [(p.node, p.revision) for p in pushed] == [("a", 5001)]
    agent.revision = 2**60
    assert world.report("a") == []

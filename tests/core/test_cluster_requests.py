"""What operators ask for: serve, serve again, stop, re-plan, and when they hear the end of it."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.core.cluster_events import (
    DrainPipeline,
    Finish,
    ModelForgotten,
    ModelKnown,
    Progress,
    PublishModel,
    PushAssignment,
)
from shared.errors import ErrorCode
from tests.core.cluster_world import MB, World, entry


def serving(*names: str, **options: Any) -> World:
    world = World()
    world.join(*(names or ("a", "b")))
    world.serve(entry(**options))
    world.settle()
    assert world.state().state == "serving"
    return world


def test_the_asker_hears_how_it_goes_and_then_the_end_once() -> None:
    world = World()
    world.join("a")
    world.serve(entry(min_stages=2))
    world.wait(1.5)
    world.join("b")
    world.settle()
    world.wait(1)
    lines = [a for a in world.log if isinstance(a, Progress | Finish)]
    assert [a.text if isinstance(a, Progress) else a.error for a in lines] == [
        "unserved: waits for 2 nodes, 1 are here",
        "loading: node b joined; its first plan",
        None,
    ]
    first_publish = next(
        i
        for i, a in enumerate(world.log)
        if isinstance(a, PublishModel) and i > world.log.index(lines[1])
    )
    assert first_publish < world.log.index(lines[2]), "the state is out before the end is said"


def test_nodes_that_do_not_come_are_waited_for_a_little_and_then_missed_until_the_end() -> None:
    world = World()
    world.join("a")
    world.serve(entry(min_stages=3), timeout_s=10)
    world.wait(4)
    assert world.state().state == "serving"
    assert world.state().reason == "its first plan; 1 of the 3 stages asked for: 1 node is here"
    assert not world.finished()
    world.wait(8)
    assert [f.error for f in world.finished()] == [
        "served, but with 1 of the 3 stages asked for: 1 node is here"
    ]


def test_each_waits_until_a_deadline_of_its_own() -> None:
    world = World()
    world.serve(entry(), timeout_s=3)
    world.serve(entry(), timeout_s=30)
    world.wait(4)
    assert [f.transaction for f in world.finished()] == ["t1"]
    world.join("a")
    world.settle()
    assert [f.error is None for f in world.finished()] == [False, True]


def test_nothing_to_serve_it_until_the_deadline() -> None:
    world = World()
    world.serve(entry(), timeout_s=3)
    world.wait(4)
    (end,) = world.finished()
    assert end.error == "not served in time: no node is here; start one with `amp4ec agent`"
    assert end.code is ErrorCode.UNAVAILABLE
    world.join("a")
    world.settle()
    assert world.state().state == "serving", "it is still asked for"


@pytest.mark.parametrize(
    "options",
    [{"strategy": "guess"}, {"min_stages": 3, "max_stages": 2}, {"max_stages": 0}],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    world = World()
    world.join("a")
    world.serve(entry(**options))
    (end,) = world.finished()
    assert end.code is ErrorCode.BAD_INPUT
    assert end.error is not None
    assert "expected" in end.error
    assert not world.cluster.models
    running = serving()
    running.serve(entry(**options))
    assert running.state().options == entry().options


def test_a_billion_stages_are_as_many_as_there_can_be() -> None:
    world = World()
    world.join("a", "b")
    world.serve(entry(min_stages=10**9))
    world.wait(3)
    assert len(world.stages()[0]) == 2
    assert not world.finished()


def test_the_same_asked_for_again_is_done_at_once() -> None:
    world = serving()
    world.serve(entry())
    assert [f.error for f in world.finished()] == [None, None]
    assert world.state().generation == 1


def test_the_same_asked_for_by_several_while_it_loads() -> None:
    world = World()
    world.join("a")
    world.serve(entry())
    world.serve(entry())
    world.serve(entry(), transaction="t2")
    assert not world.finished()
    world.settle()
    assert [f.transaction for f in world.finished()] == ["t1", "t2"]
    world.wait(90)
    assert len(world.finished()) == 2


def test_something_else_replaces_it_make_before_break() -> None:
    world = serving()
    world.serve(entry(manifest="b"))
    assert world.state().state == "serving"
    assert world.state().manifest == "a" * 64
    known = [a for a in world.log if isinstance(a, ModelKnown)]
    assert len(known) == 1, "jobs are still for what runs"
    world.settle()
    assert world.state().manifest == "b" * 64
    known = [a for a in world.log if isinstance(a, ModelKnown)]
    assert [a.entry.manifest[0] for a in known] == ["a", "b"]
    assert "it replaces the model served before" in world.state().reason


def test_whoever_is_overtaken_hears_so() -> None:
    world = World()
    world.join("a")
    world.serve(entry())
    world.serve(entry(manifest="b"))
    assert [f.error for f in world.finished()] == ["something else was asked for under this name"]
    known = [a.entry.manifest[0] for a in world.log if isinstance(a, ModelKnown)]
    assert known == ["a", "b"], "nothing runs yet: jobs are for what comes"
    world.settle()
    assert world.state().manifest == "b" * 64


def test_back_to_what_still_runs() -> None:
    world = serving()
    world.serve(entry(manifest="b"))
    world.serve(entry())
    assert [f.error for f in world.finished()] == [
        None,
        "something else was asked for under this name",
        None,
    ]
    world.settle()
    assert world.state().generation == 1


def test_a_successor_that_fails_to_load_leaves_what_runs() -> None:
    world = serving("a")
    world.agents["a"].broken.add("b" * 64)
    world.serve(entry(manifest="b"))
    world.settle()
    assert world.finished()[-1].error == "could not be loaded on a: no memory"
    assert world.state().manifest == "a" * 64
    assert world.state().reason == "what was to replace it could not be loaded on a: no memory"
    assert world.wait(200) == []


def test_a_successor_that_fits_nowhere_leaves_what_runs() -> None:
    world = serving("a")
    world.serve(entry(manifest="b", weight=500 * MB), timeout_s=5)
    assert world.state().state == "serving"
    assert world.state().reason.startswith("the model served before stays:")
    world.wait(6)
    (_, end) = world.finished()
    assert end.error is not None
    assert end.error.startswith("not served in time: the model served before stays:")
    assert world.state().reason.startswith("what was to replace it was not served in time")
    assert world.state().manifest == "a" * 64
    assert world.wait(100) == []


def test_a_successor_for_which_a_node_comes_in_time() -> None:
    world = serving("a")
    world.serve(entry(manifest="b", weight=500 * MB))
    world.wait(2)
    world.join("z", memory=10**10)
    world.settle()
    assert world.state().manifest == "b" * 64
    assert world.finished()[-1].error is None


def test_what_ran_is_lost_while_its_successor_loads() -> None:
    world = serving("a", "b", strategy="single")
    world.serve(entry(manifest="b", min_stages=2))
    world.kill("a")
    world.settle()
    assert world.state().manifest == "b" * 64
    assert world.stages() == [["b"]]


# --- stop


def test_stop_unloads_after_the_last_job() -> None:
    world = serving("a", "b", min_stages=2)
    actions = world.stop()
    kinds = [type(a) for a in actions if isinstance(a, DrainPipeline | ModelForgotten)]
    assert kinds == [DrainPipeline, ModelForgotten]
    assert PublishModel("m") in actions
    assert isinstance(actions[-1], Finish)
    assert not any(isinstance(a, PushAssignment) for a in actions), "jobs are still in it"
    world.drains()
    assert all(not agent.stages for agent in world.agents.values())


def test_stop_while_it_loads() -> None:
    world = World()
    world.join("a")
    world.serve(entry())
    actions = world.stop()
    assert world.finished()[0].error == "it was stopped"
    assert [f.error for f in world.finished("stop")] == [None]
    assert [a.stages for a in actions if isinstance(a, PushAssignment)] == [()]
    world.report("a")


def test_stop_of_what_is_not_served() -> None:
    world = serving()
    world.stop("z")
    (end,) = world.finished("stop")
    assert end.error == "z is not served; served are: m"
    assert end.code is ErrorCode.UNKNOWN_MODEL


def test_generations_go_on_after_stop_and_serve() -> None:
    world = serving()
    world.stop()
    world.serve(entry())
    world.settle()
    assert world.state().generation == 2
    assert all(len(agent.stages) == 1 for agent in world.agents.values())


def test_two_models_side_by_side() -> None:
    world = serving()
    world.serve(entry("n", manifest="c"))
    world.settle()
    assert {ref.entry.name for ref in world.agents["a"].stages} == {"m", "n"}
    world.stop("m")
    world.settle()
    assert {ref.entry.name for ref in world.agents["a"].stages} == {"n"}
    assert world.state("n").state == "serving"


# --- re-plan


def test_a_plan_asked_for_needs_no_gain() -> None:
    world = serving("a", "b", strategy="single")
    world.calibrate("b", 1.1)
    world.wait(60)
    assert world.stages() == [["a"]], "a tenth is not worth a switch"
    world.replan()
    world.settle()
    assert world.stages() == [["b"]]
    assert world.state().reason.startswith("a new plan was asked for; predicted gain 1")
    assert [f.error for f in world.finished("replan")] == [None]
    world.replan()
    world.settle()
    assert world.state().generation == 2


def test_a_plan_asked_for_while_one_loads_comes_after_it() -> None:
    world = World()
    world.join("a", "b")
    world.serve(entry(strategy="single"))
    world.calibrate("b", 1.1)
    world.join("c")
    world.replan()
    world.settle()
    assert world.stages() == [["b"]]


def test_no_plan_to_be_had() -> None:
    world = World()
    world.replan()
    world.serve(entry())
    world.replan()
    errors = [f.error for f in world.finished("replan")]
    assert errors == ["m is not served", "no node is here; start one with `amp4ec agent`"]


def test_the_state_shows_what_would_be_chosen_freely_and_what_else_there_was() -> None:
    world = serving("a", "b", min_stages=2)
    state = world.state()
    assert state.free_choice is not None
    assert state.free_choice.text == "a[0:6] + b[0:6]"
    assert any(row.text.startswith("single: a[0:6]") for row in state.alternatives)
    assert world.cluster.model_state("z", state.measured) is None
    assert serving().state().free_choice is None
    small = World()
    small.join("a", memory=12 * MB)
    small.serve(entry(max_stages=1))
    assert small.state().free_choice is None

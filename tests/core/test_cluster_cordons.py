"""Nodes that an operator takes out of plans: cordoned, drained, and used again."""

from __future__ import annotations

from orchestrator.core.cluster_events import (
    CordonSeen,
    DrainPipeline,
    Finish,
    Progress,
    PublishCordon,
    PushAssignment,
)
from shared.errors import ErrorCode
from shared.messages.cordon import Cordon
from tests.core.cluster_world import MB, World, entry
from tests.core.test_cluster_requests import serving


def used(world: World, name: str = "m") -> set[str]:
    return {node for pipeline in world.stages(name) for node in pipeline}


def ends(world: World, verb: str) -> list[str | None]:
    return [finish.error for finish in world.finished(verb)]


def test_what_runs_on_a_drained_node_moves_and_the_end_is_said_when_it_holds_nothing() -> None:
    world = serving("a", "b", min_stages=2, max_stages=2)
    world.join("c")
    world.settle()
    gone = min(used(world))
    before = len(world.log)
    world.drain(gone, reason="new power supply")
    assert ends(world, "drain") == []
    assert world.told("node_draining")[0].text == f"node {gone} is to be drained: new power supply"
    world.settle()
    assert used(world) == {"a", "b", "c"} - {gone}
    assert ends(world, "drain") == [None]
    assert world.state().state == "serving"
    log = world.log[before:]
    last = max(i for i, a in enumerate(log) if isinstance(a, PushAssignment) and a.node == gone)
    assert log[last].stages == (), "told to hold nothing"  # type: ignore[union-attr]
    end = next(i for i, a in enumerate(log) if isinstance(a, Finish) and a.verb == "drain")
    drained = next(i for i, a in enumerate(log) if isinstance(a, DrainPipeline))
    assert drained < last < end, "the old stages go when their jobs are out, and then it is said"


def test_a_model_that_fits_nowhere_else_stays_and_the_asker_is_told_why() -> None:
    world = serving("a")
    world.drain("a", timeout_s=5)
    lines = [a.text for a in world.log if isinstance(a, Progress) and a.verb == "drain"]
    said = (
        "m still runs on a (of 1 node(s) none can load it: each lacks the runtime 'torch', "
        "is cordoned, or failed to load the model a moment ago)"
    )
    assert lines == [said]
    world.wait(6)
    assert ends(world, "drain") == [f"not drained in time: {said}"]
    assert world.state().state == "serving"
    world.join("b")
    world.settle()
    assert used(world) == {"b"}, "it moves as soon as it can"


def test_a_node_that_is_only_cordoned_keeps_what_it_has_and_gets_nothing_else() -> None:
    world = serving("a")
    world.cordon("a")
    assert ends(world, "cordon") == [None]
    world.serve(entry("n", manifest="c"))
    world.settle()
    assert world.state("n").state == "unserved"
    assert used(world) == {"a"}
    world.uncordon("a")
    world.settle()
    assert used(world, "n") == {"a"}


def test_a_drained_node_takes_part_again_after_it_was_uncordoned() -> None:
    world = serving("a", "b", min_stages=2)
    world.drain("b", timeout_s=3)
    world.settle()
    assert used(world) == {"a"}
    assert world.state().reason.endswith("1 of the 2 stages asked for: 1 of 2 nodes can load it")
    world.uncordon("b")
    world.settle()
    assert used(world) == {"a", "b"}
    assert world.told("node_uncordoned")


def test_memory_that_is_short_elsewhere_is_named() -> None:
    world = World()
    world.join("a")
    world.serve(entry(weight=20 * MB))
    world.settle()
    world.join("small", memory=20 * MB)
    world.drain("a", timeout_s=2)
    world.wait(3)
    (error,) = ends(world, "drain")
    assert error is not None
    assert "small" in error or "MB" in error


def test_a_node_that_nobody_knows() -> None:
    world = serving("a", "b")
    for ask, verb in (
        (world.cordon, "cordon"),
        (world.drain, "drain"),
        (world.uncordon, "uncordon"),
    ):
        ask("c")
        (end,) = world.finished(verb)
        assert (end.error, end.code) == (
            "there is no node 'c'; there are: a, b",
            ErrorCode.BAD_INPUT,
        )
    assert not world.checks.cordons


def test_the_same_once_more_changes_nothing() -> None:
    world = serving("a", "b")
    world.cordon("b")
    again = world.cordon("b")
    assert not [a for a in again if isinstance(a, PublishCordon)]
    assert ends(world, "cordon") == [None, None]
    world.uncordon("b")
    assert not [a for a in world.uncordon("b") if isinstance(a, PublishCordon)]
    assert ends(world, "uncordon") == [None, None]


def test_who_waits_hears_of_it_when_somebody_else_calls_it_off() -> None:
    world = serving("a")
    world.drain("a")
    world.uncordon("a")
    assert ends(world, "drain") == ["node a was not drained: it was uncordoned"]
    world.drain("a")
    world.cordon("a")
    assert ends(world, "drain")[1:] == ["node a was not drained: it is only cordoned now"]


def test_whoever_leads_next_keeps_to_it() -> None:
    world = serving("a", "b", "c")
    world.drain("b")
    world.settle()
    world.restart({entry().manifest: entry()})
    world.settle()
    world.replan()
    world.settle()
    assert used(world) == {"a", "c"}


def test_a_broker_that_remembers_what_was_taken_back_is_told_again() -> None:
    world = serving("a", "b")
    old = Cordon(node="b", drain=True, at="then")
    assert world.send(CordonSeen(world.now, "b", old)) == [PublishCordon("b", None)]
    world.cordon("b")
    assert world.send(CordonSeen(world.now, "b", old)) == []


def test_a_node_that_is_forgotten_is_forgotten_as_a_whole() -> None:
    world = serving("a", "b")
    world.cordon("b")
    world.kill("b", "offline")
    world.wait(world.cluster.settings.forget_after_s, settle=False, step_s=30)
    assert "b" not in world.cluster.nodes
    assert not world.checks.cordons

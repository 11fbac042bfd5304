"""Who is there: births, deaths, leases, incarnations, and what becomes of the models."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.core.cluster_events import (
    AskNode,
    DrainPipeline,
    LosePipeline,
    NodeBorn,
    NodeDied,
    NodeHeard,
    NodeReported,
    PushAssignment,
    StageMeasured,
    Tell,
)
from orchestrator.core.nodes import Node
from shared.messages.node import Hardware
from shared.messages.stage import Forgery, Report
from tests.core.cluster_world import MB, World, birth, death, entry, telemetry


def three(**options: Any) -> World:
    """Three nodes and a model in three stages."""
    world = World()
    world.join("a", "b", "c")
    world.serve(entry(min_stages=3, **options))
    world.settle()
    assert world.stages() == [["a", "b", "c"]]
    return world


def pushes(actions: list[Any]) -> dict[str, int]:
    return {a.node: len(a.stages) for a in actions if isinstance(a, PushAssignment)}


def test_a_birth_is_told_and_answered_with_an_assignment() -> None:
    world = World()
    tell, push = world.join("a", cpu=0.5)
    assert tell == Tell("node_joined", "node a joined: 0.5 CPUs, 1.0 GB, torch 2", node="a")
    assert push == PushAssignment("a", 1, ())
    assert world.send(NodeBorn(world.now, birth("a", cpu=0.5))) == []


def test_a_node_that_says_nothing_of_its_hardware_is_not_planned_for() -> None:
    world = World()
    world.join("a", hardware=None)
    world.join("b", runtimes={"onnx": "1"})
    world.serve(entry())
    assert world.state().state == "unserved"
    assert "of 2 node(s) none can load it" in world.state().reason
    assert world.told("node_joined")[0].text == "node a joined"


@pytest.mark.parametrize("state", ["lost", "offline"])
def test_after_a_loss_the_model_is_served_with_fewer_and_then_as_asked_again(state: Any) -> None:
    world = three()
    actions = world.kill("b", state)
    assert LosePipeline("m", "m-0", 1, "b" if state == "lost" else None) in actions
    assert pushes(actions)["b"] == 0, "the retained assignment of a dead node becomes empty"
    assert world.state().state == "loading"
    world.settle()
    assert world.stages() == [["a", "c"]]
    assert world.state().reason.endswith("2 of the 3 stages asked for: 2 nodes are here")
    world.kill("c")
    world.settle()
    assert world.state().reason.endswith("1 of the 3 stages asked for: 1 node is here")
    world.join("b", "c")
    world.settle()
    assert len(world.stages()[0]) == 3
    assert "asked for are possible now" in world.state().reason
    assert world.wait(60) == []


def test_a_second_of_three_is_better_than_one() -> None:
    world = World()
    world.join("a")
    world.serve(entry(min_stages=3))
    world.wait(3)
    world.join("b")
    assert world.state().reason.endswith("1 of the 3 stages asked for: another plan loads")
    world.settle()
    assert "; 2 of the 3 stages asked for are possible now; 2 of" in world.state().reason


def test_more_nodes_than_stages_because_of_their_memory() -> None:
    world = World()
    world.join("a", "b")
    world.join("tiny", memory=5 * MB)
    world.serve(entry(min_stages=3))
    world.settle()
    assert world.stages() == [["a", "b"]]
    assert world.state().reason.endswith(
        "2 of the 3 stages asked for: no plan of more fits the 3 nodes"
    )
    world.wait(20)
    world.join("tiny2", memory=5 * MB)
    world.settle()
    assert world.state().generation == 1


def test_the_last_node_leaves_and_another_comes() -> None:
    world = World()
    world.join("a")
    world.serve(entry())
    world.settle()
    world.kill("a")
    assert world.state().state == "unserved"
    assert world.state().reason == "no node is here; start one with `amp4ec agent`"
    assert world.wait(10) == []
    world.join("b")
    world.settle()
    assert world.stages() == [["b"]]
    assert "nothing ran any more" in world.state().reason


def test_a_late_will_and_a_late_birth_of_an_earlier_life_change_nothing() -> None:
    world = three()
    world.join("b")
    world.settle()
    late = world.now
    assert world.send(NodeDied(late, death("b", 1))) == []
    assert world.send(NodeBorn(late, birth("b", 1))) == []
    assert world.send(NodeHeard(late, telemetry("b", 1))) == []
    assert world.send(NodeDied(late, death("z", 1))) == []
    assert world.send(NodeHeard(late, telemetry("z", 1))) == []


def test_a_will_of_a_later_life_ends_the_earlier_one_too() -> None:
    world = three()
    actions = world.send(NodeDied(world.now, death("b", 7)))
    assert LosePipeline("m", "m-0", 1, "b") in actions
    assert world.send(NodeBorn(world.now, birth("b", 1))) == []


def test_a_node_starts_anew_before_its_will_came() -> None:
    world = three()
    actions = world.join("b")
    assert [a.text for a in actions if isinstance(a, Tell)][:2] == [
        "node b started anew",
        "node b joined: 1 CPUs, 1.0 GB, torch 2",
    ]
    assert LosePipeline("m", "m-0", 1, "b") in actions
    world.settle()
    assert world.stages() == [["a", "b", "c"]]
    assert world.state().generation == 2


def test_a_lease_runs_out_and_telemetry_comes_again() -> None:
    world = three()
    world.agents["b"].mute = True
    world.wait(3.5)
    assert world.state().generation == 1
    actions = world.wait(1)
    assert world.told("node_left")[0].reason == "is silent for 4.0 s and does not answer"
    assert LosePipeline("m", "m-0", 1) in actions, "it may be alive: nothing is blamed for it"
    assert world.stages() == [["a", "c"]]
    world.agents["b"].mute = False
    world.wait(1)
    assert world.told("node_joined")[-1].text == "node b answers again"
    assert world.stages() == [["a", "b", "c"]]


def test_a_report_is_a_sign_of_life_as_well() -> None:
    world = three()
    world.agents["b"].mute = True
    world.wait(5)
    assert not world.cluster.nodes["b"].alive
    world.report("b")
    assert world.cluster.nodes["b"].alive


def test_all_that_are_silent_are_lost_together() -> None:
    world = three()
    for name in ("a", "b"):
        world.agents[name].mute = True
    world.wait(6)
    assert [tell.node for tell in world.told("node_left")] == ["a", "b"]
    (again,) = world.told("replanned")[1:]
    assert again.text.startswith("m generation 2: c[0:6] because node a is silent")


def test_our_own_stall_is_not_blamed_on_the_nodes() -> None:
    world = three()
    world.wait(1)
    assert world.tick(30.0) == [AskNode("a"), AskNode("b"), AskNode("c")]
    assert world.wait(5) == []
    for agent in world.agents.values():
        agent.mute = True
    world.wait(5)
    assert len(world.told("node_left")) == 3


def calibrated_pair() -> World:
    """Two nodes whose speed is known, so that nothing keeps their event loops busy."""
    world = World()
    world.join("a", "b", speed=1.0)
    world.serve(entry(min_stages=2))
    world.settle()
    world.wait(3, step_s=0.25)
    return world


def test_a_silent_node_is_asked_and_without_an_answer_it_is_lost() -> None:
    world = calibrated_pair()
    world.agents["b"].mute = True
    assert world.wait(1.0, step_s=0.25) == []
    assert world.wait(0.25, step_s=0.25) == [AskNode("b")]
    assert world.wait(0.5, step_s=0.25) == []
    world.wait(0.25, step_s=0.25)
    assert world.told("node_left")[0].reason == "is silent for 2.0 s and does not answer"


def test_who_answers_is_asked_again_only_when_telemetry_stays_away() -> None:
    world = calibrated_pair()
    asked = [world.tick(0.25) for _ in range(40)]
    assert [action for actions in asked for action in actions] == [
        AskNode(name) for _ in range(8) for name in ("a", "b")
    ]
    assert world.told("node_left") == []


def test_a_question_that_the_broker_does_not_pass_on_blames_nobody_and_is_repeated() -> None:
    world = calibrated_pair()
    for agent in world.agents.values():
        agent.mute = True
    asked = [world.tick(0.25, broker=False) for _ in range(40)]
    names = [action.node for actions in asked for action in actions if isinstance(action, AskNode)]
    assert names.count("a") == names.count("b") == 12
    assert world.told("node_left") == []
    world.pass_questions()
    for _ in range(2):
        world.tick(0.25)
    assert world.told("node_left") == [], "they have their time from when it was passed on"
    world.tick(0.25)
    assert [tell.node for tell in world.told("node_left")] == ["a", "b"]


def test_an_answer_that_waited_while_we_stood_still_counts() -> None:
    world = calibrated_pair()
    world.agents["b"].mute = True
    world.wait(1.25, step_s=0.25)
    actions = world.tick(20.0)
    assert not [a for a in actions if isinstance(a, Tell)], "nothing was read in between"
    world.agents["b"].mute = False
    world.report("b")
    world.wait(5, step_s=0.25)
    assert world.told("node_left") == []


def test_who_was_told_to_load_has_its_whole_lease_until_it_reports_on_it() -> None:
    world = calibrated_pair()
    world.serve(entry("n", min_stages=2))
    world.agents["b"].mute = True
    world.wait(3.25, step_s=0.25)
    assert world.told("node_left") == []
    world.wait(1, step_s=0.25)
    assert [tell.node for tell in world.told("node_left")] == ["b"]


def test_a_short_network_cut() -> None:
    """The will came, the agent did not die: it connects again with the same incarnation."""
    world = three()
    world.send(NodeDied(world.now, death("b")))
    # Between its connection and its birth, what it says does not count.
    assert world.send(NodeHeard(world.now, telemetry("b"))) == []
    actions = world.send(NodeBorn(world.now, world.agents["b"].state))
    assert "b" in pushes(actions), "it is told what to hold, whatever it holds"
    world.settle()
    assert world.stages() == [["a", "b", "c"]]


def test_a_node_that_nothing_runs_on_leaves_without_a_word_about_the_model() -> None:
    world = World()
    world.join("a", "b")
    world.serve(entry(max_stages=1, strategy="single"))
    world.settle()
    reason, count = world.state().reason, len(world.checks.published)
    world.kill("b")
    assert (world.state().reason, len(world.checks.published)) == (reason, count)


def test_copies_go_on_when_one_is_lost() -> None:
    world = World()
    world.join("a", "b", "c")
    world.serve(entry())
    world.settle()
    assert world.stages() == [["a"], ["b"], ["c"]]
    actions = world.kill("b")
    assert [a for a in actions if isinstance(a, LosePipeline | DrainPipeline)] == [
        LosePipeline("m", "m-1", 1, "b")
    ]
    world.settle()
    assert world.state().generation == 1, "what is left is the best plan for who is left"
    assert [p.pipeline for p in world.state().pipelines] == ["m-0", "m-2"]
    assert world.state().predicted.throughput_per_s == pytest.approx(2 / 0.06, rel=0.02)
    world.join("b")
    world.settle()
    assert len(world.stages()) == 3


# --- speed


def test_a_calibration_while_it_loads_or_just_after_moves_nothing() -> None:
    world = World()
    world.join("a", "b", "c")
    world.serve(entry(min_stages=3))
    world.calibrate("a", 0.5)
    world.settle()
    world.calibrate("b", 0.6)
    world.wait(20)
    assert world.state().generation == 1
    assert [t.node for t in world.told("node_calibrated")] == ["a", "b"]
    world.wait(40)
    assert world.state().generation == 2
    assert world.state().reason.startswith("what is measured has changed; predicted gain")
    assert world.wait(120) == []


def test_a_calibration_of_an_idle_cluster_counts_at_once() -> None:
    world = World()
    world.join("a", "b", runtimes={})
    world.serve(entry())
    world.settle()
    world.wait(31)
    state = birth("a", 1, speed=1.0)
    world.agents["a"].state = state
    world.send(NodeBorn(world.now, state))
    world.settle()
    assert world.stages() == [["a"]]
    world.wait(31)
    count = len(world.log)
    world.calibrate("a", 2.0)
    assert len(world.log) == count + 1


def test_a_new_calibration_makes_what_was_measured_against_the_old_one_void() -> None:
    world = World()
    world.join("a")
    world.serve(entry())
    world.settle()
    for _ in range(5):
        world.send(StageMeasured(world.now, "m", "m-0", 1, 0, "a", 10, 0.12, 0.12))
    slow = world.cluster.nodes["a"].profile(entry())
    assert slow is not None
    assert slow.speed == pytest.approx(0.5, rel=0.1)
    world.send(NodeBorn(world.now, birth("a", speed=0.5)))
    calibrated = world.cluster.nodes["a"].profile(entry())
    assert calibrated is not None
    assert calibrated.speed == pytest.approx(0.5), "and not half of that"


def test_another_memory_limit_is_planned_for_at_once() -> None:
    world = World()
    world.join("a", "b")
    world.serve(entry(strategy="single"))
    world.settle()
    assert world.stages() == [["a"]]
    small = Hardware(cpu=1.0, cores=1, memory_bytes=12 * MB, architecture="x")
    actions = world.send(NodeBorn(world.now, birth("a", hardware=small)))
    assert actions[0] == Tell("node_changed", "node a changed", node="a")
    assert "the present plan cannot run" in world.told("replanned")[-1].text
    world.settle()
    assert world.stages() == [["b"]]


def test_a_node_that_says_nonsense_is_left_out() -> None:
    hardware = Hardware(cpu=float("inf"), cores=1, memory_bytes=MB, architecture="x")
    assert Node(birth("a", hardware=hardware), 0.0).profile(entry()) is None


def test_reports_of_a_node_that_nobody_knows() -> None:
    world = World()
    world.join("a")
    report = world.agents["a"].report()
    other = World()
    assert other.send(NodeReported(other.now, report)) == []


def test_what_a_node_does_not_obey_is_told_once_per_life_and_kind() -> None:
    world = World()
    world.join("a")

    def report(*forged: Forgery, incarnation: int = 1) -> list[Any]:
        said = Report(node="a", incarnation=incarnation, revision=1, forged=list(forged))
        return [
            action
            for action in world.send(NodeReported(world.now, said))
            if isinstance(action, Tell)
        ]

    unsigned = Forgery(topic="assignment", reason="unsigned", count=1)
    (told,) = report(unsigned)
    assert (told.event, told.node, told.reason) == ("forged_assignment_refused", "a", "unsigned")
    assert "does the orchestrator have a token" in told.text
    assert report(Forgery(topic="assignment", reason="unsigned", count=9)) == []
    forged = Forgery(topic="orchestrator_state", reason="bad_signature", count=2)
    assert [told.reason for told in report(unsigned, forged)] == ["bad_signature"]
    world.join("a")
    assert [told.reason for told in report(unsigned, incarnation=2)] == ["unsigned"]

"""What telemetry says of links and memory: planned with, and refused where it makes no sense."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.core.cluster_events import MessageRefused, NodeBorn, NodeHeard
from orchestrator.core.condition import MEMORY_HOLD_S, SAMPLES, Condition
from orchestrator.core.nodes import LINK_BYTES_PER_S, Node
from orchestrator.core.sanity import MOST_NODES, STRANGE_AFTER, Complaints
from shared.messages.node import Hardware, StageTelemetry
from shared.profile import NodeProfile
from tests.core.cluster_world import MB, World, birth, entry, telemetry
from tests.core.plan_cases import model


def three(**options: Any) -> World:
    world = World()
    world.join("a", "b", "c")
    world.serve(entry(**options))
    world.settle()
    return world


def profiled(world: World, name: str) -> NodeProfile:
    profile = world.cluster.nodes[name].profile(world.served().entry)
    assert profile is not None
    return profile


# --- links


def test_a_link_is_a_gigabits_worth_until_it_is_measured() -> None:
    node = Node(birth("a"), 0.0)
    profile = node.profile(entry())
    assert profile is not None
    assert profile.up_bytes_per_s == profile.down_bytes_per_s == LINK_BYTES_PER_S
    node.condition.take(0.0, telemetry("a", up_bytes_per_s=2e6))
    profile = node.profile(entry())
    assert profile is not None
    assert (profile.up_bytes_per_s, profile.down_bytes_per_s) == (2e6, LINK_BYTES_PER_S)


def test_one_strange_measurement_of_a_link_says_nothing() -> None:
    condition = Condition()
    for rate in (10e6, 10e6, 1.0, 10e6, 1e12):
        condition.take(0.0, telemetry("a", up_bytes_per_s=rate, down_bytes_per_s=rate))
    assert condition.up_bytes_per_s == condition.down_bytes_per_s == 10e6
    condition.take(0.0, telemetry("a"))
    assert condition.up_bytes_per_s == 10e6, "one that is not measured is what it was"


def large_tensors() -> Any:
    """Six equal blocks; cutting in the middle sends 100 KB, anywhere else 2 MB."""
    wide = entry(min_stages=2, max_stages=2)
    wide = type(wide)(
        **{
            **{name: getattr(wide, name) for name in wide.__slots__},
            "profile": model(
                [0.01] * 6,
                [2 * MB, 2 * MB, 100_000, 2 * MB, 2 * MB],
                weights=[MB] * 6,
                runtime_bytes=10 * MB,
            ),
        }
    )
    return wide


def test_no_large_tensor_is_sent_over_a_link_that_has_become_slow() -> None:
    """Unequal nodes are best cut unevenly, until the large tensor there meets a slow link."""
    world = World()
    world.join("a", cpu=1.0)
    world.join("b", cpu=0.5)
    world.serve(large_tensors())
    world.settle()
    assert [s.blocks for s in world.state().pipelines[0].stages] == [(0, 2), (2, 6)]
    world.wait(40)
    assert world.state().generation == 1
    world.agents["b"].figures = {"up_bytes_per_s": 20e6, "down_bytes_per_s": 20e6}
    world.wait(60)
    assert world.state().generation == 2
    assert [s.blocks for s in world.state().pipelines[0].stages] == [(0, 3), (3, 6)]
    assert "predicted gain" in world.state().reason
    world.wait(300)
    assert world.state().generation == 2


def test_links_are_remembered_over_lives() -> None:
    world = three()
    world.agents["a"].figures = {"up_bytes_per_s": 1e6}
    world.wait(5)
    world.join("a")
    assert profiled(world, "a").up_bytes_per_s == 1e6


# --- memory


def test_memory_is_the_least_of_the_last_minutes() -> None:
    condition = Condition()
    seen: list[int | None] = []
    history = [100] * 10 + [60] * 10 + [100] * 200 + [80] * 10
    for second, available in enumerate(history):
        condition.take(float(second), telemetry("a", memory_available_bytes=available))
        seen.append(condition.memory_bytes)
    assert seen[9] == 100
    assert seen[13] == 60, "the median of the last samples"
    last = 9 + 10 + SAMPLES // 2
    held = int(last + MEMORY_HOLD_S)
    assert seen[held] == 60
    assert seen[held + 1] == 100
    assert seen[-1] == 80


def test_memory_that_falls_is_said_once_however_slowly() -> None:
    condition = Condition()
    told = [
        (second, condition.memory_bytes)
        for second in range(100)
        if condition.take(float(second), telemetry("a", memory_available_bytes=1000 - second))
    ]
    # The median of five lags by two seconds, and each step is a twentieth of what was said before.
    assert told == [(53, 949)]


def test_a_plan_leaves_a_node_whose_memory_is_taken_by_others() -> None:
    world = three(strategy="single")
    (node,) = world.stages()[0]
    world.agents[node].figures = {"memory_available_bytes": 12 * MB}
    world.wait(SAMPLES)
    (short,) = world.told("memory_short")
    assert short.node == node
    assert f"node {node} has 12 MB left for us: " in short.text
    assert world.stages() != [[node]]
    assert "the present plan cannot run" in world.state().reason
    generation = world.state().generation
    # Others let go of it and take it again, over and over: nobody follows.
    for _ in range(10):
        world.agents[node].figures = {"memory_available_bytes": 1000 * MB}
        world.wait(50)
        world.agents[node].figures = {"memory_available_bytes": 12 * MB}
        world.wait(10)
    assert world.state().generation == generation


def test_memory_that_is_short_of_nothing_changes_nothing() -> None:
    world = three()
    before = len(world.log)
    world.agents["a"].figures = {"memory_available_bytes": 200 * MB}
    assert world.wait(60) == []
    assert len(world.log) == before


def test_where_nobody_else_has_memory_the_plan_stays_and_it_is_said() -> None:
    world = World()
    world.join("a")
    world.serve(entry())
    world.settle()
    world.agents["a"].figures = {"memory_available_bytes": 12 * MB}
    world.wait(60)
    assert len(world.told("memory_short")) == 1
    assert world.stages() == [["a"]]


# --- nonsense


BAD_STAGE = StageTelemetry(
    model="m", pipeline="m-0", generation=1, stage=0, items=1, queue=0,
    compute_s=math.inf, cpu_s=0.0, queue_s=0.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("figures", "named"),
    [
        ({"cpu_percent": math.inf}, "cpu_percent is inf"),
        ({"memory_limit_bytes": 0}, "memory_limit_bytes is 0"),
        ({"stability": 2.0}, "stability is 2.0"),
        ({"up_bytes_per_s": math.inf}, "up_bytes_per_s is inf"),
        ({"round_trip_s": math.inf}, "round_trip_s is inf"),
        ({"stages": [BAD_STAGE]}, "compute_s of m-0/0 is inf"),
    ],
)
def test_telemetry_that_cannot_be_true_is_refused_and_said_once(
    figures: dict[str, Any], named: str
) -> None:
    world = three()
    good = world.cluster.nodes["a"].telemetry
    figures = figures | {"down_bytes_per_s": 1.0, "memory_available_bytes": 1}
    world.agents["a"].figures = figures
    world.wait(60)
    (told,) = world.told("telemetry_refused")
    assert told.node == "a"
    assert told.reason is not None
    assert named in told.reason
    assert world.cluster.nodes["a"].alive, "it lives all the same"
    assert world.cluster.nodes["a"].telemetry is good
    assert profiled(world, "a").down_bytes_per_s == LINK_BYTES_PER_S
    assert world.state().generation == 1
    world.join("a")
    world.agents["a"].figures = figures
    world.wait(5)
    assert len(world.told("telemetry_refused")) == 2, "another life, another word"


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: hardware(memory_bytes=0), "memory_bytes is 0"),
        (lambda: hardware(cpu=math.inf), "cpu is inf"),
        (lambda: hardware(cpu=1e9), "cpu is 1e+09"),
        (lambda: {"power_w": math.inf}, "power_w is inf"),
    ],
)
def test_a_birth_that_cannot_be_true_is_said_and_not_planned_for(
    make: Callable[[], dict[str, Any]], named: str
) -> None:
    world = World()
    world.join("a", **make())
    world.send(NodeBorn(world.now, world.agents["a"].state))
    (told,) = world.told("birth_refused")
    assert told.node == "a"
    assert named in told.text
    world.serve(entry())
    world.wait(5)
    assert world.state().state == "unserved"
    world.join("b")
    world.settle()
    assert world.stages() == [["b"]]


def hardware(**values: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"cpu": 1.0, "cores": 1, "memory_bytes": MB, "architecture": "x"}
    return {"hardware": Hardware(**(base | values))}


def test_a_message_that_cannot_be_read_is_said_once_and_may_be_a_sign_of_life() -> None:
    world = three()
    for _ in range(20):
        for name, incarnation in (("a", 1), ("b", None), ("c", 7)):
            refused = MessageRefused(world.now, name, "telemetry", "not JSON", incarnation)
            world.send(refused)
        world.agents["a"].mute = world.agents["b"].mute = world.agents["c"].mute = True
        world.wait(1)
    assert [tell.node for tell in world.told("telemetry_refused")] == ["a", "b", "c"]
    alive = {name: node.alive for name, node in world.cluster.nodes.items()}
    assert alive == {"a": True, "b": False, "c": False}


def test_a_life_that_nobody_knows_of_is_said_when_it_goes_on() -> None:
    world = three()
    world.send(NodeHeard(world.now, telemetry("new")))
    world.join("new")
    for _ in range(STRANGE_AFTER - 1):
        world.send(NodeHeard(world.now, telemetry("new", 7)))
        world.send(NodeHeard(world.now, telemetry("ghost")))
    assert world.told("telemetry_refused") == []
    for _ in range(10):
        world.send(NodeHeard(world.now, telemetry("new", 7)))
        world.send(NodeHeard(world.now, telemetry("ghost")))
    new, ghost = world.told("telemetry_refused")
    assert "incarnation 7, its birth said 1: does another agent have this name?" in new.text
    assert "no birth of it is known" in ghost.text


def test_a_flood_of_names_is_not_remembered() -> None:
    complaints = Complaints()
    said = [complaints.is_new(f"n{index}", 1, "birth") for index in range(2 * MOST_NODES)]
    assert sum(said) == MOST_NODES
    strange = [complaints.is_strange(f"n{index % MOST_NODES}") for index in range(3 * MOST_NODES)]
    assert sum(strange) == MOST_NODES
    assert not any(complaints.is_strange("one more") for _ in range(10))

"""What becomes of plans, told once each; disks that are full; transfers that take long."""

from __future__ import annotations

import math
from dataclasses import replace

from orchestrator.core.cluster import ClusterSettings
from orchestrator.core.cluster_events import DeploymentEnded, NodeReported
from shared.messages.stage import StageReport
from tests.core.cluster_world import MB, World, entry, stage_report


def ended(world: World) -> list[DeploymentEnded]:
    return [action for action in world.log if isinstance(action, DeploymentEnded)]


def say(world: World, name: str, **figures: object) -> None:
    """A node's report, with more in it than that it is ready."""
    agent = world.agents[name]
    stages: list[StageReport] = []
    for ref in agent.stages:
        plain = stage_report(ref, "ready" if "state" not in figures else "fetching")
        stages.append(replace(plain, **figures))  # type: ignore[arg-type]
    world.send(NodeReported(world.now, replace(agent.report(), stages=stages)))


def test_a_plan_that_runs_is_told_with_what_its_nodes_said() -> None:
    world = World()
    world.join("a", "b")
    world.serve(entry(min_stages=2))
    say(world, "a", fetched_bytes=1000, fetch_s=0.5, load_s=0.1)
    assert not ended(world)
    world.now += 3.0
    say(world, "b", fetched_bytes=500)
    (deployment,) = ended(world)
    assert deployment.active
    assert deployment.took_s == 3.0
    assert deployment.generation == 1
    assert "asked for" in deployment.cause
    assert [(load.node, load.blocks) for load in deployment.stages] == [
        ("a", (0, 3)),
        ("b", (3, 6)),
    ]
    said = [load.report for load in deployment.stages]
    assert said[0] is not None
    assert (said[0].fetched_bytes, said[0].fetch_s, said[0].load_s) == (1000, 0.5, 0.1)
    assert said[1] is not None
    assert said[1].fetched_bytes == 500


def test_each_end_has_its_reason() -> None:
    fates: list[str] = []
    for end in ("lost", "stopped", "replaced", "failed", "late"):
        world = World(ClusterSettings(load_timeout_s=10.0))
        world.join("a", "b")
        world.serve(entry(min_stages=2))
        match end:
            case "lost":
                world.kill("b")
            case "stopped":
                world.stop()
            case "replaced":
                world.serve(entry(manifest="b", min_stages=2))
            case "failed":
                world.agents["b"].broken.add("m")
                world.report("b")
            case _:
                world.wait(11.0, settle=False)
        first = ended(world)[0]
        assert not first.active
        fates.append(first.fate)
    assert fates == [
        "node b is gone",
        "the model was stopped",
        "something else was asked for under this name",
        "could not be loaded on b: no memory",
        "could not be loaded on a: not ready after 10 s; could not be loaded on b: not ready after 10 s",
    ]


def test_a_transfer_that_goes_on_is_waited_for() -> None:
    """However long it takes; one that stands still is not."""
    world = World(ClusterSettings(load_timeout_s=10.0))
    world.join("a")
    world.serve(entry(), timeout_s=1000.0)
    for step in range(6):
        say(world, "a", state="fetching", here_bytes=step * MB)
        world.wait(8.0, settle=False)
    assert world.state().generation == 1
    assert not ended(world)
    world.wait(11.0, settle=False)
    assert "not ready after 10 s" in ended(world)[0].fate


def full(needs: int = 50 * MB, free: int = 10 * MB) -> World:
    """Three nodes, of which `b` has no room for its stage, and says so."""
    world = World()
    world.join("a", "b", "c")
    world.agents["b"].figures = {"disk_free_bytes": free}
    world.wait(1.0)
    world.agents["b"].broken.add("m")
    world.agents["b"].needs_disk_bytes = needs
    world.serve(entry(min_stages=3), timeout_s=10.0)
    world.settle()
    return world


def test_a_node_whose_disk_is_full_is_left_out_and_said_to_be_so() -> None:
    world = full()
    assert world.stages() == [["a", "c"]]
    assert world.told("disk_full")[0].node == "b"
    assert "2 of 3 nodes can load it" in world.state().reason
    standing = world.cluster.standings(world.now)["b"]
    assert standing.state == "disk_full"
    assert "50.0 MB free would do" in standing.reason
    world.wait(300.0)
    assert len(world.told("disk_full")) == 1, "nobody tries again what cannot work"
    assert world.served().blocked["b"] == math.inf


def test_space_that_comes_free_mends_it() -> None:
    world = full()
    world.agents["b"].broken.clear()
    world.agents["b"].figures = {"disk_free_bytes": 49 * MB}
    world.wait(2.0)
    assert world.stages() == [["a", "c"]]
    world.agents["b"].figures = {"disk_free_bytes": 50 * MB}
    world.wait(2.0)
    assert world.stages() == [["a", "b", "c"]]
    assert world.told("disk_freed")[0].node == "b"
    assert not world.cluster.standings(world.now)


def test_a_disk_is_full_for_one_model_only() -> None:
    world = full()
    world.agents["b"].broken = {"m"}
    world.serve(entry("n", manifest="b", min_stages=3))
    world.settle()
    assert sorted(world.stages("n")[0]) == ["a", "b", "c"]
    world.stop()
    world.settle()
    assert not world.cluster.standings(world.now)


def test_where_nobody_else_can_it_says_why() -> None:
    world = World()
    world.join("a")
    world.agents["a"].figures = {"disk_free_bytes": MB}
    world.wait(1.0)
    world.agents["a"].broken.add("m")
    world.agents["a"].needs_disk_bytes = 2 * MB
    world.serve(entry())
    world.settle()
    assert world.state().state == "failed"
    assert "could not be loaded on a" in world.state().reason
    world.agents["a"].broken.clear()
    world.agents["a"].figures = {"disk_free_bytes": 3 * MB}
    world.wait(3.0)
    assert world.state().state == "serving"

"""From telemetry and plan to what the scheduler knows of a pipeline's nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.cluster_events import NodeHeard
from orchestrator.core.dispatch_events import PipelineFigures
from orchestrator.core.nsa import NodeFigures, standing
from orchestrator.core.pipeline_figures import CPU_GRACE
from shared.messages.node import StageTelemetry, Telemetry
from tests.core.cluster_world import MB, World, entry, telemetry


def serving(stages: int = 1) -> World:
    world = World()
    for name in "ab"[:stages]:
        world.join(name, cpu=0.5)
    world.serve(entry(min_stages=stages, max_stages=stages))
    world.settle()
    assert world.state().state == "serving"
    return world


def figures(world: World) -> PipelineFigures:
    (found,) = world.cluster.figures(world.now)
    return found


def busy(
    node: str, world: World, *, own_cpu_s: float = 0.0, items: int = 0, **other: float
) -> Telemetry:
    """Telemetry of a node; its first stage computed `items` in `own_cpu_s` CPU seconds each."""
    active = world.served().active
    assert active is not None
    stage = StageTelemetry(
        model="m", pipeline=active.names[0], generation=active.number, stage=0, items=items,
        queue=0, compute_s=own_cpu_s, cpu_s=own_cpu_s, queue_s=0.0,
    )  # fmt: skip
    return replace(telemetry(node), stages=[stage] if items else [], **other)  # type: ignore[arg-type]


def test_before_any_telemetry_a_node_has_what_it_needs() -> None:
    world = serving()
    (node,) = figures(world).nodes
    assert node.cpu_needed == pytest.approx(CPU_GRACE * 0.5)
    assert node.cpu_available == pytest.approx(0.5)
    assert node.memory_available_bytes == node.memory_needed_bytes > 6 * MB
    assert (node.load_ratio, node.round_trip_s) == (0.0, 0.0)


def test_what_the_stage_itself_uses_is_its_own() -> None:
    world = serving()
    # All of 0.5 CPU is in use, by 10 items of 45 ms CPU time: 0.45 CPU are the stage's.
    told = busy("a", world, own_cpu_s=0.045, items=10, cpu_percent=100.0, round_trip_s=0.02)
    world.send(NodeHeard(world.now, told))
    (node,) = figures(world).nodes
    assert node.cpu_available == pytest.approx(0.45)
    assert (node.load_ratio, node.round_trip_s) == (1.0, 0.02)
    # A neighbour takes 0.2 CPU of it.
    told = busy("a", world, own_cpu_s=0.03, items=10, cpu_percent=100.0)
    world.send(NodeHeard(world.now, told))
    (node,) = figures(world).nodes
    assert node.cpu_available == pytest.approx(0.3)
    assert standing([node]).cpu_ratio < 1.0


def test_memory_does_not_suffice_where_a_node_is_over_its_limit() -> None:
    world = serving()
    for used, suffices in ((400, True), (500, True), (501, False), (900, False)):
        told = busy("a", world, memory_used_bytes=used * MB, memory_limit_bytes=500 * MB)
        world.send(NodeHeard(world.now, told))
        ratio = standing(figures(world).nodes).memory_ratio
        assert (ratio >= 1.0) == suffices


def test_what_others_in_the_same_cgroup_hold_counts_once() -> None:
    """900 MB for all: neighbours hold 700 of them, we 100, so 200 are ours in all."""
    world = serving()
    told = replace(
        busy("a", world, memory_used_bytes=800 * MB, memory_limit_bytes=900 * MB),
        memory_available_bytes=200 * MB,
    )
    world.send(NodeHeard(world.now, told))
    (node,) = figures(world).nodes
    assert node.memory_available_bytes == 200 * MB
    assert standing([node]).memory_ratio >= 1.0
    # The neighbours take all but a little.
    world.send(NodeHeard(world.now, replace(told, memory_available_bytes=MB)))
    (node,) = figures(world).nodes
    assert standing([node]).memory_ratio < 1.0


def test_what_another_model_holds_there_is_not_available() -> None:
    world = serving()
    world.serve(entry("second", min_stages=1, max_stages=1))
    world.settle()
    world.send(NodeHeard(world.now, replace(telemetry("a"), memory_available_bytes=200 * MB)))
    first, second = (figures.nodes[0] for figures in world.cluster.figures(world.now))
    assert first.memory_available_bytes == 200 * MB - second.memory_needed_bytes
    assert second.memory_available_bytes == 200 * MB - first.memory_needed_bytes


def test_one_entry_for_each_stage_in_order() -> None:
    world = serving(2)
    active = world.served().active
    assert active is not None
    found = figures(world)
    assert (found.model, found.pipeline, found.generation) == ("m", active.names[0], active.number)
    placed = [stage.node for stage in active.plan.pipelines[0].stages]
    assert [node.node for node in found.nodes] == placed
    # The slower of the two stages needs all of its node, the other one less.
    needed = sorted(node.cpu_needed / (CPU_GRACE * 0.5) for node in found.nodes)
    assert needed[-1] == pytest.approx(1.0)
    assert 0.0 < needed[0] <= 1.0


def test_a_pipeline_that_is_not_active_has_no_figures() -> None:
    world = World()
    world.join("a")
    assert world.cluster.figures(world.now) == []


def test_what_a_stage_does_not_need_it_has() -> None:
    idle = NodeFigures(
        node="n", cpu_available=0.0, cpu_needed=0.0, memory_available_bytes=0.0,
        memory_needed_bytes=0.0, load_ratio=0.0, round_trip_s=0.0,
    )  # fmt: skip
    assert (standing([idle]).cpu_ratio, standing([idle]).memory_ratio) == (1.0, 1.0)

"""What telemetry says of the nodes below each active pipeline: once a second, for the dispatcher.

Per stage, `cpu_needed` and `memory_needed` are the plan's, what is available is the node's:

- `cpu_needed`: at the pipeline's pace a stage computes `compute_s` of every `period_s`, so it needs that
  share of the CPU that the node may use. A tenth of it is let go: an agent's own work is never quite zero,
  and the slowest stage, which needs all there is, would be short of CPU for ever.
- `cpu_available`: what nobody uses, and what this stage itself does, since that is its to use again.
- `memory_available`: what the agent may take in all (what others hold is off that already), less what the
  plans give to other active stages there. `memory_used_bytes` is no part of it: in a cgroup that the agent
  shares with others it is theirs, too. Where a node does not say what it may take in all, memory does not
  suffice when the node is over its limit.

A node that has told nothing yet, or whose stage is not in its telemetry, is taken to be idle but for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from orchestrator.core.dispatch_events import PipelineFigures
from orchestrator.core.generation import Generation
from orchestrator.core.nodes import Node
from orchestrator.core.nsa import NodeFigures
from orchestrator.core.plan import PipelinePlan, StagePlan

CPU_GRACE = 0.9
"""Of the CPU that the plan counts on, what a node must have."""


def pipeline_figures(
    now: float, generations: Iterable[Generation], nodes: Mapping[str, Node]
) -> list[PipelineFigures]:
    """The figures of every pipeline of active generations all of whose nodes are known."""
    running = [(each, *numbered) for each in generations for numbered in each.running()]
    held_bytes: Counter[str] = Counter()
    for _, _, pipeline in running:
        for stage in pipeline.stages:
            held_bytes[stage.node] += stage.memory_bytes
    return [
        PipelineFigures(now, generation.entry.name, generation.names[index], generation.number, of)
        for generation, index, pipeline in running
        if (of := _pipeline(generation, index, pipeline, nodes, held_bytes)) is not None
    ]


def _pipeline(
    generation: Generation,
    index: int,
    pipeline: PipelinePlan,
    nodes: Mapping[str, Node],
    held_bytes: Mapping[str, int],
) -> tuple[NodeFigures, ...] | None:
    period_s = max(stage.period_s for stage in pipeline.stages)
    found = []
    for number, stage in enumerate(pipeline.stages):
        node = nodes.get(stage.node)
        if node is None or node.state.hardware is None:
            return None
        key = (generation.entry.name, generation.names[index], generation.number, number)
        others_bytes = held_bytes[stage.node] - stage.memory_bytes
        cpu = node.state.hardware.cpu
        found.append(_stage(node, cpu, stage, period_s, key, others_bytes=others_bytes))
    return tuple(found)


def _stage(
    node: Node,
    cpu: float,
    stage: StagePlan,
    period_s: float,
    key: tuple[str, str, int, int],
    *,
    others_bytes: int,
) -> NodeFigures:
    telemetry = node.telemetry
    busy_ratio = own_ratio = round_trip_s = 0.0
    available_bytes = stage.memory_bytes
    if telemetry is not None:
        busy_ratio = telemetry.cpu_percent / 100.0
        round_trip_s = telemetry.round_trip_s or 0.0
        if telemetry.memory_available_bytes is not None:
            available_bytes = telemetry.memory_available_bytes - others_bytes
        elif telemetry.memory_limit_bytes:
            available_bytes += telemetry.memory_limit_bytes - telemetry.memory_used_bytes
        interval_s = node.state.telemetry_interval_s
        own_ratio = sum(
            each.items * each.cpu_s / interval_s / cpu
            for each in telemetry.stages
            if (each.model, each.pipeline, each.generation, each.stage) == key
        )
    others_ratio = max(busy_ratio - own_ratio, 0.0)
    return NodeFigures(
        node=stage.node,
        cpu_available=cpu * max(1.0 - others_ratio, 0.0),
        cpu_needed=CPU_GRACE * cpu * stage.compute_s / period_s,
        memory_available_bytes=available_bytes,
        memory_needed_bytes=stage.memory_bytes,
        load_ratio=busy_ratio,
        round_trip_s=round_trip_s,
    )

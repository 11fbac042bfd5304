"""Clusters as their topics would show them, for whatever shows them to people."""

from __future__ import annotations

from collections.abc import Sequence

from shared.client import ClusterStatus, NodeView
from shared.messages.cordon import Cordon
from shared.messages.model import ModelState, PipelineRow, StageRow
from shared.messages.node import Hardware, NodeState, StageTelemetry, Telemetry
from shared.messages.operation import Metrics, ModelMetrics, NodeStanding, OrchestratorState


def node(
    name: str,
    *,
    percent: float = 50.0,
    memory_mb: float = 150.0,
    queue: int = 0,
    stages: Sequence[tuple[str, int]] = (),
    state: str = "online",
    drained: bool = False,
) -> NodeView:
    """A node of half a CPU and 512 MB; `stages` are (model, stage) of generation 3."""
    born = NodeState(
        state=state,  # type: ignore[arg-type]
        node=name,
        incarnation=1,
        hardware=Hardware(cpu=0.5, cores=4, memory_bytes=512_000_000, architecture="aarch64"),
        reason="last will" if state == "lost" else "",
    )
    told = Telemetry(
        node=name,
        incarnation=1,
        uptime_s=10.0,
        cpu_percent=percent,
        memory_used_bytes=int(memory_mb * 1e6),
        memory_limit_bytes=512_000_000,
        network_received_bytes=0,
        network_sent_bytes=0,
        round_trip_s=0.002,
        queue=queue,
        stability=1.0,
        stages=[
            StageTelemetry(
                model=model, pipeline=f"{model}-0", generation=3, stage=stage, items=20, queue=queue,
                compute_s=0.008, cpu_s=0.008, queue_s=0.001,
            )
            for model, stage in stages
        ],
    )  # fmt: skip
    gone = NodeStanding(state="lost", for_s=70.0, until_s=3530.0)
    return NodeView(
        state=born,
        telemetry=told if state == "online" else None,
        standing=gone if state == "lost" else None,
        cordon=Cordon(node=name, drain=True, at="2026-11-21T22:00:00Z") if drained else None,
    )


def model(name: str, *nodes: str, seconds: Sequence[float] = ()) -> ModelState:
    """A model in a stage per node; `seconds` are what each takes by measurement."""
    took = [*seconds, *[0.008] * len(nodes)]
    return ModelState(
        state="serving" if nodes else "unserved",
        model=name,
        generation=3,
        reason="node pi-4 was lost (last will)" if nodes else "no node has room for it",
        pipelines=[
            PipelineRow(
                pipeline=f"{name}-0",
                stages=[
                    StageRow(
                        stage=index, node=each, blocks=(index * 20, index * 20 + 20), weight_bytes=1,
                        output_bytes=50_000, predicted_s=0.0075, measured_s=took[index],
                    )
                    for index, each in enumerate(nodes)
                ],
            )
        ]
        if nodes
        else [],
    )  # fmt: skip


def cluster(
    nodes: Sequence[NodeView], models: Sequence[ModelState], rate: float = 87.5
) -> ClusterStatus:
    """The whole, with an orchestrator that is there."""
    return ClusterStatus(
        orchestrator=OrchestratorState(
            state="online", incarnation=1, term=1, leader="kitchen-1", host="kitchen", pid=4711
        ),
        nodes=tuple(nodes),
        models=tuple(models),
        metrics=Metrics(
            counters={},
            models={
                each.model: ModelMetrics(
                    queued=2,
                    in_flight=8,
                    answered_per_s=rate,
                    latency_p50_s=0.092,
                    latency_p95_s=0.131,
                )
                for each in models
                if each.pipelines
            },
            nodes_online=len(nodes),
            cpu_s=1.0,
            memory_bytes=1,
        ),
    )

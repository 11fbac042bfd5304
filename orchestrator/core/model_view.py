"""A model's retained state: made from its record, and a record made from it after a restart."""

from __future__ import annotations

from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.evaluate import Priced, evaluate
from orchestrator.core.generation import Generation, describe
from orchestrator.core.plan import (
    Alternative,
    Objective,
    PipelinePlan,
    Plan,
    Predicted,
    StagePlan,
    Strategy,
)
from orchestrator.core.served import Served
from shared.errors import PlanError
from shared.messages.model import AlternativeRow, Figures, ModelState, PipelineRow, StageRow
from shared.profile import ModelProfile, NodeProfile

UNPRICED = Predicted(1e-9, 1e9, 0.0, 0.0, 0.0)


def model_state(served: Served, measured: Figures) -> ModelState:
    """The state to publish. `measured` are the figures of the last seconds, from the dispatcher."""
    entry, shown = served.entry, served.active or served.pending or served.held
    return ModelState(
        state=served.state,
        model=served.name,
        generation=shown.number if shown is not None else 0,
        pipelines=[] if shown is None else _rows(served, shown),
        predicted=Figures() if shown is None else _figures(shown.plan.predicted),
        measured=measured if served.active is not None else Figures(),
        reason=served.reason,
        weights=entry.weights,
        manifest=(shown.entry if shown is not None else entry).manifest,
        options=entry.options,
        runtime=entry.runtime,
        alternatives=[] if served.chosen is None else _alternatives(served.chosen.alternatives),
        free_choice=_free(served.free_choice),
    )


def generation_from(entry: ModelEntry, state: ModelState, now: float) -> Generation | None:
    """The generation that a retained state says is serving, not priced yet; None if none is.

    A state whose blocks do not fit the profile is not trusted.
    """
    if state.state != "serving" or not state.pipelines:
        return None
    pipelines = tuple(
        PipelinePlan(
            tuple(
                StagePlan(row.node, row.blocks, row.predicted_s, 0.0, 0.0, row.weight_bytes)
                for row in pipeline.stages
            )
        )
        for pipeline in state.pipelines
    )
    if not all(_covers(pipeline, entry.profile) for pipeline in pipelines):
        return None
    plan = Plan(
        model=entry.name,
        strategy=Strategy(entry.options.strategy),
        objective=Objective(entry.options.objective),
        pipelines=pipelines,
        predicted=UNPRICED,
        alternatives=(),
        lower_bound=0.0,
    )
    return Generation(entry, state.generation, plan, now, "taken over from the orchestrator before")


def repriced(entry: ModelEntry, plan: Plan, nodes: list[NodeProfile]) -> Plan:
    """`plan` with today's figures; as it was where a node of it is gone."""
    try:
        priced: Priced = evaluate(entry.profile, nodes, plan.pipelines)
    except PlanError:
        return plan
    return Plan(
        model=plan.model,
        strategy=plan.strategy,
        objective=plan.objective,
        pipelines=priced.pipelines,
        predicted=priced.predicted,
        alternatives=plan.alternatives,
        lower_bound=plan.lower_bound,
        notes=plan.notes,
    )


def _rows(served: Served, generation: Generation) -> list[PipelineRow]:
    profile = generation.entry.profile
    boundary = profile.boundary_bytes()
    is_active = generation is served.active
    return [
        PipelineRow(
            pipeline=generation.pipeline_name(index),
            stages=[
                StageRow(
                    stage=number,
                    node=stage.node,
                    blocks=stage.blocks,
                    weight_bytes=sum(
                        block.weight_bytes for block in profile.blocks[slice(*stage.blocks)]
                    ),
                    output_bytes=boundary[stage.blocks[1]],
                    predicted_s=round(stage.compute_s, 6),
                    measured_s=(
                        round(seconds, 6)
                        if is_active
                        and (seconds := served.measured.get((index, number))) is not None
                        else None
                    ),
                )
                for number, stage in enumerate(pipeline.stages)
            ],
        )
        for index, pipeline in generation.running()
    ]


def _figures(predicted: Predicted | None) -> Figures:
    if predicted is None:
        return Figures()
    return Figures(
        throughput_per_s=round(predicted.throughput_per_s, 3),
        latency_s=round(predicted.latency_s, 6),
    )


def _alternatives(alternatives: tuple[Alternative, ...]) -> list[AlternativeRow]:
    return [
        AlternativeRow(
            text=f"{a.kind}: {describe(a.pipelines)}" if a.pipelines else a.kind,
            figures=_figures(a.predicted),
            reason=a.reason,
        )
        for a in alternatives
    ]


def _free(plan: Plan | None) -> AlternativeRow | None:
    if plan is None:
        return None
    return AlternativeRow(
        text=describe(plan.pipelines),
        figures=_figures(plan.predicted),
        reason="chosen freely, without the number of stages that was asked for",
    )


def _covers(pipeline: PipelinePlan, profile: ModelProfile) -> bool:
    reached = 0
    for stage in pipeline.stages:
        if stage.blocks[0] != reached or stage.blocks[1] <= reached:
            return False
        reached = stage.blocks[1]
    return reached == len(profile.blocks)

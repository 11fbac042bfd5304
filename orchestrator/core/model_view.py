"""A model's retained state: made from its record, and a record made from it after a restart."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.generation import Generation, describe
from orchestrator.core.goal import parse_goal
from orchestrator.core.plan import (
    Alternative,
    PipelinePlan,
    Plan,
    Predicted,
    StagePlan,
)
from orchestrator.core.replan import strategy_of
from orchestrator.core.served import Served
from orchestrator.core.stage_times import StageTimes, prediction_error
from shared.errors import ConfigurationError
from shared.messages.model import (
    AlternativeRow,
    Figures,
    ModelState,
    PipelineRow,
    StageRow,
)
from shared.profile import ModelProfile

LEAST_S = 1e-6
"""A stage's predicted seconds are published rounded to this, and something has to be divided by them."""


def model_state(served: Served, measured: Figures) -> ModelState:
    """The state to publish. `measured` are the figures of the last seconds, from the dispatcher."""
    entry, shown = served.entry, served.shown
    told = entry if shown is None else shown.entry
    return ModelState(
        state=served.state,
        model=served.name,
        generation=0 if shown is None else shown.number,
        pipelines=[] if shown is None else _rows(shown),
        predicted=Figures() if shown is None else _figures(shown.plan.predicted),
        measured=measured if served.active is not None else Figures(),
        prediction_error=None if shown is None else prediction_error(shown.times.values()),
        reason=reason(served),
        # What is shown belongs together: a restarted orchestrator goes on from it.
        weights=told.weights,
        manifest=told.manifest,
        options=told.options,
        runtime=told.runtime,
        level=told.level,
        quantisation=told.quantisation,
        whole=told.profile.whole,
        alternatives=[] if served.chosen is None else _alternatives(served.chosen.alternatives),
        free_choice=_free(served.free_choice),
        cpu_reserved={}
        if shown is None
        else {node: round(share, 4) for node, share in sorted(shown.reserved.items())},
    )


def reason(served: Served) -> str:
    """Why things are as they are, a number of stages that is not reached included."""
    return "; ".join(text for text in (served.reason, served.shortage()) if text)


def essence(served: Served) -> tuple[object, ...]:
    """What makes a state worth publishing anew when it changes; measured figures come by themselves."""
    shown = served.shown
    entry = served.entry if shown is None else shown.entry
    number, running = (0, 0) if shown is None else (shown.number, len(shown.pipelines()))
    return (served.state, reason(served), number, running, entry.manifest, entry.options)


def generation_from(entry: ModelEntry, state: ModelState, now: float) -> Generation | None:
    """The generation that a retained state shows, not priced yet; None if it shows none.

    One that does not fit the profile or itself is not trusted.
    """
    names = tuple(row.pipeline for row in state.pipelines)
    pipelines = tuple(
        PipelinePlan(
            tuple(
                StagePlan(
                    row.node,
                    row.blocks,
                    max(row.predicted_s, LEAST_S),
                    0.0,
                    0.0,
                    row.weight_bytes,
                    row.compression,
                )
                for row in pipeline.stages
            )
        )
        for pipeline in state.pipelines
    )
    nodes = [stage.node for pipeline in pipelines for stage in pipeline.stages]
    if not pipelines or len(set(names)) < len(names) or len(set(nodes)) < len(nodes):
        return None
    if not all(_covers(pipeline, entry.profile) for pipeline in pipelines):
        return None
    try:
        strategy, goal = strategy_of(entry), parse_goal(entry.options.objective)
    except ConfigurationError:
        return None
    plan = Plan(
        model=entry.name,
        strategy=strategy,
        objective=goal,
        pipelines=pipelines,
        predicted=_published(pipelines),
        alternatives=(),
        lower_bound=0.0,
    )
    cause = "taken over from the orchestrator before"
    return Generation(entry, state.generation, plan, now, cause, names)


def _published(pipelines: Sequence[PipelinePlan]) -> Predicted:
    """Figures of a plan of which no more is known than its stages' seconds."""
    rates = [1.0 / max(stage.period_s for stage in p.stages) for p in pipelines]
    latencies = [sum(stage.compute_s for stage in p.stages) for p in pipelines]
    return Predicted(sum(rates), max(latencies), 0.0, 0.0, 0.0)


def _rows(generation: Generation) -> list[PipelineRow]:
    profile = generation.entry.profile
    boundary = profile.boundary_bytes()
    return [
        PipelineRow(
            pipeline=generation.names[index],
            stages=[
                _row(stage, number, profile, boundary, generation.times.get((index, number)))
                for number, stage in enumerate(pipeline.stages)
            ],
        )
        for index, pipeline in generation.running()
    ]


def _row(
    stage: StagePlan,
    number: int,
    profile: ModelProfile,
    boundary: Sequence[int],
    times: StageTimes | None,
) -> StageRow:
    start, stop = stage.blocks
    times = times or StageTimes()
    return StageRow(
        stage=number,
        node=stage.node,
        blocks=stage.blocks,
        weight_bytes=sum(block.weight_bytes for block in profile.blocks[start:stop]),
        output_bytes=boundary[stop],
        compression=stage.compression,
        predicted_s=round(stage.compute_s, 6),
        measured_s=_rounded(times.measured_s),
        first_sight_s=_rounded(times.first_sight_s),
        expected_s=_rounded(times.expected_s),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _figures(predicted: Predicted | None) -> Figures:
    if predicted is None:
        return Figures()
    return Figures(
        throughput_per_s=round(predicted.throughput_per_s, 3),
        latency_s=round(predicted.latency_s, 6),
        energy_j=round(predicted.energy_j, 6),
        cost_per_1000=round(predicted.cost_per_1000, 6),
        exposure_ratio=round(predicted.exposure_ratio, 4),
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

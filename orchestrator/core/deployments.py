"""What became of each plan that was set on its way: told once, when it runs or when it is given up.

It follows from the state, however that came about: a generation that loads is watched, and when it loads no
more it either runs or has failed, for the reason that whoever gave it up has left on it (`Generation.fate`).
"""

from __future__ import annotations

from orchestrator.core.cluster_context import Context
from orchestrator.core.cluster_events import DeploymentEnded, StageLoad
from orchestrator.core.generation import Generation


def follow(context: Context, now: float) -> None:
    """Tell of the generations that loaded before this step, and load no more."""
    loading = {
        generation.key: generation
        for served in context.models.values()
        for generation in (served.pending, served.held)
        if generation is not None
    }
    for key, generation in context.deploying.items():
        if key not in loading:
            context.actions.append(_ended(generation, now))
    context.deploying = loading


def _ended(generation: Generation, now: float) -> DeploymentEnded:
    entry = generation.entry
    return DeploymentEnded(
        model=entry.name,
        manifest=entry.manifest,
        runtime=entry.runtime,
        level=entry.level,
        generation=generation.number,
        cause=generation.cause,
        took_s=now - generation.decided,
        loaded_s=now - generation.began,
        active=generation.activated,
        fate="" if generation.activated else generation.fate or "another plan took its place",
        stages=tuple(
            StageLoad(
                generation.names[index],
                number,
                stage.node,
                stage.blocks,
                generation.loads.get((index, number)),
            )
            for index, pipeline in enumerate(generation.plan.pipelines)
            for number, stage in enumerate(pipeline.stages)
        ),
    )

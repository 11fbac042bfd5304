"""Plans and fronts as plain documents: the JSON of ALGORITHMS.md, section 3, as dicts and lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from orchestrator.core.plan import (
    Alternative,
    Front,
    PipelinePlan,
    Plan,
    Predicted,
    StagePlan,
)
from shared.profile import UNCOMPRESSED


def plan_document(plan: Plan) -> dict[str, Any]:
    """A plan; `leaf_counts` only for the paper's rules, `notes` only where there are some."""
    document: dict[str, Any] = {
        "model": plan.model,
        "strategy": str(plan.strategy),
        "objective": str(plan.objective),
        "pipelines": _pipelines(plan.pipelines),
        "predicted": predicted_document(plan.predicted),
        "alternatives": [_alternative(other) for other in plan.alternatives],
        "lower_bound": plan.lower_bound,
    }
    if plan.leaf_counts:
        document["leaf_counts"] = list(plan.leaf_counts)
    if plan.notes:
        document["notes"] = list(plan.notes)
    return document


def front_document(front: Front) -> dict[str, Any]:
    """A front: its objectives, and each point's pipelines and figures."""
    document: dict[str, Any] = {
        "model": front.model,
        "objectives": [str(objective) for objective in front.objectives],
        "points": [
            {
                "pipelines": _pipelines(point.pipelines),
                "predicted": predicted_document(point.predicted),
            }
            for point in front.points
        ],
    }
    if front.notes:
        document["notes"] = list(front.notes)
    return document


def predicted_document(predicted: Predicted) -> dict[str, float]:
    """The five figures by name."""
    return dataclasses.asdict(predicted)


def _alternative(other: Alternative) -> dict[str, Any]:
    return {
        "kind": other.kind,
        "pipelines": _pipelines(other.pipelines),
        "predicted": None if other.predicted is None else predicted_document(other.predicted),
        "reason": other.reason,
    }


def _compression(stage: StagePlan) -> dict[str, str]:
    """How it sends what it made; left out where that travels as it is."""
    return {} if stage.compression == UNCOMPRESSED else {"compression": stage.compression}


def _pipelines(pipelines: Iterable[PipelinePlan]) -> list[dict[str, Any]]:
    return [
        {
            "stages": [
                {
                    "node": stage.node,
                    "blocks": list(stage.blocks),
                    "compute_s": stage.compute_s,
                    "receive_s": stage.receive_s,
                    "send_s": stage.send_s,
                    "memory_bytes": stage.memory_bytes,
                    **_compression(stage),
                }
                for stage in pipeline.stages
            ]
        }
        for pipeline in pipelines
    ]

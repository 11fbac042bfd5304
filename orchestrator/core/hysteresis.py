"""Re-plan only when it pays (DESIGN.md, section 3): a gain below the threshold is not worth a switch."""

from __future__ import annotations

import math

from orchestrator.core.figures import Objective, Predicted, burden
from orchestrator.core.goal import Goal, Weights, Yardstick, score, yardstick

DEFAULT_THRESHOLD = 0.15

_EQUAL = 1e-9


def gain_ratio(
    present: Predicted,
    candidate: Predicted,
    goal: Goal,
    relative_to: Yardstick | None = None,
) -> float:
    """How much better the candidate is: 0.2 is a fifth more jobs per second, or a sixth less latency.

    A ratio of rates (of burdens, of weighted scores) minus 1, so that one threshold means the same for every
    goal; infinite where the candidate's figure is 0 and the present one's is not. Where the two are equal by
    the goal (two plans that expose nothing, or cost nothing), it is the gain in throughput, as the planner
    itself decides ties. A weighted score is taken by the yardstick of the candidate's plan; without one,
    relative to the better of the two in each objective. Price both under the same profiles (`evaluate`), or
    the drift of the profiles is counted as a gain.
    """
    before, after = _burdens(present, candidate, goal, relative_to)
    if not math.isclose(before, after, rel_tol=_EQUAL, abs_tol=0.0):
        return before / after - 1.0 if after > 0.0 else math.inf
    return candidate.throughput_per_s / present.throughput_per_s - 1.0


def pays(
    present: Predicted,
    candidate: Predicted,
    goal: Goal,
    threshold: float = DEFAULT_THRESHOLD,
    relative_to: Yardstick | None = None,
) -> bool:
    """Whether to switch from a plan that runs. One that cannot run has no figures: then anything pays."""
    return gain_ratio(present, candidate, goal, relative_to) >= threshold


def _burdens(
    present: Predicted, candidate: Predicted, goal: Goal, relative_to: Yardstick | None
) -> tuple[float, float]:
    match goal:
        case Objective():
            return burden(present, goal), burden(candidate, goal)
        case Weights():
            marks = relative_to or _better_of(present, candidate, goal)
            return score(present, goal, marks), score(candidate, goal, marks)


def _better_of(present: Predicted, candidate: Predicted, weights: Weights) -> Yardstick:
    burdens = {
        objective: sorted((burden(present, objective), burden(candidate, objective)))
        for objective, _ in weights.weights
    }
    return yardstick(
        weights,
        {objective: least for objective, (least, _) in burdens.items()},
        {objective: most for objective, (_, most) in burdens.items()},
    )

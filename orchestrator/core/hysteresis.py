"""Re-plan only when it pays (DESIGN.md, section 3): a gain below the threshold is not worth a switch."""

from __future__ import annotations

from orchestrator.core.plan import Objective, Predicted

DEFAULT_THRESHOLD = 0.15


def gain_ratio(present: Predicted, candidate: Predicted, objective: Objective) -> float:
    """How much better the candidate is: 0.2 is a fifth more jobs per second, or a sixth less latency.

    Both as a ratio of rates minus 1, so that one threshold means the same for either objective. Price both
    under the same profiles (`evaluate`), or the drift of the profiles is counted as a gain.
    """
    match objective:
        case Objective.THROUGHPUT:
            return candidate.throughput_per_s / present.throughput_per_s - 1.0
        case Objective.LATENCY:
            return present.latency_s / candidate.latency_s - 1.0


def pays(
    present: Predicted,
    candidate: Predicted,
    objective: Objective,
    threshold: float = DEFAULT_THRESHOLD,
) -> bool:
    """Whether to switch from a plan that runs. One that cannot run has no figures: then anything pays."""
    return gain_ratio(present, candidate, objective) >= threshold

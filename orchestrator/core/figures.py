"""What can be said of a plan in figures, and which of them it may be asked to be best at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never


class Objective(StrEnum):
    """What a plan is to be best at."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"
    ENERGY = "energy"
    COST = "cost"
    EXPOSURE = "exposure"


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the cost model says of a plan: jobs/s, seconds, joules per job, money per 1,000 jobs, 0..1."""

    throughput_per_s: float
    latency_s: float
    energy_j: float
    cost_per_1000: float
    exposure_ratio: float


def figure(predicted: Predicted, objective: Objective) -> float:
    """The figure that an objective looks at, in its own unit; only of throughput more is better."""
    match objective:
        case Objective.THROUGHPUT:
            return predicted.throughput_per_s
        case Objective.LATENCY:
            return predicted.latency_s
        case Objective.ENERGY:
            return predicted.energy_j
        case Objective.COST:
            return predicted.cost_per_1000
        case Objective.EXPOSURE:
            return predicted.exposure_ratio
        case _:
            assert_never(objective)


def burden(predicted: Predicted, objective: Objective) -> float:
    """The figure so that less is better: seconds per job in the place of jobs per second."""
    value = figure(predicted, objective)
    return 1.0 / value if objective is Objective.THROUGHPUT else value


def in_words(objective: Objective, value: float) -> str:
    """A figure with its unit, for people: `12.5 jobs/s`, `81 ms`, `0.4 J`, `35% exposed`."""
    match objective:
        case Objective.THROUGHPUT:
            return f"{value:.4g} jobs/s"
        case Objective.LATENCY:
            return f"{value * 1e3:.4g} ms"
        case Objective.ENERGY:
            return f"{value:.4g} J"
        case Objective.COST:
            return f"{value:.4g} per 1,000"
        case Objective.EXPOSURE:
            return f"{value * 100:.4g}% exposed"
        case _:
            assert_never(objective)

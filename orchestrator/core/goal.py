"""What a plan is asked for: one objective, or several with weights.

A weighted score has no unit of its own. Each figure is taken relative to the best that it could be for its
own sake, so that `latency=0.7,cost=0.3` does not depend on seconds or milliseconds:

    score = sum over objectives of  weight * (1 + (burden - best) / unit)

`burden` is the figure with less being better (seconds per job for throughput), `best` the least that a plan
which looks at nothing else has, on the same nodes, with the same zones, limit on exposure and numbers of
stages (the other limits left out). `unit` is `best` itself, so that a term is `burden / best`: 1 at its
best, 2 at twice that. Where the best is 0 (a node that costs nothing) there is no such ratio; the unit is
then 1 for exposure, which is a share already, and for energy and cost what the model's work takes on the
node where it takes most: a term is 1 at nothing and 2 at that. If that is 0 too, the unit is 1. The least
possible score is 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.core.figures import Objective, Predicted, burden
from shared.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Weights:
    """Several objectives with a weight each; weights are scaled to a sum of 1, objectives in a fixed order.

    Raises ConfigurationError for an objective given twice, a weight that is not above 0, or fewer than two.
    """

    weights: tuple[tuple[Objective, float], ...]

    def __post_init__(self) -> None:
        names = [objective for objective, _ in self.weights]
        if len(names) < 2:
            raise ConfigurationError(
                "weights", expected="at least two objectives", got=str(len(names))
            )
        for objective, weight in self.weights:
            if names.count(objective) > 1:
                raise ConfigurationError(
                    "weights", expected="each objective once", got=f"{objective} twice"
                )
            if not math.isfinite(weight) or weight <= 0:
                raise ConfigurationError(
                    f"weight of {objective}", expected="a finite number above 0", got=repr(weight)
                )
        total = math.fsum(weight for _, weight in self.weights)
        order = list(Objective)
        scaled = sorted(
            ((objective, weight / total) for objective, weight in self.weights),
            key=lambda pair: order.index(pair[0]),
        )
        object.__setattr__(self, "weights", tuple(scaled))

    def __str__(self) -> str:
        """The form that `parse_goal` reads."""
        return ",".join(f"{objective}={weight:g}" for objective, weight in self.weights)


Goal = Objective | Weights
"""What a plan is asked for."""


def parse_goal(text: str) -> Goal:
    """Read `latency`, or `latency=0.7,cost=0.3`; one objective with a weight is that objective.

    Raises:
        ConfigurationError: an unknown objective, one given twice, or a weight that is no number above 0.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and "=" not in parts[0]:
        return _objective(parts[0])
    pairs: list[tuple[Objective, float]] = []
    for part in parts:
        name, equals, weight = part.partition("=")
        if not equals:
            raise ConfigurationError(
                "objective",
                expected="a weight for each of several, as in latency=0.7,cost=0.3",
                got=repr(part),
            )
        objective = _objective(name.strip())
        try:
            pairs.append((objective, float(weight)))
        except ValueError:
            raise ConfigurationError(
                f"weight of {objective}", expected="a finite number above 0", got=repr(weight)
            ) from None
    if len(pairs) == 1:
        # Checked as a weight is, and then of no consequence
        Weights(((pairs[0][0], pairs[0][1]), (_another(pairs[0][0]), 1.0)))
        return pairs[0][0]
    return Weights(tuple(pairs))


def objectives_of(goal: Goal) -> tuple[Objective, ...]:
    """The objectives that a goal looks at, in a fixed order."""
    return (
        (goal,)
        if isinstance(goal, Objective)
        else tuple(objective for objective, _ in goal.weights)
    )


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What a weighted score is relative to: `(objective, best, unit)` per objective, as burdens."""

    marks: tuple[tuple[Objective, float, float], ...]


def yardstick(
    weights: Weights, best: Mapping[Objective, float], worst: Mapping[Objective, float]
) -> Yardstick:
    """The yardstick of a goal.

    `best` are the least burdens that can be had, by objective; `worst` are the units where those are 0.
    """
    marks = []
    for objective, _ in weights.weights:
        unit = best[objective]
        if unit == 0.0:
            unit = 1.0 if objective is Objective.EXPOSURE else worst[objective]
        marks.append((objective, best[objective], unit or 1.0))
    return Yardstick(tuple(marks))


def score(predicted: Predicted, weights: Weights, relative_to: Yardstick) -> float:
    """The weighted score of this module's docstring; less is better, 1 is the least there can be."""
    marks = {objective: (best, unit) for objective, best, unit in relative_to.marks}
    total = 0.0
    for objective, weight in weights.weights:
        best, unit = marks[objective]
        total += weight * (1.0 + (burden(predicted, objective) - best) / unit)
    return total


def _objective(name: str) -> Objective:
    try:
        return Objective(name)
    except ValueError:
        raise ConfigurationError(
            "objective",
            expected=f"one of {', '.join(Objective)}, or weights as in latency=0.7,cost=0.3",
            got=repr(name),
        ) from None


def _another(objective: Objective) -> Objective:
    others: Sequence[Objective] = [one for one in Objective if one is not objective]
    return others[0]

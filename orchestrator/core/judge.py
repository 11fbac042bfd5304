"""Which of two plans is better, and whether a plan may be at all: the goal and the limits in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from orchestrator.core.figures import Objective, Predicted, burden
from orchestrator.core.goal import Goal, Weights, Yardstick, objectives_of, score
from orchestrator.core.hysteresis import gain_ratio
from orchestrator.core.limits import GRAIN, Limits
from orchestrator.core.partition import TIE
from orchestrator.core.tables import FloatArray, IntArray

TRACKED = (Objective.LATENCY, Objective.ENERGY, Objective.EXPOSURE)
"""Figures that a search must tell apart; throughput always is, and the price follows from the nodes."""


@dataclass(frozen=True, slots=True)
class Judge:
    """`yardstick` is there where the goal is weighted."""

    goal: Goal
    limits: Limits
    yardstick: Yardstick | None = None

    @property
    def tracked(self) -> tuple[Objective, ...]:
        """What a search for this goal under these limits must tell apart.

        The limit on exposure is not among it: it says which stages may be where.
        """
        wanted = {*objectives_of(self.goal), *self.limits.objectives} - {Objective.EXPOSURE}
        wanted |= {Objective.EXPOSURE} & {*objectives_of(self.goal)}
        return tuple(objective for objective in TRACKED if objective in wanted)

    def value(self, predicted: Predicted) -> float:
        """What the goal makes least: the burden of its objective, or the weighted score."""
        if isinstance(self.goal, Weights):
            assert self.yardstick is not None
            return score(predicted, self.goal, self.yardstick)
        return burden(predicted, self.goal)

    def allows(self, predicted: Predicted) -> bool:
        """Whether a plan keeps all limits."""
        return not self.limits.broken(predicted)

    def gain(self, present: Predicted, candidate: Predicted) -> float:
        """`gain_ratio` by this goal."""
        return gain_ratio(present, candidate, self.goal, self.yardstick)

    def key(self, predicted: Predicted) -> tuple[bool, float, float]:
        """Sorts plans, best first: those that keep the limits, then by the goal, then by throughput."""
        return not self.allows(predicted), self.value(predicted), -predicted.throughput_per_s

    def values(self, burdens: Mapping[Objective, FloatArray]) -> FloatArray:
        """`value` of many plans at once."""
        if not isinstance(self.goal, Weights):
            return burdens[self.goal]
        assert self.yardstick is not None
        total = np.zeros_like(burdens[Objective.THROUGHPUT])
        for (objective, weight), (_, best, unit) in zip(
            self.goal.weights, self.yardstick.marks, strict=True
        ):
            total += weight * (1.0 + (burdens[objective] - best) / unit)
        return total

    def allowed(self, burdens: Mapping[Objective, FloatArray]) -> IntArray:
        """The plans that keep all limits on figures that are told apart, as indices."""
        keep = np.ones(len(burdens[Objective.THROUGHPUT]), dtype=np.bool_)
        for objective in self.limits.objectives:
            if objective in burdens:
                keep &= burdens[objective] <= self.ceiling(objective) * (1 + GRAIN)
        return np.flatnonzero(keep)

    def ceiling(self, objective: Objective) -> float:
        """The limit on an objective's burden; infinite where there is none."""
        limit = self.limits.of(objective)
        if limit is None:
            return float("inf")
        return 1.0 / limit if objective is Objective.THROUGHPUT else limit

    def best(self, burdens: Mapping[Objective, FloatArray], nodes: IntArray) -> int | None:
        """The best plan that is allowed; ties by throughput, then by fewer nodes, then the first.

        `nodes` has the number of nodes of each plan. None where no plan is allowed.
        """
        near = self.allowed(burdens)
        for figures in (self.values(burdens), burdens[Objective.THROUGHPUT], nodes):
            if not len(near):
                return None
            mine = figures[near]
            near = near[mine <= mine.min() * (1 + TIE)]
        return int(near[0])

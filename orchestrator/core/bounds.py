"""What no plan can be below, by objective; and what a weighted score is measured by."""

from __future__ import annotations

from typing import assert_never

import numpy as np

from orchestrator.core import cost
from orchestrator.core.figures import Objective
from orchestrator.core.goal import Goal
from orchestrator.core.problem import Problem
from shared.profile import NodeProfile


def lower_bound(problem: Problem, goal: Goal) -> float:
    """A bound on the goal's burden, with messages, links and (but for exposure) memory left out.

    Throughput, in seconds per job: all nodes work all the time. Latency, in seconds: all the work on the
    fastest node. Energy and cost: all the work on the node that takes least for it, since of a mean and of a
    ratio of sums no whole is less than its least part. Exposure: with any number of nodes as large as the
    largest of their zone. A weighted score: 1.
    """
    work, nodes = problem.request.profile.work_s, problem.request.usable
    if not isinstance(goal, Objective):
        return 1.0
    match goal:
        case Objective.THROUGHPUT:
            return work / sum(node.best_rate for node in nodes)
        case Objective.LATENCY:
            return work / max(node.best_rate for node in nodes)
        case Objective.ENERGY:
            return min(node.power_w * work / node.best_rate for node in nodes)
        case Objective.COST:
            return min(_cost_of_work(node, work / node.best_rate) for node in nodes)
        case Objective.EXPOSURE:
            return _least_exposure(problem)
        case _:
            assert_never(goal)


def dearest(problem: Problem) -> dict[Objective, float]:
    """The unit of a weighted score where the best is 0: all the work on the node that takes most for it."""
    work, nodes = problem.request.profile.work_s, problem.request.usable
    return {
        Objective.ENERGY: max(node.power_w * work / node.rate for node in nodes),
        Objective.COST: max(_cost_of_work(node, work / node.rate) for node in nodes),
    }


def _cost_of_work(node: NodeProfile, seconds: float) -> float:
    return cost.plan_cost_per_1000([node.price_per_hour], 1.0 / seconds)


def _least_exposure(problem: Problem) -> float:
    model = problem.model
    size = model.num_blocks + 1
    stage = np.full((size, size), np.inf)
    for home in (True, False):
        of_zone = [n for n in problem.request.usable if (n.zone == model.home_zone) is home]
        if of_zone:
            fits = model.fits(max(of_zone, key=lambda node: node.memory_bytes))
            exposed = 0.0 if home else model.exposed[:, None]
            stage = np.minimum(stage, np.where(fits, exposed, np.inf))
    least = np.full(size, np.inf)
    least[0] = 0.0
    for stop in range(1, size):
        least[stop] = np.maximum(least, stage[:, stop]).min()
    return float(least[-1])

"""How a plan is found: strategies behind one interface, `(Problem, Judge) -> Proposal`.

A strategy raises the error of `infeasible.py` where it finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.core.infeasible import beyond_limits, no_plan, no_whole
from orchestrator.core.judge import Judge
from orchestrator.core.optimum import optimum
from orchestrator.core.paper_rules import equal, ralos
from orchestrator.core.plan import Strategy
from orchestrator.core.problem import Problem, Proposal, place


def optimal(problem: Problem, judge: Judge) -> Proposal:
    """One node, copies, pipelines and mixtures, whichever is best."""
    found = optimum(problem, judge)
    if found.patterns:
        return Proposal(place(found.patterns, problem.kinds), found.notes)
    if judge.limits.objectives:
        raise beyond_limits(problem, judge)
    raise no_plan(problem)


def single(problem: Problem, judge: Judge) -> Proposal:
    """The whole model on the node that is best for it alone, of those that keep the limits; ties by name."""
    placed = [[stage] for stage in replicate(problem, judge).placed]
    return Proposal(min(placed, key=lambda one: judge.key(problem.price(one).predicted)))


def replicate(problem: Problem, _judge: Judge) -> Proposal:
    """A copy of the whole model on each node where it fits."""
    if 1 not in problem.stages:
        raise no_plan(problem)
    blocks = (0, problem.model.num_blocks)
    placed = [[(node.name, blocks)] for node in problem.holding_all()]
    if not placed:
        raise no_whole(problem)
    return Proposal(placed)


STRATEGIES: dict[Strategy, Callable[[Problem, Judge], Proposal]] = {
    Strategy.OPTIMAL: optimal,
    Strategy.SINGLE: single,
    Strategy.REPLICATE: replicate,
    Strategy.EQUAL: lambda problem, _: equal(problem),
    Strategy.RALOS: lambda problem, _: ralos(problem),
}

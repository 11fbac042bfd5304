"""How a plan is found: strategies behind one interface, `Problem -> Proposal`.

A strategy raises the error of `infeasible.py` where it finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.core.bounded import EXACT_STATES, bounded_latency, bounded_throughput
from orchestrator.core.infeasible import no_plan, no_whole
from orchestrator.core.mixture import Pattern, best_latency, best_throughput
from orchestrator.core.paper_rules import equal, ralos
from orchestrator.core.partition import lattice, lattice_size
from orchestrator.core.plan import Objective, Strategy
from orchestrator.core.problem import Problem, Proposal, better_first, place
from orchestrator.core.tables import stage_tables

BOUNDED_NOTE = (
    "the cluster is too large for an exact search; the gap to the lower bound is what it may miss"
)


def optimal(problem: Problem) -> Proposal:
    """One node, copies, pipelines and mixtures, whichever is best; exact up to EXACT_STATES sets of nodes."""
    if not problem.kinds or not problem.stages:
        raise no_plan(problem)
    exact = lattice_size(problem.counts) <= EXACT_STATES
    patterns = (_exact if exact else _bounded)(problem)
    if not patterns:
        raise no_plan(problem)
    return Proposal(place(patterns, problem.kinds), () if exact else (BOUNDED_NOTE,))


def _exact(problem: Problem) -> list[Pattern]:
    tables = stage_tables(problem.model, problem.kinds)
    states = lattice(problem.counts)
    match problem.request.objective:
        case Objective.THROUGHPUT:
            return best_throughput(tables, states, stages=problem.stages)
        case _:
            return best_latency(tables, states, stages=problem.stages)


def _bounded(problem: Problem) -> list[Pattern]:
    match problem.request.objective:
        case Objective.THROUGHPUT:
            return bounded_throughput(problem)
        case _:
            return bounded_latency(problem)


def single(problem: Problem) -> Proposal:
    """The whole model on the node that is best for it alone; ties by name."""
    if 1 not in problem.stages:
        raise no_plan(problem)
    placed = [[[(node.name, (0, problem.model.num_blocks))]] for node in problem.holding_all()]
    if not placed:
        raise no_whole(problem)
    objective = problem.request.objective
    return Proposal(min(placed, key=lambda one: better_first(objective, problem.price(one))))


def replicate(problem: Problem) -> Proposal:
    """A copy of the whole model on each node where it fits."""
    if 1 not in problem.stages:
        raise no_plan(problem)
    blocks = (0, problem.model.num_blocks)
    placed = [[(node.name, blocks)] for node in problem.holding_all()]
    if not placed:
        raise no_whole(problem)
    return Proposal(placed)


STRATEGIES: dict[Strategy, Callable[[Problem], Proposal]] = {
    Strategy.OPTIMAL: optimal,
    Strategy.SINGLE: single,
    Strategy.REPLICATE: replicate,
    Strategy.EQUAL: equal,
    Strategy.RALOS: ralos,
}

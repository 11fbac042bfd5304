"""From a request to a plan: the planner's one door."""

from __future__ import annotations

from orchestrator.core.alternatives import alternatives
from orchestrator.core.plan import Objective, Plan, PlanRequest
from orchestrator.core.problem import pose
from orchestrator.core.strategies import STRATEGIES


def plan(request: PlanRequest) -> Plan:
    """Decide what should run where.

    Deterministic: the same request, its nodes in any order, gives the same plan. Raises PlanError where no
    plan satisfies the request; the message says which constraint cannot be met and what the nearest possible
    is (`infeasible.feasible_stage_counts` has it as numbers).
    """
    problem = pose(request)
    proposal = STRATEGIES[request.strategy](problem)
    priced = problem.price(proposal.placed)
    rates = [node.best_rate for node in request.usable]
    match request.objective:
        case Objective.THROUGHPUT:
            speed = sum(rates)
        case _:
            speed = max(rates)
    return Plan(
        model=request.profile.model,
        strategy=request.strategy,
        objective=request.objective,
        pipelines=priced.pipelines,
        predicted=priced.predicted,
        alternatives=alternatives(problem, priced),
        lower_bound=request.profile.work_s / speed,
        leaf_counts=proposal.leaf_counts,
        notes=proposal.notes,
    )

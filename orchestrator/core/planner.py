"""From a request to a plan: the planner's one door."""

from __future__ import annotations

from orchestrator.core.alternatives import alternatives
from orchestrator.core.bounds import lower_bound
from orchestrator.core.infeasible import no_plan
from orchestrator.core.optimum import judge_for
from orchestrator.core.plan import Plan, PlanRequest
from orchestrator.core.problem import pose
from orchestrator.core.strategies import STRATEGIES
from shared.errors import PlanError


def plan(request: PlanRequest) -> Plan:
    """Decide what should run where.

    Deterministic: the same request, its nodes in any order, gives the same plan. Raises PlanError where no
    plan satisfies the request; the message says which constraint cannot be met and what the nearest possible
    is (`infeasible.feasible_stage_counts` has it as numbers).
    """
    problem = pose(request)
    judge = judge_for(problem)
    if judge is None:
        raise no_plan(problem)
    proposal = STRATEGIES[request.strategy](problem, judge)
    priced = problem.price(proposal.placed)
    if not judge.allows(priced.predicted):
        raise PlanError(
            f"strategy {request.strategy} {request.limits.breach(priced.predicted)}; "
            "strategy optimal looks for a plan within the limits",
            expected="a plan within the limits",
            got=f"the plan of strategy {request.strategy}",
        )
    return Plan(
        model=request.profile.model,
        strategy=request.strategy,
        objective=request.objective,
        pipelines=priced.pipelines,
        predicted=priced.predicted,
        alternatives=alternatives(problem, judge, priced),
        lower_bound=lower_bound(problem, request.objective),
        leaf_counts=proposal.leaf_counts,
        notes=proposal.notes,
        yardstick=judge.yardstick,
    )

"""From a request to a plan: the planner's one door."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.core.alternatives import alternatives
from orchestrator.core.bounds import lower_bound
from orchestrator.core.compressing import choose_links, noted, ways, with_way
from orchestrator.core.infeasible import no_plan
from orchestrator.core.judge import Judge
from orchestrator.core.optimum import judge_for
from orchestrator.core.plan import Plan, PlanRequest, Priced
from orchestrator.core.problem import Problem, Proposal, pose
from orchestrator.core.strategies import STRATEGIES
from shared.errors import PlanError


@dataclass(frozen=True, slots=True)
class _Found:
    """The best plan with all tensors sent one way; then with each link sent its own way."""

    problem: Problem
    judge: Judge
    proposal: Proposal
    priced: Priced


def plan(request: PlanRequest) -> Plan:
    """Decide what should run where, and how tensors travel between.

    Deterministic: the same request, its nodes in any order, gives the same plan. Raises PlanError where no
    plan satisfies the request; the message says which constraint cannot be met and what the nearest possible
    is (`infeasible.feasible_stage_counts` has it as numbers). Raises ConfigurationError where a
    compression was asked for that cannot be had.
    """
    best: _Found | None = None
    error: PlanError | None = None
    for way in ways(request):
        try:
            found = _found(request, way)
        except PlanError as reason:
            error = error or reason
            continue
        if best is None or best.judge.key(found.priced.predicted) < best.judge.key(
            best.priced.predicted
        ):
            # All are judged alike, weights by the first yardstick.
            best = found if best is None else replace(found, judge=best.judge)
    if best is None:
        assert error is not None
        raise error
    return Plan(
        model=request.profile.model,
        strategy=request.strategy,
        objective=request.objective,
        pipelines=best.priced.pipelines,
        predicted=best.priced.predicted,
        alternatives=alternatives(best.problem, best.judge, best.priced),
        lower_bound=lower_bound(best.problem, request.objective),
        leaf_counts=best.proposal.leaf_counts,
        notes=(*_whole_note(request), *best.proposal.notes),
        yardstick=best.judge.yardstick,
    )


def _whole_note(request: PlanRequest) -> tuple[str, ...]:
    why = request.profile.whole
    return (f"served whole: {why}",) if why else ()


def _found(request: PlanRequest, way: str) -> _Found:
    problem = pose(with_way(request, way))
    judge = judge_for(problem)
    if judge is None:
        raise no_plan(problem)
    proposal = STRATEGIES[request.strategy](problem, judge)
    pipelines = noted(problem.request.profile, way, problem.price(proposal.placed).pipelines)
    priced = choose_links(request, judge, pipelines)
    if not judge.allows(priced.predicted):
        raise PlanError(
            f"strategy {request.strategy} {request.limits.breach(priced.predicted)}; "
            "strategy optimal looks for a plan within the limits",
            expected="a plan within the limits",
            got=f"the plan of strategy {request.strategy}",
        )
    return _Found(problem, judge, proposal, priced)

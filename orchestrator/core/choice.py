"""The exact choice: by dynamic programming for one objective, else among all plans worth considering.

The quick way first: where the best plan by one objective keeps the limits, nothing can be better. Else
limits and weights both choose among the same front of plans (`plan_front.py`).
"""

from __future__ import annotations

from orchestrator.core.exact import best_plan
from orchestrator.core.figures import Objective
from orchestrator.core.judge import Judge
from orchestrator.core.mixture import Pattern
from orchestrator.core.partition import Lattice
from orchestrator.core.pipeline_front import Columns, pipeline_front
from orchestrator.core.plan_front import PlanFront, plan_front
from orchestrator.core.problem import Problem, place
from orchestrator.core.tables import Kind, StageTables

EXACT_STATES = 1024
"""Up to so many sets of nodes (2^10: ten unlike nodes, a thousand equal ones) the plan is exact."""


_FEW_STATES = 64
THOROUGH_WORK = 30
"""How much more work a thorough search for a front may be: enough to thin nothing out at ten unlike nodes."""


def label_states(problem: Problem, judge: Judge) -> int:
    """Up to so many sets of nodes a front over what a judge looks at is searched whole.

    In about a second, or in some seconds where the request wants it thorough.
    """
    if problem.request.thorough or not judge.tracked:
        return EXACT_STATES
    return 128 if len(judge.tracked) == 1 else 32


def chosen_exactly(
    problem: Problem,
    kinds: tuple[Kind, ...],
    tables: StageTables,
    states: Lattice,
    judge: Judge,
) -> tuple[list[Pattern], float]:
    """The best plan over the nodes of `kinds` that keeps the limits; no pipelines where there is none.

    And the ratio by which a better one may have been missed.
    """
    if isinstance(judge.goal, Objective):
        patterns = best_plan(judge.goal, tables, states, stages=problem.stages)
        if not patterns or judge.allows(problem.price(place(patterns, kinds)).predicted):
            return patterns, 0.0
    return chosen_from_front(problem, kinds, tables, states, judge)


def chosen_from_front(
    problem: Problem,
    kinds: tuple[Kind, ...],
    tables: StageTables,
    states: Lattice,
    judge: Judge,
) -> tuple[list[Pattern], float]:
    """The same, without the quick way."""
    known: list[list[Pattern]] = []
    front = all_plans(problem, tables, states, judge)
    best = judge.best(front.burdens, front.nodes)
    found = [] if best is None else [front.patterns(best)]
    if front.error_ratio:
        # What one objective is best at is known exactly, and may have been thinned out
        known = [
            patterns
            for objective in (*judge.tracked, Objective.THROUGHPUT, Objective.COST)
            if (patterns := best_plan(objective, tables, states, stages=problem.stages))
        ]
    priced = [(patterns, problem.price(place(patterns, kinds))) for patterns in (*found, *known)]
    good = [(patterns, one.predicted) for patterns, one in priced if judge.allows(one.predicted)]
    if not good:
        return [], front.error_ratio
    return min(good, key=lambda pair: judge.key(pair[1]))[0], front.error_ratio


def all_plans(problem: Problem, tables: StageTables, states: Lattice, judge: Judge) -> PlanFront:
    """The front over what the goal and the limits look at; latency above its limit is left out."""
    # Where two figures are told apart beside the period, so much work on many nodes would be minutes
    much = len(judge.tracked) < 2 or states.size <= _FEW_STATES
    work = THOROUGH_WORK if problem.request.thorough and much else 1
    pipelines = pipeline_front(
        tables,
        states,
        Columns(judge.tracked),
        stages=problem.stages,
        max_latency_s=judge.ceiling(Objective.LATENCY),
        work=work,
    )
    return plan_front(tables, pipelines, work=work)

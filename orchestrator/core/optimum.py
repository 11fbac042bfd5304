"""The best plan by a goal under limits, over everything there is: exact where it can be, else bounded."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.bounded import bounded_choice
from orchestrator.core.bounds import dearest
from orchestrator.core.choice import EXACT_STATES, chosen_from_front, label_states
from orchestrator.core.exact import best_plan
from orchestrator.core.figures import Objective, burden
from orchestrator.core.goal import Weights, yardstick
from orchestrator.core.judge import Judge
from orchestrator.core.limits import NO_LIMITS
from orchestrator.core.mixture import Pattern
from orchestrator.core.partition import lattice, lattice_size
from orchestrator.core.problem import Problem, place
from orchestrator.core.tables import stage_tables

BOUNDED_NOTE = (
    "the cluster is too large for an exact search; the gap to the lower bound is what it may miss"
)

FRONT_NOTE = (
    "with limits or weights the cluster is too large for an exact search; the gap to the lower bound is "
    "what it may miss"
)


@dataclass(frozen=True, slots=True)
class Optimum:
    """What was found (no pipelines: nothing), and what a reader should know about the search."""

    patterns: list[Pattern]
    notes: tuple[str, ...] = ()


def optimum(problem: Problem, judge: Judge) -> Optimum:
    """One node, copies, pipelines and mixtures, whichever is best; exact up to EXACT_STATES sets of nodes."""
    if not problem.kinds or not problem.stages:
        return Optimum([])
    size = lattice_size(problem.counts)
    if size > EXACT_STATES:
        return Optimum(bounded_choice(problem, judge), (BOUNDED_NOTE,))
    tables = stage_tables(problem.model, problem.kinds)
    states = lattice(problem.counts)
    quick: list[Pattern] = []
    if isinstance(judge.goal, Objective):
        quick = best_plan(judge.goal, tables, states, stages=problem.stages)
        if not quick or judge.allows(problem.price(place(quick, problem.kinds)).predicted):
            return Optimum(quick)
    if size > label_states(problem, judge):
        found = bounded_choice(problem, judge)
        if found:
            return Optimum(found, (FRONT_NOTE,))
    patterns, error_ratio = chosen_from_front(problem, problem.kinds, tables, states, judge)
    if patterns and error_ratio:
        # Nothing is better than the best without limits, and no score is less than 1
        value = judge.value(problem.price(place(patterns, problem.kinds)).predicted)
        least = 1.0
        if quick:
            least = judge.value(problem.price(place(quick, problem.kinds)).predicted)
        if least > 0:
            error_ratio = min(error_ratio, max(value / least - 1.0, 0.0))
    return Optimum(patterns, thinned_note(error_ratio))


def thinned_note(error_ratio: float) -> tuple[str, ...]:
    """What to say where plans were thinned out."""
    if not error_ratio:
        return ()
    note = (
        "too many plans to compare them all: one better by up to "
        f"{error_ratio:.1%} may have been missed"
    )
    return (note,)


def judge_for(problem: Problem) -> Judge | None:
    """The judge of a request; of a weighted goal with its yardstick. None where no plan can run at all."""
    request = problem.request
    goal = request.objective
    if not isinstance(goal, Weights):
        return Judge(goal, request.limits)
    best: dict[Objective, float] = {}
    for objective, _ in goal.weights:
        found = optimum(problem, Judge(objective, NO_LIMITS)).patterns
        if not found:
            return None
        predicted = problem.price(place(found, problem.kinds)).predicted
        best[objective] = burden(predicted, objective)
    return Judge(goal, request.limits, yardstick(goal, best, dearest(problem)))

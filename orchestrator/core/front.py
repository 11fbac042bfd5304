"""The Pareto front on request: every plan that is not beaten by another in all of some objectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from orchestrator.core.bounded import shortlist
from orchestrator.core.choice import all_plans, label_states
from orchestrator.core.figures import Objective, burden
from orchestrator.core.goal import Goal, Weights
from orchestrator.core.infeasible import beyond_limits, no_plan
from orchestrator.core.judge import Judge
from orchestrator.core.limits import NO_LIMITS
from orchestrator.core.optimum import optimum, thinned_note
from orchestrator.core.pareto import non_dominated
from orchestrator.core.partition import lattice, lattice_size
from orchestrator.core.plan import Front, PlanRequest, Priced
from orchestrator.core.problem import Problem, place, pose
from orchestrator.core.tables import Kind, stage_tables
from shared.errors import ConfigurationError

SHORTLIST_NOTE = (
    "the cluster is too large for a whole front: it is that of the most promising nodes, "
    "with each objective's best plan over all"
)


def front(request: PlanRequest, objectives: Sequence[Objective]) -> Front:
    """The front over `objectives`, under the request's limits, zones and numbers of stages.

    The request's own objective and strategy are not looked at. Deterministic. Raises ConfigurationError for
    fewer than two objectives or one given twice, PlanError where no plan satisfies the request.
    """
    if len(objectives) < 2 or len(set(objectives)) < len(objectives):
        raise ConfigurationError(
            "front",
            expected="two or more objectives, each once",
            got=", ".join(objectives) or "none",
        )
    # In a fixed order, so that the labels are the same whatever is named first
    wanted: Goal = Weights(tuple((objective, 1.0) for objective in objectives))
    judge = Judge(wanted, request.limits)
    problem = pose(dataclasses.replace(request, objective=wanted))
    if not problem.kinds or not problem.stages:
        raise no_plan(problem)
    points, notes = _points(problem, judge)
    for objective in objectives:
        found = optimum(problem, Judge(objective, request.limits)).patterns
        if found:
            points.append(problem.price(place(found, problem.kinds)))
    if not points:
        limited = judge.limits != NO_LIMITS
        raise beyond_limits(problem, judge) if limited else no_plan(problem)
    return Front(request.profile.model, tuple(objectives), _best_of(points, objectives), notes)


def _points(problem: Problem, judge: Judge) -> tuple[list[Priced], tuple[str, ...]]:
    few = tuple(enumerate(problem.counts))
    notes: tuple[str, ...] = ()
    most = label_states(problem, judge)
    if lattice_size(problem.counts) > most:
        few = shortlist(problem, most)
        notes = (SHORTLIST_NOTE,)
    kinds = tuple(
        Kind(problem.kinds[kind].node, problem.kinds[kind].names[:count]) for kind, count in few
    )
    tables = stage_tables(problem.model, kinds)
    found = all_plans(problem, tables, lattice([count for _, count in few]), judge)
    allowed = judge.allowed(found.burdens)
    burdens = np.column_stack(
        [found.burdens[objective][allowed] for objective, _ in _weights(judge)]
    )
    kept = allowed[non_dominated(np.zeros(len(allowed), dtype=np.int64), burdens)]
    points = [problem.price(place(found.patterns(int(plan)), kinds)) for plan in kept]
    return points, (*notes, *thinned_note(found.error_ratio))


def _weights(judge: Judge) -> tuple[tuple[Objective, float], ...]:
    assert isinstance(judge.goal, Weights)
    return judge.goal.weights


def _best_of(points: list[Priced], objectives: Sequence[Objective]) -> tuple[Priced, ...]:
    """The non-dominated points, once each, in the order of the objectives."""
    burdens = np.array(
        [[burden(point.predicted, objective) for objective in objectives] for point in points]
    )
    kept = non_dominated(np.zeros(len(points), dtype=np.int64), burdens)
    return tuple(points[int(index)] for index in kept)

"""What else there was: the best plan of each other kind, with its figures and the reason it lost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.core.bounded import shortlist
from orchestrator.core.choice import EXACT_STATES
from orchestrator.core.evaluate import Placement, placements
from orchestrator.core.exact import best_pipelines
from orchestrator.core.figures import Objective, figure, in_words
from orchestrator.core.goal import objectives_of
from orchestrator.core.infeasible import whole_needs
from orchestrator.core.judge import Judge
from orchestrator.core.limits import NO_LIMITS
from orchestrator.core.mixture import Pattern
from orchestrator.core.optimum import optimum
from orchestrator.core.partition import TIE, lattice, lattice_size
from orchestrator.core.plan import Alternative, PlanRequest, Priced, Strategy
from orchestrator.core.problem import Problem, place, pose
from orchestrator.core.strategies import replicate, single
from orchestrator.core.tables import stage_tables

MOST_STAGES = 10
"""Longer pipelines are planned but not listed beside the plan: nobody reads fifty of them."""


def alternatives(problem: Problem, judge: Judge, chosen: Priced) -> tuple[Alternative, ...]:
    """The best single node, a copy on each, the best pipeline of 2, 3, ... stages, the best without limits.

    What equals the chosen plan is left out. What asking for a number of stages or a limit has ruled out is
    in, with that as its reason. Of the pipelines with n stages those are compared that are best by one
    objective of the goal or the limits; the plan without limits is looked for where the goal is one
    objective.
    """
    free = pose(
        dataclasses.replace(
            problem.request, strategy=Strategy.OPTIMAL, min_stages=1, max_stages=None
        )
    )
    return tuple(_alternatives(free, _Against(problem.request, judge, chosen)))


@dataclass(frozen=True, slots=True)
class _Against:
    """What an alternative is compared with: what was asked for, by whose judgement, and what was chosen."""

    asked: PlanRequest
    judge: Judge
    chosen: Priced


def _alternatives(free: Problem, against: _Against) -> Iterator[Alternative]:
    judge = against.judge
    for strategy, find in ((Strategy.SINGLE, single), (Strategy.REPLICATE, replicate)):
        if not free.holding_all():
            yield Alternative(str(strategy), (), None, whole_needs(free))
            continue
        placed = find(free, judge).placed
        # A copy on each of one node is the single node again
        if strategy is Strategy.SINGLE or len(placed) > 1:
            yield from _compared(str(strategy), placed, free, against)
    for stages, patterns in _pipelines(free, judge):
        kind = f"pipeline of {stages}"
        if not patterns:
            fits = "memory and zones" if free.model.first_outside else "memory"
            yield Alternative(kind, (), None, f"no pipeline of {stages} stages fits the {fits}")
            continue
        placed = min(
            (place([pattern], free.kinds) for pattern in patterns),
            key=lambda one: judge.key(free.price(one).predicted),
        )
        yield from _compared(kind, placed, free, against)
    if judge.limits.objectives and isinstance(judge.goal, Objective):
        yield from _without_limits(against)


def _without_limits(against: _Against) -> Iterator[Alternative]:
    asked, judge = against.asked, against.judge
    problem = pose(dataclasses.replace(asked, strategy=Strategy.OPTIMAL, limits=NO_LIMITS))
    found = optimum(problem, Judge(judge.goal, NO_LIMITS))
    if not found.patterns:
        return
    placed = place(found.patterns, problem.kinds)
    if asked.limits.broken(problem.price(placed).predicted):
        yield from _compared("without limits", placed, problem, against)


def _pipelines(free: Problem, judge: Judge) -> Iterator[tuple[int, list[Pattern]]]:
    """The best pipelines by number of stages, over all nodes or, in a large cluster, the promising ones."""
    few = tuple(enumerate(free.counts))
    if lattice_size(free.counts) > EXACT_STATES:
        few = shortlist(free, EXACT_STATES // 4)
    tables = stage_tables(free.model, [free.kinds[kind] for kind, _ in few])
    states = lattice([count for _, count in few])
    most = min(MOST_STAGES, free.model.num_blocks, int(states.totals[-1]))
    by_objective = [
        best_pipelines(objective, tables, states, stages=range(2, most + 1))
        for objective in dict.fromkeys((*objectives_of(judge.goal), *judge.limits.objectives))
    ]
    for stages in range(2, most + 1):
        found = (by_length[stages] for by_length in by_objective if stages in by_length)
        yield (
            stages,
            [
                tuple((few[kind][0], start, stop) for kind, start, stop in pattern)
                for pattern in dict.fromkeys(found)
            ],
        )


def _compared(
    kind: str, placed: list[list[Placement]], free: Problem, against: _Against
) -> Iterator[Alternative]:
    if sorted(placed) == sorted(placements(against.chosen.pipelines)):
        return
    priced = free.price(placed)
    reason = _reason(placed, priced, against)
    yield Alternative(kind, priced.pipelines, priced.predicted, reason)


def _reason(placed: list[list[Placement]], priced: Priced, against: _Against) -> str:
    asked, judge, chosen = against.asked, against.judge, against.chosen
    mine, best = judge.value(priced.predicted), judge.value(chosen.predicted)
    tied = math.isclose(mine, best, rel_tol=TIE)
    figures = _figures(priced, chosen, judge, tied=tied)
    stages = [len(pipeline) for pipeline in placed]
    if min(stages) < asked.min_stages:
        return f"at least {asked.min_stages} stages were asked for ({figures})"
    if asked.max_stages is not None and max(stages) > asked.max_stages:
        return f"at most {asked.max_stages} stages were asked for ({figures})"
    if breach := asked.limits.breach(priced.predicted):
        return breach
    gain = judge.gain(chosen.predicted, priced.predicted)
    if gain < -TIE:
        return f"{'as good, but ' if tied else ''}{-gain:.1%} worse: {figures}"
    if gain > TIE and asked.strategy is not Strategy.OPTIMAL:
        return f"strategy {asked.strategy} was asked for ({figures})"
    if gain > TIE:
        return f"the search did not find it ({figures})"
    nodes = sum(stages), sum(len(pipeline.stages) for pipeline in chosen.pipelines)
    if nodes[0] > nodes[1]:
        return f"no better with {nodes[0]} nodes than with {nodes[1]} ({figures})"
    return f"no better ({figures})"


def _figures(priced: Priced, chosen: Priced, judge: Judge, *, tied: bool) -> str:
    """Both plans' figures by the goal; where they are equal by that, by throughput, which then decides."""
    goal = Objective.THROUGHPUT if tied else judge.goal
    if isinstance(goal, Objective):
        mine, best = (figure(one.predicted, goal) for one in (priced, chosen))
        return f"{in_words(goal, mine)} against {in_words(goal, best).split()[0]}"
    mine, best = judge.value(priced.predicted), judge.value(chosen.predicted)
    return f"score {mine:.4g} against {best:.4g}"

"""What else there was: the best plan of each other kind, with its figures and the reason it lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from orchestrator.core.bounded import EXACT_STATES, shortlist
from orchestrator.core.evaluate import Placement, placements
from orchestrator.core.hysteresis import gain_ratio
from orchestrator.core.infeasible import whole_needs
from orchestrator.core.mixture import Pattern, allowed_states
from orchestrator.core.partition import TIE, lattice, lattice_size, search
from orchestrator.core.plan import Alternative, Objective, PlanRequest, Priced, Strategy
from orchestrator.core.problem import Problem, place, pose
from orchestrator.core.strategies import replicate, single
from orchestrator.core.tables import stage_tables

_MAXIMUM: np.ufunc = np.maximum
_SUM: np.ufunc = np.add

MOST_STAGES = 10
"""Longer pipelines are planned but not listed beside the plan: nobody reads fifty of them."""


def alternatives(problem: Problem, chosen: Priced) -> tuple[Alternative, ...]:
    """The best single node, a copy on each node, and the best pipeline of 2, 3, ... stages.

    What equals the chosen plan is left out. What asking for a number of stages has ruled out is in, with that
    as its reason.
    """
    free = pose(
        dataclasses.replace(
            problem.request, strategy=Strategy.OPTIMAL, min_stages=1, max_stages=None
        )
    )
    return tuple(_alternatives(free, problem.request, chosen))


def _alternatives(free: Problem, asked: PlanRequest, chosen: Priced) -> Iterator[Alternative]:
    for strategy, find in ((Strategy.SINGLE, single), (Strategy.REPLICATE, replicate)):
        if not free.holding_all():
            yield Alternative(str(strategy), (), None, whole_needs(free))
            continue
        placed = find(free).placed
        # A copy on each of one node is the single node again
        if strategy is Strategy.SINGLE or len(placed) > 1:
            yield from _compared(str(strategy), placed, free, asked, chosen)
    for stages, pattern in _pipelines(free):
        kind = f"pipeline of {stages}"
        if pattern is None:
            yield Alternative(kind, (), None, f"no pipeline of {stages} stages fits the memory")
        else:
            yield from _compared(kind, place([pattern], free.kinds), free, asked, chosen)


def _pipelines(free: Problem) -> Iterator[tuple[int, Pattern | None]]:
    """The best pipeline by number of stages, over all nodes or, in a large cluster, the promising ones."""
    few = tuple(enumerate(free.counts))
    if lattice_size(free.counts) > EXACT_STATES:
        few = shortlist(free, EXACT_STATES // 4)
    tables = stage_tables(free.model, [free.kinds[kind] for kind, _ in few])
    match free.request.objective:
        case Objective.THROUGHPUT:
            costs, combine = tables.period_s, _MAXIMUM
        case _:
            costs, combine = tables.latency_s, _SUM
    most = min(MOST_STAGES, free.model.num_blocks, sum(count for _, count in few))
    states = lattice([count for _, count in few])
    found = search(costs, states, combine, max_stages=most)
    for stages in range(2, most + 1):
        runs = allowed_states(found, stages, stages)
        if not len(runs):
            yield stages, None
            continue
        best = int(runs[found.totals[runs].argmin()])
        yield stages, tuple((few[kind][0], i, j) for kind, i, j in found.path(best))


def _compared(
    kind: str,
    placed: list[list[Placement]],
    free: Problem,
    asked: PlanRequest,
    chosen: Priced,
) -> Iterator[Alternative]:
    if sorted(placed) == sorted(placements(chosen.pipelines)):
        return
    priced = free.price(placed)
    reason = _reason(placed, priced, asked, chosen)
    yield Alternative(kind, priced.pipelines, priced.predicted, reason)


def _reason(
    placed: list[list[Placement]], priced: Priced, asked: PlanRequest, chosen: Priced
) -> str:
    objective = asked.objective
    match objective:
        case Objective.THROUGHPUT:
            mine, best = priced.predicted.throughput_per_s, chosen.predicted.throughput_per_s
            figures = f"{mine:.4g} jobs/s against {best:.4g}"
        case _:
            mine, best = priced.predicted.latency_s * 1e3, chosen.predicted.latency_s * 1e3
            figures = f"{mine:.4g} ms against {best:.4g}"
    stages = [len(pipeline) for pipeline in placed]
    if min(stages) < asked.min_stages:
        return f"at least {asked.min_stages} stages were asked for ({figures})"
    if asked.max_stages is not None and max(stages) > asked.max_stages:
        return f"at most {asked.max_stages} stages were asked for ({figures})"
    gain = gain_ratio(chosen.predicted, priced.predicted, objective)
    if gain < -TIE:
        return f"{-gain:.1%} worse: {figures}"
    if gain > TIE and asked.strategy is not Strategy.OPTIMAL:
        return f"strategy {asked.strategy} was asked for ({figures})"
    if gain > TIE:
        return f"the bounded search did not find it ({figures})"
    nodes = sum(stages), sum(len(pipeline.stages) for pipeline in chosen.pipelines)
    if nodes[0] > nodes[1]:
        return f"no better with {nodes[0]} nodes than with {nodes[1]} ({figures})"
    return f"no better ({figures})"

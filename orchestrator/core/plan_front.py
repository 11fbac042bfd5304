"""All plans worth considering: disjoint pipelines put together, where one figure does not decide.

On top of the pipelines for every set of nodes (`pipeline_front.py`), labels over sets as in `mixture.py`: a
label is a set of pipelines that uses exactly the nodes of a state. Throughput adds up, latency and exposure
are those of the worst pipeline, and in the place of energy per job, which is a mean, stands the power that
the jobs draw (joules per job times jobs per second), which adds up. So a label with no less throughput, and
no more of the others, is as good in every figure whatever is added to both.

A pipeline that another one on the same nodes matches in every figure that counts is not looked at. (A
slower, no thriftier pipeline can lower the mean energy of the plan around it, by taking fewer jobs. Nobody
wants that.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from orchestrator.core.exact import prices
from orchestrator.core.figures import Objective
from orchestrator.core.mixture import Pattern, by_kind, pipelines_in
from orchestrator.core.pareto import non_dominated, thinned
from orchestrator.core.partition import Lattice
from orchestrator.core.pipeline_front import Columns, PipelineFront
from orchestrator.core.tables import FloatArray, IntArray, StageTables

_WORK = 6_000_000
_FEWEST, _MOST = 4, 400


@dataclass(frozen=True, slots=True)
class PlanFront:
    """Plans with their figures, each of shape (plans,), and how to get their pipelines.

    `burdens` has the figures with less being better, by objective: throughput and cost always, the others
    where they were told apart. `error_ratio` is how much better, at most, a plan that was thinned out can be.
    """

    burdens: dict[Objective, FloatArray]
    nodes: IntArray
    error_ratio: float
    _pipelines: PipelineFront
    _first: IntArray
    _rest: IntArray

    def patterns(self, plan: int) -> list[Pattern]:
        """The pipelines of a plan."""
        found: list[Pattern] = []
        while plan >= 0:
            found.append(self._pipelines.path(int(self._first[plan])))
            plan = int(self._rest[plan])
        return found


@dataclass(slots=True)
class _Arena:
    """All labels of all states, one after the other; label -1 is the plan without a pipeline."""

    figures: list[FloatArray]
    first: list[IntArray]
    rest: list[IntArray]
    state: list[IntArray]
    size: int = 0


def plan_front(tables: StageTables, pipelines: PipelineFront, *, work: int = 1) -> PlanFront:
    """Put the pipelines together in every way that is worth it; `work` as for `pipeline_front`."""
    states, columns = pipelines.lattice, pipelines.columns
    rates = 1.0 / pipelines.figures[:, 0]
    own = pipelines.figures.copy()
    own[:, 0] = rates
    energy = columns.of(Objective.ENERGY)
    if energy is not None:
        own[:, energy] *= rates
    with_pipelines = np.unique(pipelines.state)
    by_first = by_kind(with_pipelines, states)
    begins = np.searchsorted(pipelines.state, np.arange(states.size + 1))
    each = len(pipelines.state) / max(1, len(with_pipelines))
    most = _labels_per_state(states, each, effort=work)
    arena = _Arena([], [], [], [])
    spans = np.zeros((states.size, 2), dtype=np.int64)
    error = np.ones(states.size)
    for state in range(1, states.size):
        inside = pipelines_in(state, by_first, states)
        rests = state - inside
        inside = inside[(rests == 0) | (spans[rests, 1] > spans[rests, 0])]
        if not len(inside):
            spans[state] = arena.size
            continue
        firsts, others = _pairs(inside, state, begins, spans)
        figures = _together(own[firsts], others, arena, columns)
        burdens = figures.copy()
        burdens[:, 0] = 1.0 / figures[:, 0]
        one_group = np.zeros(len(firsts), dtype=np.int64)
        keep = non_dominated(one_group, burdens)
        thin, grid = thinned(one_group[keep], burdens[keep], most)
        keep = keep[thin]
        error[state] = max(error[state - inside]) * (1 + grid)
        _put(arena, figures[keep], firsts[keep], others[keep], state)
        spans[state] = (arena.size - len(keep), arena.size)
    return _front(arena, tables, pipelines, float(error.max()))


def _pairs(
    inside: IntArray, state: int, begins: IntArray, spans: IntArray
) -> tuple[IntArray, IntArray]:
    """Every pipeline on each state of `inside` with every label of what is left (-1: nothing is left)."""
    firsts: list[IntArray] = []
    others: list[IntArray] = []
    for one in inside:
        mine = np.arange(begins[one], begins[one + 1])
        rest = state - one
        theirs = np.arange(*spans[rest]) if rest else np.array([-1])
        firsts.append(np.repeat(mine, len(theirs)))
        others.append(np.tile(theirs, len(mine)))
    return np.concatenate(firsts), np.concatenate(others)


def _together(own: FloatArray, others: IntArray, arena: _Arena, columns: Columns) -> FloatArray:
    """Throughput, then the tracked figures (power in the place of energy), of pipelines beside labels."""
    if not arena.size:
        return own
    known = _known(arena)
    theirs = np.where((others >= 0)[:, None], known[others], 0.0)
    together = own + theirs
    for objective in (Objective.LATENCY, Objective.EXPOSURE):
        column = columns.of(objective)
        if column is not None:
            together[:, column] = np.maximum(own[:, column], theirs[:, column])
    return together


def _known(arena: _Arena) -> FloatArray:
    # One array in the place of many parts, so that the next look costs nothing
    if len(arena.figures) > 1:
        arena.figures[:] = [np.concatenate(arena.figures)]
    return arena.figures[0]


def _put(
    arena: _Arena, figures: FloatArray, firsts: IntArray, others: IntArray, state: int
) -> None:
    arena.figures.append(figures)
    arena.first.append(firsts)
    arena.rest.append(others)
    arena.state.append(np.full(len(firsts), state))
    arena.size += len(firsts)


def _front(arena: _Arena, tables: StageTables, pipelines: PipelineFront, error: float) -> PlanFront:
    none = np.zeros(0, dtype=np.int64)
    columns = pipelines.columns
    figures = _known(arena) if arena.size else np.zeros((0, 1 + len(columns.tracked)))
    state = np.concatenate([none, *arena.state])
    throughput = figures[:, 0]
    per_hour = prices(tables, pipelines.lattice)[state]
    burdens = {
        Objective.THROUGHPUT: 1.0 / throughput,
        Objective.COST: 1000.0 * per_hour / 3600.0 / throughput,
    }
    for objective in columns.tracked:
        column = columns.of(objective)
        assert column is not None
        mean = throughput if objective is Objective.ENERGY else 1.0
        burdens[objective] = figures[:, column] / mean
    return PlanFront(
        burdens=burdens,
        nodes=pipelines.lattice.totals[state],
        error_ratio=(1 + pipelines.error_ratio) * error - 1.0,
        _pipelines=pipelines,
        _first=np.concatenate([none, *arena.first]),
        _rest=np.concatenate([none, *arena.rest]),
    )


def _labels_per_state(states: Lattice, pipelines_each: float, *, effort: int) -> int:
    """How many labels a state may hold so that putting all together stays within its work."""
    # Sets within sets, of which those without the first node are not looked at
    pairs = math.prod((count + 1) * (count + 2) // 2 for count in states.counts) / 2
    most = int(effort * _WORK / (pairs * max(1.0, pipelines_each)))
    return max(_FEWEST, min(effort * _MOST, most))

"""Plans for clusters that are too large for the exact programme: divide, solve exactly, mix again.

The nodes are dealt into groups small enough to be solved exactly, in two ways (each group a sample of the
whole cluster; like with like), nodes left over are tried again, and then the least efficient pipelines are
taken apart and solved anew together with what is free. Groups of the same composition are solved once, so a
thousand nodes of three kinds cost a few groups. Nothing here looks at a clock: the bounds are counts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from orchestrator.core import cost
from orchestrator.core.chain import lengths_found, long_pipeline
from orchestrator.core.mixture import Pattern, best_latency, best_throughput
from orchestrator.core.partition import TIE, lattice, lattice_size
from orchestrator.core.problem import Problem
from orchestrator.core.tables import StageTables, stage_tables

EXACT_STATES = 1024
"""Up to so many sets of nodes (2^10: ten unlike nodes, a thousand equal ones) the plan is exact."""

_WORK = 24_000_000
"""Candidates that the groups of one dealing may cost together: a few tenths of a second."""
_ROUNDS = 12
_PEELS = 16
_CHAIN_KINDS = 32

Group = tuple[tuple[int, int], ...]
"""Nodes by kind: (kind, count) pairs, kinds ascending."""


def bounded_throughput(problem: Problem) -> list[Pattern]:
    """A good set of pipelines; never worse than a copy on each node. Empty where none was found."""
    solver = _Solver(problem)
    ranked = _by_rate(problem)
    mixed = _groups_within_budget(ranked, problem)
    best: list[Pattern] = []
    for dealt in (mixed, _alike(ranked, max(_states(group) for group in mixed))):
        found = [pattern for group in dealt for pattern in solver.solve(group)]
        found = _improve(_peel(found, solver), solver)
        if _total(found, solver) > _total(best, solver) * (1 + TIE):
            best = found
    return best or _chains(problem, np.maximum)


def bounded_latency(problem: Problem) -> list[Pattern]:
    """A pipeline of low latency, over the most promising nodes; empty where none was found."""
    few = shortlist(problem, EXACT_STATES)
    kinds = [problem.kinds[kind] for kind, _ in few]
    tables = stage_tables(problem.model, kinds)
    found = best_latency(tables, lattice([n for _, n in few]), stages=problem.stages)
    return _globally(found, few) or _chains(problem, np.add)[:1]


def shortlist(problem: Problem, states: int, taken: Iterable[Pattern] = ()) -> Group:
    """The most promising free nodes, as many as `states` sets allow.

    The fastest, the largest and the best linked in turn; `taken` are pipelines whose nodes are not free.
    """
    free = Counter(dict(enumerate(problem.counts)))
    free.subtract(kind for pattern in taken for kind, _, _ in pattern)
    nodes = [kind.node for kind in problem.kinds]
    rankings = [
        sorted(range(len(nodes)), key=key)
        for key in (
            lambda k: (-nodes[k].rate, k),
            lambda k: (-nodes[k].memory_bytes, k),
            lambda k: (-min(nodes[k].up_bytes_per_s, nodes[k].down_bytes_per_s), k),
        )
    ]
    chosen: Counter[int] = Counter()
    most = len(problem.request.profile.blocks)
    turns = dict.fromkeys(itertools.chain.from_iterable(zip(*rankings, strict=True)))
    # Every kind in turn, then more of each: unlike nodes teach the search more than equal ones.
    for kind in itertools.chain.from_iterable(itertools.repeat(turns, most)):
        if chosen[kind] >= min(free[kind], most):
            continue
        chosen[kind] += 1
        if lattice_size(list(chosen.values())) > states:
            chosen[kind] -= 1
            break
    return tuple(sorted((kind, count) for kind, count in chosen.items() if count))


@dataclass(slots=True)
class _Solver:
    """Exact plans for groups, each composition once; patterns carry the problem's numbers of kinds."""

    problem: Problem
    _solved: dict[Group, list[Pattern]] = field(default_factory=dict)
    _rates: dict[Pattern, float] = field(default_factory=dict)

    def solve(self, group: Group) -> list[Pattern]:
        if group not in self._solved:
            tables = stage_tables(self.problem.model, [self.problem.kinds[k] for k, _ in group])
            counts = [count for _, count in group]
            found = best_throughput(tables, lattice(counts), stages=self.problem.stages)
            self._solved[group] = _globally(found, group)
            for pattern, local in zip(self._solved[group], found, strict=True):
                slowest = max(tables.period_s[kind, i, j] for kind, i, j in local)
                self._rates[pattern] = 1.0 / float(slowest)
        return self._solved[group]

    def throughput(self, pattern: Pattern) -> float:
        return self._rates[pattern]

    def efficiency(self, pattern: Pattern) -> float:
        """Share of its nodes' speed that a pipeline turns into work."""
        speed = sum(self.problem.kinds[kind].node.rate for kind, _, _ in pattern)
        return self.throughput(pattern) / speed


def _total(patterns: Sequence[Pattern], solver: _Solver) -> float:
    return sum(solver.throughput(pattern) for pattern in patterns)


def _globally(found: list[Pattern], group: Group) -> list[Pattern]:
    return [tuple((group[kind][0], i, j) for kind, i, j in pattern) for pattern in found]


def _by_rate(problem: Problem) -> list[int]:
    """Each node's kind, the fastest first."""
    order = sorted(range(len(problem.kinds)), key=lambda k: (-problem.kinds[k].node.rate, k))
    return [kind for kind in order for _ in problem.kinds[kind].names]


def _group(kinds: Iterable[int]) -> Group:
    return tuple(sorted(Counter(kinds).items()))


def _states(group: Group) -> int:
    return lattice_size([count for _, count in group])


def _groups_within_budget(ranked: list[int], problem: Problem) -> list[Group]:
    """Deal the nodes round into as few groups as the budget of work allows."""
    cells = (problem.model.num_blocks + 1) ** 2
    for limit in (EXACT_STATES, 512, 256, 128, 64, 32, 16, 8):
        groups = _deal(ranked, limit)
        unlike = set(groups)
        work = sum(_states(group) * len(group) * cells // 2 for group in unlike)
        if work <= _WORK:
            return groups
    return groups


def _deal(ranked: list[int], limit: int) -> list[Group]:
    """Deal cards: with the fewest players whose hands each have at most `limit` sets of nodes."""
    players = 1
    while True:
        groups = [_group(ranked[first::players]) for first in range(players)]
        largest = max(_states(group) for group in groups)
        if largest <= limit:
            return groups
        # A hand of n cards has at most 2^n sets, and at least n + 1
        players += max(1, players // 16)


def _alike(ranked: list[int], limit: int) -> list[Group]:
    """Cut the ranking into runs, each with at most `limit` sets of nodes."""
    groups: list[Group] = []
    run: Counter[int] = Counter()
    for kind in ranked:
        run[kind] += 1
        if lattice_size(list(run.values())) > limit:
            run[kind] -= 1
            groups.append(tuple(sorted((k, count) for k, count in run.items() if count)))
            run = Counter([kind])
    return [*groups, tuple(sorted(run.items()))]


def _peel(found: list[Pattern], solver: _Solver) -> list[Pattern]:
    """Try nodes that no group could use together, the most promising first."""
    for _ in range(_PEELS):
        states = EXACT_STATES // 4 if found else EXACT_STATES
        group = shortlist(solver.problem, states, found)
        more = solver.solve(group) if group else []
        if not more:
            break
        found = found + more
    return found


def _improve(found: list[Pattern], solver: _Solver) -> list[Pattern]:
    """Take the least efficient pipelines apart and solve their nodes anew with those that are free."""
    for first in _windows(len(found)):
        ordered = sorted(found, key=lambda pattern: (solver.efficiency(pattern), pattern))
        nodes: Counter[int] = Counter()
        for kind, count in shortlist(solver.problem, EXACT_STATES // 16, found):
            nodes[kind] += count
        apart: list[Pattern] = []
        for pattern in ordered[first:]:
            more = nodes + Counter(kind for kind, _, _ in pattern)
            if lattice_size(list(more.values())) > EXACT_STATES // 4:
                break
            nodes = more
            apart.append(pattern)
        if not apart:
            continue
        again = solver.solve(tuple(sorted(nodes.items())))
        if _total(again, solver) > _total(apart, solver) * (1 + TIE):
            found = ordered[:first] + ordered[first + len(apart) :] + again
    return found


def _windows(pipelines: int) -> Iterator[int]:
    # From the least efficient on; a window holds several pipelines, so every second start will do.
    return iter(range(0, min(pipelines, 2 * _ROUNDS), 2))


def _chains(problem: Problem, combine: np.ufunc) -> list[Pattern]:
    """Long pipelines one after the other, until the nodes do not give another."""
    found: list[Pattern] = []
    for _ in range(_PEELS):
        pattern = chain_of(problem, found, combine, problem.stages)
        if pattern is None:
            break
        found.append(pattern)
    return found


def chain_of(
    problem: Problem, taken: Sequence[Pattern], combine: np.ufunc, stages: range
) -> Pattern | None:
    """One long pipeline over the largest nodes that `taken` leaves free, or None where none was found.

    `combine` is the maximum for the best period, the sum for the lowest latency.
    """
    chosen, counts, tables, memory = _largest(problem, taken, at_least=stages.start)
    if not chosen:
        return None
    costs = tables.period_s if combine is np.maximum else tables.latency_s
    pattern = long_pipeline(costs, counts, memory, combine, stages=stages)
    return pattern and tuple((chosen[kind], i, j) for kind, i, j in pattern)


def chain_lengths(problem: Problem) -> list[int]:
    """The numbers of stages with which a long pipeline was found."""
    most = min(problem.model.num_blocks, sum(problem.counts))
    _, counts, tables, memory = _largest(problem, (), at_least=most)
    return lengths_found(tables.period_s, counts, memory, most)


def _largest(
    problem: Problem, taken: Sequence[Pattern], at_least: int
) -> tuple[list[int], list[int], StageTables, list[int]]:
    """Kinds, free nodes of each, their tables and memory: the largest, since memory makes pipelines long."""
    free = Counter(dict(enumerate(problem.counts)))
    free.subtract(kind for pattern in taken for kind, _, _ in pattern)
    order = sorted(
        (kind for kind in free if free[kind] > 0),
        key=lambda k: (-problem.kinds[k].node.memory_bytes, k),
    )
    chosen = order[: max(_CHAIN_KINDS, at_least)]
    kinds = [problem.kinds[kind] for kind in chosen]
    return (
        chosen,
        [free[kind] for kind in chosen],
        stage_tables(problem.model, kinds),
        [cost.usable_bytes(kind.node) for kind in kinds],
    )

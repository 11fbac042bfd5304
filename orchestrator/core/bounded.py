"""Plans for clusters that are too large for the exact programme: divide, solve exactly, mix again.

The nodes are dealt into groups small enough to be solved exactly, in two ways (each group a sample of the
whole cluster; like with like), nodes left over are tried again, and then the least efficient pipelines are
taken apart and solved anew together with what is free. Groups of the same composition are solved once, so a
thousand nodes of three kinds cost a few groups. Nothing here looks at a clock: the bounds are counts.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from orchestrator.core import cost
from orchestrator.core.chain import lengths_found, long_pipeline
from orchestrator.core.choice import EXACT_STATES, chosen_exactly, label_states
from orchestrator.core.exact import pipeline_burdens
from orchestrator.core.figures import Objective
from orchestrator.core.goal import Goal, objectives_of
from orchestrator.core.judge import Judge
from orchestrator.core.limits import NO_LIMITS
from orchestrator.core.mixture import Pattern
from orchestrator.core.partition import TIE, lattice, lattice_size
from orchestrator.core.problem import Problem, place
from orchestrator.core.tables import FloatArray, Kind, StageTables, stage_tables
from shared.profile import NodeProfile

_WORK = 24_000_000
"""Candidates that the groups of one dealing may cost together: a few tenths of a second."""
_LABEL_WORK = _WORK // 100
"""Labels cost that much more than single figures."""

_ROUNDS = 12
_PEELS = 16
_CHAIN_KINDS = 32

Group = tuple[tuple[int, int], ...]
"""Nodes by kind: (kind, count) pairs, kinds ascending."""


def bounded_choice(problem: Problem, judge: Judge) -> list[Pattern]:
    """A good plan by any goal under any limits; empty where none was found.

    The exact choice over the most promising nodes, and, where throughput counts, what the groups find: each
    group's pipelines keep the limits (of a mean or a ratio, the whole keeps what its parts keep), and of all
    of them the first so many in the order of one of the goal's figures.
    """
    if judge.goal is Objective.THROUGHPUT and not judge.limits.objectives:
        return bounded_throughput(problem)
    many = judge.limits.min_throughput_per_s is not None
    many |= bool({Objective.THROUGHPUT, Objective.EXPOSURE} & {*objectives_of(judge.goal)})
    candidates = [_of_shortlist(problem, judge)]
    if many:
        solvers = [
            _Solver(problem, _within_groups(judge, objective))
            for objective in dict.fromkeys((Objective.THROUGHPUT, *objectives_of(judge.goal)))
        ]
        candidates += [
            _prefix(dealt, solver, judge)
            for solver in solvers
            for dealt in _dealings(problem, solver)
        ]
    candidates.append(_chains(problem, judge.goal)[: None if many else 1])
    priced = [
        (one, problem.price(place(one, problem.kinds)).predicted) for one in candidates if one
    ]
    good = [(judge.key(predicted), one) for one, predicted in priced if judge.allows(predicted)]
    return min(good)[1] if good else []


def bounded_throughput(problem: Problem) -> list[Pattern]:
    """A good set of pipelines; never worse than a copy on each node. Empty where none was found."""
    solver = _Solver(problem, Judge(Objective.THROUGHPUT, NO_LIMITS))
    best: list[Pattern] = []
    for found in _dealings(problem, solver):
        if _total(found, solver) > _total(best, solver) * (1 + TIE):
            best = found
    return best or _chains(problem, Objective.THROUGHPUT)


def _dealings(problem: Problem, solver: _Solver) -> Iterator[list[Pattern]]:
    """The pipelines that groups find, once for each way of dealing."""
    ranked = _by_rate(problem)
    work = _WORK if solver.plain else _LABEL_WORK
    mixed = _groups_within_budget(ranked, problem, work)
    for dealt in (mixed, _alike(ranked, max(_states(group) for group in mixed))):
        found = [pattern for group in dealt for pattern in solver.solve(group)]
        yield _improve(_peel(found, solver), solver)


def _of_shortlist(problem: Problem, judge: Judge) -> list[Pattern]:
    plain = isinstance(judge.goal, Objective) and not judge.limits.objectives
    few = shortlist(problem, EXACT_STATES // 2 if plain else min(64, label_states(problem, judge)))
    kinds = [problem.kinds[kind] for kind, _ in few]
    counts = [count for _, count in few]
    tables = stage_tables(problem.model, kinds)
    some = tuple(
        Kind(kind.node, kind.names[:count]) for kind, count in zip(kinds, counts, strict=True)
    )
    return _globally(chosen_exactly(problem, some, tables, lattice(counts), judge)[0], few)


def _within_groups(judge: Judge, objective: Objective) -> Judge:
    """What groups are solved for: one objective, under the limits that each group can keep by itself."""
    return Judge(objective, dataclasses.replace(judge.limits, min_throughput_per_s=None))


def _prefix(found: list[Pattern], solver: _Solver, judge: Judge) -> list[Pattern]:
    """The best plan among the first so many pipelines, in the order of each figure that the goal looks at."""
    best: tuple[tuple[float, ...], list[Pattern]] | None = None
    for objective in objectives_of(judge.goal):
        ordered = sorted(found, key=lambda one: (solver.own(one)[objective], one))
        burdens = solver.prefixes(ordered)
        nodes = np.cumsum([len(pattern) for pattern in ordered])
        last = judge.best(burdens, nodes)
        if last is None:
            continue
        key = (float(judge.values(burdens)[last]), float(burdens[Objective.THROUGHPUT][last]))
        if best is None or key < best[0]:
            best = key, ordered[: last + 1]
    return best[1] if best is not None else []


def shortlist(problem: Problem, states: int, taken: Iterable[Pattern] = ()) -> Group:
    """The most promising free nodes, as many as `states` sets allow.

    The fastest, the largest and the best linked in turn, and the thriftiest, the cheapest and those in the
    input's zone where that counts; `taken` are pipelines whose nodes are not free.
    """
    free = Counter(dict(enumerate(problem.counts)))
    free.subtract(kind for pattern in taken for kind, _, _ in pattern)
    nodes = [kind.node for kind in problem.kinds]
    counts = {*objectives_of(problem.request.objective), *problem.request.limits.objectives}
    promising: list[Callable[[NodeProfile], float]] = [
        lambda node: -node.rate,
        lambda node: -node.memory_bytes,
        lambda node: -min(node.up_bytes_per_s, node.down_bytes_per_s),
    ]
    if Objective.ENERGY in counts:
        promising.append(lambda node: node.power_w / node.rate)
    if Objective.COST in counts:
        promising.append(lambda node: node.price_per_hour / node.rate)
    if Objective.EXPOSURE in counts or problem.model.first_outside:
        promising.append(lambda node: node.zone != problem.model.home_zone)
    rankings = [
        sorted(range(len(nodes)), key=lambda k, key=key: (key(nodes[k]), k))  # type: ignore[misc]
        for key in promising
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
    judge: Judge
    _solved: dict[Group, list[Pattern]] = field(default_factory=dict)
    _own: dict[Pattern, dict[Objective, float]] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether one figure decides, which is quick."""
        return not self.judge.limits.objectives

    @property
    def states(self) -> int:
        """Sets of nodes that it may solve at once."""
        return EXACT_STATES if self.plain else min(64, label_states(self.problem, self.judge))

    def solve(self, group: Group) -> list[Pattern]:
        if group not in self._solved:
            kinds = [self.problem.kinds[kind] for kind, _ in group]
            counts = [count for _, count in group]
            tables = stage_tables(self.problem.model, kinds)
            some = tuple(
                Kind(kind.node, kind.names[:count])
                for kind, count in zip(kinds, counts, strict=True)
            )
            found, _ = chosen_exactly(self.problem, some, tables, lattice(counts), self.judge)
            self._solved[group] = _globally(found, group)
            for pattern, local in zip(self._solved[group], found, strict=True):
                self._own[pattern] = pipeline_burdens(tables, local)
        return self._solved[group]

    def own(self, pattern: Pattern) -> dict[Objective, float]:
        """The burdens of a plan of this pipeline alone."""
        return self._own[pattern]

    def throughput(self, pattern: Pattern) -> float:
        return 1.0 / self._own[pattern][Objective.THROUGHPUT]

    def prefixes(self, ordered: Sequence[Pattern]) -> dict[Objective, FloatArray]:
        """The burdens of the plans that are the first so many pipelines."""
        own = {
            objective: np.array([self.own(pattern)[objective] for pattern in ordered])
            for objective in Objective
        }
        rates = 1.0 / own[Objective.THROUGHPUT]
        total = np.cumsum(rates)
        return {
            Objective.THROUGHPUT: 1.0 / total,
            Objective.LATENCY: np.maximum.accumulate(own[Objective.LATENCY]),
            Objective.ENERGY: np.cumsum(own[Objective.ENERGY] * rates) / total,
            Objective.COST: np.cumsum(own[Objective.COST] * rates) / total,
            Objective.EXPOSURE: np.maximum.accumulate(own[Objective.EXPOSURE]),
        }

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


def _groups_within_budget(ranked: list[int], problem: Problem, most: int) -> list[Group]:
    """Deal the nodes round into as few groups as the budget of work allows."""
    cells = (problem.model.num_blocks + 1) ** 2
    for limit in (EXACT_STATES, 512, 256, 128, 64, 32, 16, 8):
        groups = _deal(ranked, limit)
        unlike = set(groups)
        work = sum(_states(group) * len(group) * cells // 2 for group in unlike)
        if work <= most:
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
        states = solver.states // 4 if found else solver.states
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
        for kind, count in shortlist(solver.problem, solver.states // 16, found):
            nodes[kind] += count
        apart: list[Pattern] = []
        for pattern in ordered[first:]:
            more = nodes + Counter(kind for kind, _, _ in pattern)
            if lattice_size(list(more.values())) > solver.states // 4:
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


def _chains(problem: Problem, goal: Goal) -> list[Pattern]:
    """Long pipelines one after the other, until the nodes do not give another."""
    found: list[Pattern] = []
    for _ in range(_PEELS):
        pattern = chain_of(problem, found, goal, problem.stages)
        if pattern is None:
            break
        found.append(pattern)
    return found


def chain_of(
    problem: Problem, taken: Sequence[Pattern], goal: Goal, stages: range
) -> Pattern | None:
    """One long pipeline over the largest nodes that `taken` leaves free, or None where none was found.

    For the lowest latency or the least energy where that is the goal, else for the best period.
    """
    chosen, counts, tables, memory = _largest(problem, taken, at_least=stages.start)
    if not chosen:
        return None
    if goal is Objective.LATENCY:
        pattern = long_pipeline(tables.latency_s, counts, memory, np.add, stages=stages)
    elif goal is Objective.ENERGY:
        pattern = long_pipeline(tables.energy_j, counts, memory, np.add, stages=stages)
    else:
        pattern = long_pipeline(tables.period_s, counts, memory, np.maximum, stages=stages)
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

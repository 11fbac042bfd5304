"""The best set of disjoint pipelines: which nodes work together, which work alone, which stay out.

On top of the best pipeline for each set of nodes (`partition.py`), a second dynamic programme over sets:

    value[s] = max over pipelines t within s, t having a node of s's first kind:  throughput[t] + value[s - t]

which uses all nodes of s. The best s over all is the plan; nodes outside it stay out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from orchestrator.core.partition import TIE, Lattice, Search, Tight, lattice, search
from orchestrator.core.tables import FloatArray, IntArray, StageTables

Pattern = tuple[tuple[int, int, int], ...]
"""A pipeline before nodes have names: (kind, start, stop) per stage."""


def allowed_states(found: Search, min_stages: int, max_stages: int) -> IntArray:
    """The states on which the whole model runs, one stage per node, with a number of stages asked for."""
    totals = found.lattice.totals
    return np.flatnonzero(
        np.isfinite(found.totals) & (totals >= min_stages) & (totals <= max_stages)
    )


def best_throughput(tables: StageTables, states: Lattice, *, stages: range) -> list[Pattern]:
    """The set of pipelines with the greatest sum of throughputs; empty where none can run.

    Each pipeline has a number of stages in `stages`. Among sets within 1e-9 of the best: the fewest nodes,
    then the lowest latency of the slowest pipeline, then the first in order.
    """
    found = search(tables.period_s, states, np.maximum, max_stages=stages.stop - 1)
    runs = allowed_states(found, stages.start, stages.stop - 1)
    if not len(runs):
        return []
    throughput = np.full(states.size, -np.inf)
    throughput[runs] = 1.0 / found.totals[runs]
    value = _values(throughput, runs, states)
    best = float(value.max())
    near = np.flatnonzero(value >= best * (1 - TIE))
    near = near[states.totals[near] == states.totals[near].min()]
    chooser = _LowestLatency(tables, found, throughput, runs, value, best * TIE)
    return min((chooser.choose(int(state)) for state in near), key=lambda choice: choice[0])[1]


def best_latency(tables: StageTables, states: Lattice, *, stages: range) -> list[Pattern]:
    """The one pipeline with the lowest latency; empty where none can run.

    Among those within 1e-9 of it: the greatest throughput, then the fewest nodes, then the first in order.
    """
    limit = stages.stop - 1
    found = search(tables.latency_s, states, np.add, max_stages=limit)
    runs = allowed_states(found, stages.start, limit)
    if not len(runs):
        return []
    runs = runs[found.totals[runs] <= found.totals[runs].min() * (1 + TIE)]
    longest = int(states.totals[runs].max())
    tight = Tight(found.costs, found.table)
    second = search(tables.period_s, states, np.maximum, max_stages=longest, tight=tight)
    runs = runs[second.totals[runs] <= second.totals[runs].min() * (1 + TIE)]
    return [second.path(int(runs[states.totals[runs].argmin()]))]


def lowest_latency_at(tables: StageTables, found: Search, state: int) -> tuple[float, Pattern]:
    """Among the pipelines on exactly this state's nodes with the best period, the one of lowest latency.

    `found` is the search by period. Returns its latency in seconds, and the pipeline.
    """
    kinds = np.flatnonzero(found.lattice.digits[state])
    counts = [int(count) for count in found.lattice.digits[state, kinds]]
    as_fast = tables.period_s[kinds] <= found.totals[state] * (1 + TIE)
    costs = np.where(as_fast, tables.latency_s[kinds], np.inf)
    second = search(costs, lattice(counts), np.add, max_stages=sum(counts))
    last = second.lattice.size - 1
    path = tuple((int(kinds[kind]), start, stop) for kind, start, stop in second.path(last))
    return float(second.totals[last]), path


def _values(throughput: FloatArray, runs: IntArray, states: Lattice) -> FloatArray:
    """`value[s]`: the greatest sum of throughputs that uses all nodes of s; -inf where there is none."""
    by_first = _by_kind(runs, states)
    value = np.full(states.size, -np.inf)
    value[0] = 0.0
    for state in range(1, states.size):
        inside = _pipelines_in(state, by_first, states)
        if len(inside):
            value[state] = (throughput[inside] + value[state - inside]).max()
    return value


def _by_kind(runs: IntArray, states: Lattice) -> list[IntArray]:
    return [runs[states.digits[runs, kind] > 0] for kind in range(len(states.counts))]


def _pipelines_in(state: int, by_first: list[IntArray], states: Lattice) -> IntArray:
    # Some pipeline has the first node of the state, and which one is found first does not matter.
    digits = states.digits[state]
    pipelines = by_first[int((digits > 0).argmax())]
    inside: IntArray = pipelines[(states.digits[pipelines] <= digits).all(axis=1)]
    return inside


@dataclass(slots=True)
class _LowestLatency:
    """Among the ways to split a state into pipelines with the best throughput, the one of lowest latency."""

    tables: StageTables
    found: Search
    throughput: FloatArray
    runs: IntArray
    value: FloatArray
    slack: float
    _priced: dict[int, tuple[float, Pattern]] = field(default_factory=dict)

    def choose(self, target: int) -> tuple[float, list[Pattern]]:
        """Latency of the slowest pipeline in seconds, and the pipelines.

        Iterative, since a state may hold a thousand of them.
        """
        states = self.found.lattice
        by_first = _by_kind(self.runs, states)
        as_good: dict[int, IntArray] = {}
        open_states = {target}
        while open_states:
            state = max(open_states)
            open_states.remove(state)
            if state == 0:
                continue
            inside = _pipelines_in(state, by_first, states)
            sums = self.throughput[inside] + self.value[state - inside]
            as_good[state] = inside[sums >= self.value[state] - self.slack]
            open_states |= {int(rest) for rest in state - as_good[state]}
        latency = {0: 0.0}
        first: dict[int, int] = {}
        for state in sorted(as_good):
            latency[state], first[state] = min(
                (max(self._price(pipe)[0], latency[state - pipe]), pipe)
                for pipe in _as_ints(as_good[state])
            )
        pipelines: list[Pattern] = []
        state = target
        while state:
            pipelines.append(self._price(first[state])[1])
            state -= first[state]
        return latency[target], pipelines

    def _price(self, state: int) -> tuple[float, Pattern]:
        if state not in self._priced:
            self._priced[state] = lowest_latency_at(self.tables, self.found, state)
        return self._priced[state]


def _as_ints(states: IntArray) -> Iterable[int]:
    return (int(state) for state in states)

"""The best set of disjoint pipelines: which nodes work together, which work alone, which stay out.

On top of the best pipeline for each set of nodes (`partition.py`), a second dynamic programme over sets:

    value[s] = max over pipelines t within s, t having a node of s's first kind:  throughput[t] + value[s - t]

which uses all nodes of s. The best s over all is the plan; nodes outside it stay out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from orchestrator.core.partition import TIE, Lattice, Search
from orchestrator.core.tables import FloatArray, IntArray

Pattern = tuple[tuple[int, int, int], ...]
"""A pipeline before nodes have names: (kind, start, stop) per stage."""

PipelineOf = Callable[[int], tuple[float, Pattern]]
"""The pipeline that a state stands for, and its latency in seconds."""


def allowed_states(found: Search, min_stages: int, max_stages: int) -> IntArray:
    """The states on which the whole model runs, one stage per node, with a number of stages asked for."""
    totals = found.lattice.totals
    return np.flatnonzero(
        np.isfinite(found.totals) & (totals >= min_stages) & (totals <= max_stages)
    )


def mix(
    throughput: FloatArray, runs: IntArray, states: Lattice, pipeline_of: PipelineOf
) -> list[Pattern]:
    """The disjoint pipelines among `runs` with the greatest sum of throughputs.

    `throughput` has shape (states,), in jobs per second; only entries at `runs` are read. Among sets within
    1e-9 of the best: the fewest nodes, then the lowest latency of the slowest pipeline, then the first in
    order.
    """
    rates = np.full(states.size, -np.inf)
    rates[runs] = throughput[runs]
    value = _values(rates, runs, states)
    best = float(value.max())
    near = np.flatnonzero(value >= best * (1 - TIE))
    near = near[states.totals[near] == states.totals[near].min()]
    chooser = _LowestLatency(states, rates, runs, value, best * TIE, pipeline_of)
    return min((chooser.choose(int(state)) for state in near), key=lambda choice: choice[0])[1]


def _values(throughput: FloatArray, runs: IntArray, states: Lattice) -> FloatArray:
    """`value[s]`: the greatest sum of throughputs that uses all nodes of s; -inf where there is none."""
    by_first = by_kind(runs, states)
    value = np.full(states.size, -np.inf)
    value[0] = 0.0
    for state in range(1, states.size):
        inside = pipelines_in(state, by_first, states)
        if len(inside):
            value[state] = (throughput[inside] + value[state - inside]).max()
    return value


def by_kind(runs: IntArray, states: Lattice) -> list[IntArray]:
    """For each kind, those of the states `runs` that have a node of it."""
    return [runs[states.digits[runs, kind] > 0] for kind in range(len(states.counts))]


def pipelines_in(state: int, by_first: list[IntArray], states: Lattice) -> IntArray:
    """The pipelines within a state that have a node of its first kind.

    Some pipeline has the first node of the state, and which one is found first does not matter.
    """
    digits = states.digits[state]
    pipelines = by_first[int((digits > 0).argmax())]
    inside: IntArray = pipelines[(states.digits[pipelines] <= digits).all(axis=1)]
    return inside


@dataclass(slots=True)
class _LowestLatency:
    """Among the ways to split a state into pipelines with the best throughput, the one of lowest latency."""

    states: Lattice
    throughput: FloatArray
    runs: IntArray
    value: FloatArray
    slack: float
    pipeline_of: PipelineOf
    _known: dict[int, tuple[float, Pattern]] = field(default_factory=dict)

    def choose(self, target: int) -> tuple[float, list[Pattern]]:
        """Latency of the slowest pipeline in seconds, and the pipelines.

        Iterative, since a state may hold a thousand of them.
        """
        by_first = by_kind(self.runs, self.states)
        as_good: dict[int, IntArray] = {}
        open_states = {target}
        while open_states:
            state = max(open_states)
            open_states.remove(state)
            if state == 0:
                continue
            inside = pipelines_in(state, by_first, self.states)
            sums = self.throughput[inside] + self.value[state - inside]
            as_good[state] = inside[sums >= self.value[state] - self.slack]
            open_states |= {int(rest) for rest in state - as_good[state]}
        latency = {0: 0.0}
        first: dict[int, int] = {}
        for state in sorted(as_good):
            latency[state], first[state] = min(
                (max(self._pipeline(pipe)[0], latency[state - pipe]), pipe)
                for pipe in _as_ints(as_good[state])
            )
        pipelines: list[Pattern] = []
        state = target
        while state:
            pipelines.append(self._pipeline(first[state])[1])
            state -= first[state]
        return latency[target], pipelines

    def _pipeline(self, state: int) -> tuple[float, Pattern]:
        if state not in self._known:
            self._known[state] = self.pipeline_of(state)
        return self._known[state]


def _as_ints(states: IntArray) -> Iterable[int]:
    return (int(state) for state in states)

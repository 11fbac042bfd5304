"""The best single pipeline for every set of nodes, by dynamic programming over (cut, set of nodes).

A set of nodes is a state of a lattice: how many nodes of each kind it has. `table[state, stop]` is the least
cost of running blocks `[0, stop)` with one stage on each node of the state, in the best order:

    table[s, j] = min over kinds k in s, cuts i < j:  combine(table[s - k, i], stage[k, i, j])

With `combine` the maximum and stages' periods this gives the bottleneck (PipeDream's and PipeEdge's
recursion, over sets of unlike nodes); with the sum and stages' latencies, the latency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.core.tables import FloatArray, IntArray

TIE = 1e-9
"""Costs closer than this, relative, are equal; the next criterion decides."""

_BATCH = 1 << 19
"""Candidates looked at in one array operation: about what a small machine's cache and memory bear."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """All sets of up to `counts[k]` nodes of each kind k; state 0 is empty, the last is all nodes.

    State s has `digits[s, k]` nodes of kind k and `totals[s]` in all; one of kind k less is state
    `s - strides[k]`.
    """

    counts: tuple[int, ...]
    strides: tuple[int, ...]
    digits: IntArray
    totals: IntArray

    @property
    def size(self) -> int:
        """The number of states."""
        return len(self.totals)


def lattice(counts: Sequence[int]) -> Lattice:
    """Lay out the states for so many nodes of each kind."""
    bases = [count + 1 for count in counts]
    strides = tuple(math.prod(bases[k + 1 :]) for k in range(len(bases)))
    states = np.arange(math.prod(bases), dtype=np.int64)
    digits = states[:, None] // np.array(strides, dtype=np.int64) % np.array(bases, dtype=np.int64)
    return Lattice(tuple(counts), strides, digits, digits.sum(axis=1))


def lattice_size(counts: Sequence[int]) -> int:
    """The number of states that `lattice(counts)` would have."""
    return math.prod(count + 1 for count in counts)


@dataclass(frozen=True, slots=True)
class Tight:
    """Restricts a search to the pipelines that are best by another cost already: `costs`, `table` of that."""

    costs: FloatArray
    table: FloatArray


@dataclass(frozen=True, slots=True)
class Search:
    """A finished dynamic programme: `table` has shape (states, L+1)."""

    lattice: Lattice
    costs: FloatArray
    combine: np.ufunc
    table: FloatArray
    tight: Tight | None = None

    @property
    def totals(self) -> FloatArray:
        """Cost of the whole model per state, shape (states,); infinite where it cannot run."""
        return self.table[:, -1]

    def path(self, state: int) -> tuple[tuple[int, int, int], ...]:
        """The best pipeline on exactly this state's nodes: (kind, start, stop) per stage, in order."""
        stages: list[tuple[int, int, int]] = []
        stop = self.table.shape[1] - 1
        while state:
            kind, start = self._last_stage(state, stop)
            stages.append((kind, start, stop))
            state -= self.lattice.strides[kind]
            stop = start
        return tuple(reversed(stages))

    def _last_stage(self, state: int, stop: int) -> tuple[int, int]:
        for kind in np.flatnonzero(self.lattice.digits[state]):
            rest = state - self.lattice.strides[kind]
            column = self.combine(self.table[rest], self.costs[kind][:, stop])
            if self.tight is not None:
                least = self.tight.table[rest] + self.tight.costs[kind][:, stop]
                column[least > self.tight.table[state, stop] * (1 + TIE)] = np.inf
            start = int(column.argmin())
            if column[start] == self.table[state, stop]:
                return int(kind), start
        raise AssertionError(f"state {state} cannot run [0, {stop})")


def search(
    costs: FloatArray,
    states: Lattice,
    combine: np.ufunc,
    *,
    max_stages: int,
    tight: Tight | None = None,
) -> Search:
    """Fill the table for all states of at most `max_stages` nodes; larger states stay infinite.

    `costs` has shape (K, L+1, L+1), infinite where a stage cannot be. Time and memory: states x kinds x L^2
    candidates, in batches.
    """
    size = costs.shape[1]
    table = np.full((states.size, size), np.inf)
    table[0, 0] = 0.0
    rows = max(1, _BATCH // (size * size))
    for level in range(1, min(max_stages, int(states.totals[-1]), size - 1) + 1):
        at_level = np.flatnonzero(states.totals == level)
        for kind, stride in enumerate(states.strides):
            having = at_level[states.digits[at_level, kind] > 0]
            having = having[np.isfinite(table[having - stride]).any(axis=1)]
            for first in range(0, len(having), rows):
                batch = having[first : first + rows]
                candidates = combine(table[batch - stride][:, :, None], costs[kind])
                if tight is not None:
                    least = tight.table[batch - stride][:, :, None] + tight.costs[kind]
                    allowed = tight.table[batch][:, None, :] * (1 + TIE)
                    candidates[least > allowed] = np.inf
                table[batch] = np.minimum(table[batch], candidates.min(axis=1))
    return Search(states, costs, combine, table, tight)

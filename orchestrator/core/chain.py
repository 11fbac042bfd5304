"""One long pipeline over many unlike nodes, by beam search: the last resort of the bounded search.

Where a pipeline needs more unlike nodes than the exact programme can hold (a model that fits only on twenty
small devices together, or as many stages asked for), partial pipelines are kept per cut: a few with the least
cost so far, and a few that have used the least memory, since those can still go on where the others cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.core.mixture import Pattern
from orchestrator.core.tables import FloatArray, IntArray

_KEPT = 4
"""Partial pipelines kept per cut and criterion."""


@dataclass(frozen=True, slots=True)
class _Beam:
    """Partial pipelines of equal length; `parent` points into the beam before. Arrays of one length."""

    cost: FloatArray
    cut: IntArray
    used: IntArray
    memory: FloatArray
    parent: IntArray
    kind: IntArray


def long_pipeline(
    costs: FloatArray,
    counts: Sequence[int],
    memory_bytes: Sequence[int],
    combine: np.ufunc,
    *,
    stages: range,
) -> Pattern | None:
    """The best pipeline found with a number of stages in `stages`, or None where none was found.

    `costs` has shape (K, L+1, L+1); `counts` and `memory_bytes` are per kind of node. Work is at most
    stages x cuts x kinds x L.
    """
    history = _beams(costs, counts, memory_bytes, combine, stages.stop - 1)
    finished = [
        (float(history[level].cost[index]), level, int(index))
        for level in stages[: max(0, len(history) - stages.start)]
        for index in _whole(history[level], costs)
    ]
    if not finished:
        return None
    _, level, index = min(finished)
    return _trace(history, level, index)


def lengths_found(
    costs: FloatArray, counts: Sequence[int], memory_bytes: Sequence[int], max_stages: int
) -> list[int]:
    """The numbers of stages with which the search finds some pipeline; arguments as above."""
    history = _beams(costs, counts, memory_bytes, np.maximum, max_stages)
    return [level for level, beam in enumerate(history) if level and len(_whole(beam, costs))]


def _whole(beam: _Beam, costs: FloatArray) -> IntArray:
    return np.flatnonzero(beam.cut == costs.shape[1] - 1)


def _beams(
    costs: FloatArray,
    counts: Sequence[int],
    memory_bytes: Sequence[int],
    combine: np.ufunc,
    max_stages: int,
) -> list[_Beam]:
    """Partial pipelines by length, from none to `max_stages` stages or until nothing goes on."""
    start = _Beam(
        cost=np.zeros(1),
        cut=np.zeros(1, dtype=np.int64),
        used=np.zeros((1, len(counts)), dtype=np.int64),
        memory=np.zeros(1),
        parent=np.zeros(1, dtype=np.int64),
        kind=np.zeros(1, dtype=np.int64),
    )
    history = [start]
    limits, memory = np.array(counts), np.array(memory_bytes, dtype=np.float64)
    while len(history) <= max_stages and len(_whole(history[-1], costs)) < len(history[-1].cut):
        history.append(_step(history[-1], costs, limits, memory, combine))
    return history


def _step(
    beam: _Beam, costs: FloatArray, counts: IntArray, memory_bytes: FloatArray, combine: np.ufunc
) -> _Beam:
    going = np.flatnonzero(beam.cut < costs.shape[1] - 1)
    kinds, size = costs.shape[0], costs.shape[1]
    # candidates[entry, kind, next cut], flattened to one row per (entry, kind)
    onward = costs[:, beam.cut[going], :].transpose(1, 0, 2)
    candidates = combine(beam.cost[going][:, None, None], onward)
    candidates[beam.used[going] >= counts] = np.inf
    flat = candidates.reshape(-1, size)
    memory = (beam.memory[going][:, None] + memory_bytes).reshape(-1, 1)
    by_memory = np.where(np.isfinite(flat), memory, np.inf)
    kept = min(_KEPT, len(flat))
    rows = np.concatenate(
        [np.argpartition(key, kept - 1, axis=0)[:kept] for key in (flat, by_memory)]
    )
    columns = np.broadcast_to(np.arange(size), rows.shape)
    chosen = np.unique(np.stack([rows.ravel(), columns.ravel()], axis=1), axis=0)
    chosen = chosen[np.isfinite(flat[chosen[:, 0], chosen[:, 1]])]
    parent, kind = going[chosen[:, 0] // kinds], chosen[:, 0] % kinds
    used = beam.used[parent]
    used[np.arange(len(parent)), kind] += 1
    return _Beam(
        cost=flat[chosen[:, 0], chosen[:, 1]],
        cut=chosen[:, 1],
        used=used,
        memory=beam.memory[parent] + memory_bytes[kind],
        parent=parent,
        kind=kind,
    )


def _trace(history: list[_Beam], level: int, index: int) -> Pattern:
    stages: list[tuple[int, int, int]] = []
    while level:
        beam = history[level]
        parent = int(beam.parent[index])
        start = int(history[level - 1].cut[parent])
        stages.append((int(beam.kind[index]), start, int(beam.cut[index])))
        level, index = level - 1, parent
    return tuple(reversed(stages))

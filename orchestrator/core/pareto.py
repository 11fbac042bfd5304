"""Which of many points are worth keeping: Pareto fronts of groups of points, and how they are thinned.

A point is a row of figures of which less is better; points are compared within their group only. Figures
closer than 1e-9, relative, are equal here as everywhere in the planner.
"""

from __future__ import annotations

import numpy as np

from orchestrator.core.partition import TIE
from orchestrator.core.tables import FloatArray, IntArray

_FIRST_GRID = 1e-4


def non_dominated(group: IntArray, figures: FloatArray) -> IntArray:
    """The rows that no other of their group is as good as in every figure; of equal rows the first one.

    `group` has shape (n,), `figures` (n, d). Returns indices, groups ascending.
    """
    if figures.shape[1] > 2:
        return _by_heads(group, figures)
    order = np.lexsort((*figures.T[::-1], group))
    if figures.shape[1] == 1:
        return order[_starts(group[order])]
    _, ranks = np.unique(group[order], return_inverse=True)
    # A running minimum that begins anew with each group: every later group lies below every earlier one
    second = figures[order, 1]
    position = second.argsort(kind="stable")
    rank_of = np.empty(len(order), dtype=np.int64)
    rank_of[position] = _equal_ranks(second[position])
    running = np.minimum.accumulate(rank_of - ranks * (len(order) + 1)) + ranks * (len(order) + 1)
    keep = np.ones(len(order), dtype=np.bool_)
    keep[1:] = (rank_of[1:] < running[:-1]) | (ranks[1:] != ranks[:-1])
    return order[keep]


def thinned(group: IntArray, figures: FloatArray, most: int) -> tuple[IntArray, float]:
    """At most about `most` rows of each group; crowded ones are thinned on the finest grid that does it.

    `figures` are non-dominated. All but the first figure are put on a grid of ratio `1 + e`; of the rows in
    one box the one with the least first figure stays. So for every row that goes, one stays that is no worse
    in the first figure and at most the factor `1 + e` worse in each other. The row with the least of each
    figure always stays. Returns indices and e (0 where nothing went).
    """
    kept, grid = np.arange(len(group)), 0.0
    while len(kept) and grid <= 1:
        _, of_row, counts = np.unique(group[kept], return_inverse=True, return_counts=True)
        crowded = counts[of_row] > most
        if not crowded.any():
            break
        grid = grid * 2 if grid else _FIRST_GRID
        rows = np.flatnonzero(np.isin(group, group[kept[crowded]]))
        boxed = rows[_one_per_box(group[rows], figures[rows], grid)]
        kept = np.sort(np.concatenate((kept[~crowded], boxed)))
    return kept, grid


def _one_per_box(group: IntArray, figures: FloatArray, grid: float) -> IntArray:
    with np.errstate(divide="ignore"):
        boxes = np.floor(np.log(figures[:, 1:]) / np.log1p(grid))
    order = np.lexsort((figures[:, 0], *boxes.T, group))
    keys = np.column_stack((group[order], boxes[order]))
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    least = [
        by_figure[_starts(group[by_figure])]
        for by_figure in (
            np.lexsort((*np.delete(figures, column, axis=1).T[::-1], figures[:, column], group))
            for column in range(figures.shape[1])
        )
    ]
    return np.unique(np.concatenate((order[new], *least)))


def _starts(group: IntArray) -> IntArray:
    """Where each run of equal, sorted groups begins."""
    return np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1])))[: len(group)]


def _equal_ranks(ascending: FloatArray) -> IntArray:
    """Ranks of ascending values; a value within 1e-9 of the one before has the same rank."""
    rises = np.zeros(len(ascending), dtype=np.int64)
    rises[1:] = ascending[1:] > ascending[:-1] * (1 + TIE)
    ranks: IntArray = np.cumsum(rises)
    return ranks


def _by_heads(group: IntArray, figures: FloatArray) -> IntArray:
    """Sorted by the figures, the first row of a group is on its front; it removes what it dominates."""
    order = np.lexsort((*figures.T[::-1], group))
    numbers = np.unique(group[order], return_inverse=True)[1]
    figures = figures[order] * (1 + TIE)
    kept: list[IntArray] = []
    alive = np.arange(len(order))
    while len(alive):
        heads = alive[_starts(numbers[alive])]
        kept.append(heads)
        head_of = np.zeros(int(numbers[-1]) + 1, dtype=np.int64)
        head_of[numbers[heads]] = heads
        bar = figures[head_of[numbers[alive]]] / (1 + TIE)
        alive = alive[(figures[alive] < bar).any(axis=1)]
    return order[np.sort(np.concatenate(kept))] if kept else order

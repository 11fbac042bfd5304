"""All pipelines worth considering for every set of nodes, where one figure does not decide.

A label search over (cut, set of nodes): a label is the beginning of a pipeline with its figures so far, and
of the labels that end at the same cut on the same nodes only the non-dominated ones are extended. Period and
exposure are the maximum over stages, latency and energy the sum. The price is not in it: it follows from the
set.

Three bounds keep it small. What more nodes reach must be better in something than what fewer of them do (the
others stay free for something else; not so where many stages are asked for). Labels that cannot keep a limit
on latency, whatever comes after them, are dropped; and where a cell holds more than so many labels they are
thinned on a grid (`pareto.thinned`), which makes the search inexact by a ratio that it reports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.core.figures import Objective
from orchestrator.core.mixture import Pattern
from orchestrator.core.pareto import non_dominated, thinned
from orchestrator.core.partition import TIE, Lattice
from orchestrator.core.tables import FloatArray, IntArray, StageTables

_WORK = 30_000_000
"""Candidates that a search may look at: some seconds."""

_FEWEST, _MOST = 3, 400
"""Labels kept per cut and set of nodes, at least and at most."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which figures are told apart: the period always, then those of `tracked` in order."""

    tracked: tuple[Objective, ...]

    def __post_init__(self) -> None:
        assert set(self.tracked) <= {Objective.LATENCY, Objective.ENERGY, Objective.EXPOSURE}

    def of(self, objective: Objective) -> int | None:
        """The column of an objective's figure, or None where it is not told apart."""
        return 1 + self.tracked.index(objective) if objective in self.tracked else None

    def cells(self, tables: StageTables) -> FloatArray:
        """Each stage's figures, shape (K, L+1, L+1, columns)."""
        arrays = {
            Objective.LATENCY: tables.latency_s,
            Objective.ENERGY: tables.energy_j,
            Objective.EXPOSURE: tables.exposure_ratio,
        }
        return np.stack([tables.period_s, *(arrays[one] for one in self.tracked)], axis=-1)

    @property
    def combine(self) -> tuple[np.ufunc, ...]:
        """How each column goes on along a pipeline."""
        return (
            np.maximum,
            *(np.maximum if one is Objective.EXPOSURE else np.add for one in self.tracked),
        )


@dataclass(frozen=True, slots=True)
class _Labels:
    """The labels of one state, by cut. `parent` points into the labels of the state less a node of `kind`."""

    cut: IntArray
    figures: FloatArray
    kind: IntArray
    parent: IntArray


_Reached = tuple[IntArray, FloatArray]
"""Cuts, and figures with which they were reached."""


@dataclass(frozen=True, slots=True)
class PipelineFront:
    """The non-dominated pipelines: pipeline p uses the nodes of `state[p]`, with `figures[p]` by `columns`.

    States ascending. `error_ratio` is how much better, at most, a pipeline that was thinned out can be in
    a figure than one that is here.
    """

    lattice: Lattice
    columns: Columns
    state: IntArray
    figures: FloatArray
    error_ratio: float
    _labels: Sequence[_Labels | None]
    _row: IntArray

    def path(self, pipeline: int) -> Pattern:
        """(kind, start, stop) per stage, in order."""
        state, row = int(self.state[pipeline]), int(self._row[pipeline])
        stages: list[tuple[int, int, int]] = []
        while state:
            labels = self._labels[state]
            assert labels is not None
            kind, stop = int(labels.kind[row]), int(labels.cut[row])
            row = int(labels.parent[row])
            state -= self.lattice.strides[kind]
            before = self._labels[state]
            assert before is not None
            stages.append((kind, int(before.cut[row]), stop))
        return tuple(reversed(stages))


def pipeline_front(
    tables: StageTables,
    states: Lattice,
    columns: Columns,
    *,
    stages: range,
    max_latency_s: float = math.inf,
    work: int = 1,
) -> PipelineFront:
    """Search, with `work` times the usual effort before anything is thinned out.

    `max_latency_s` is heeded where latency is among the columns.
    """
    cells = columns.cells(tables)
    blocks = cells.shape[1] - 1
    ceilings = _ceilings(cells, columns, max_latency_s)
    most = _labels_per_cell(states, cells, stages, effort=work)
    labels: list[_Labels | None] = [None] * states.size
    zero = np.zeros(1, dtype=np.int64)
    labels[0] = _Labels(zero, np.zeros((1, cells.shape[3])), zero, zero)
    error = np.ones(states.size)
    # What each state's nodes, or fewer of them, have reached: more nodes must be good for something
    reached: list[_Reached | None] = [None] * states.size
    for state in np.argsort(states.totals, kind="stable")[1:]:
        total = int(states.totals[state])
        if total >= stages.stop or total > blocks:
            break
        # What ends with the last stage allowed must be the whole model
        cuts = np.arange(blocks if total == stages.stop - 1 else 1, blocks + 1)
        kinds = [int(kind) for kind in np.flatnonzero(states.digits[state])]
        parts = [
            _extended(labels[state - states.strides[one]], cells[one], columns, ceilings, cuts)
            for one in kinds
        ]
        kind = np.repeat(kinds, [len(part[0]) for part in parts])
        cut, figures, parent = (np.concatenate(column) for column in zip(*parts, strict=True))
        fewer = _joined([reached[state - states.strides[one]] for one in kinds], figures)
        keep = non_dominated(np.concatenate((fewer[0], cut)), np.concatenate((fewer[1], figures)))
        new = keep[keep >= len(fewer[0])] - len(fewer[0])
        thin, grid = thinned(cut[new], figures[new], most)
        new = new[thin]
        old = keep[keep < len(fewer[0])]
        before = max(error[state - states.strides[one]] for one in kinds)
        error[state] = before * (1 + grid)
        if len(new):
            labels[state] = _Labels(cut[new], figures[new], kind[new], parent[new])
        if stages.start == 1:
            reached[state] = (
                np.concatenate((fewer[0][old], cut[new])),
                np.concatenate((fewer[1][old], figures[new])),
            )
    finished = [
        (state, np.flatnonzero(found.cut == blocks))
        for state, found in enumerate(labels)
        if found is not None and states.totals[state] >= stages.start
    ]
    rows = [found.figures[ends] for state, ends in finished if (found := labels[state]) is not None]
    return PipelineFront(
        lattice=states,
        columns=columns,
        state=np.repeat(
            np.array([state for state, _ in finished], dtype=np.int64),
            [len(ends) for _, ends in finished],
        ),
        figures=np.concatenate([np.empty((0, cells.shape[3])), *rows]),
        error_ratio=float(error.max()) - 1.0,
        _labels=labels,
        _row=np.concatenate([zero[:0], *(ends for _, ends in finished)]),
    )


def _joined(parts: Sequence[_Reached | None], like: FloatArray) -> _Reached:
    known = [part for part in parts if part is not None]
    none = np.zeros(0, dtype=np.int64)
    return (
        np.concatenate([none, *(cut for cut, _ in known)]),
        np.concatenate([like[:0], *(figures for _, figures in known)]),
    )


def _extended(
    labels: _Labels | None,
    cells: FloatArray,
    columns: Columns,
    ceilings: FloatArray,
    cuts: IntArray,
) -> tuple[IntArray, FloatArray, IntArray]:
    """All ways to go on from a state's labels up to one of `cuts`: the cut, the figures, the label's row.

    `cells` are the stages on the kind of node that is added.
    """
    if labels is None:
        none = np.zeros(0, dtype=np.int64)
        return none, np.zeros((0, cells.shape[2])), none
    going = np.flatnonzero(labels.cut < cells.shape[0] - 1)
    onward = cells[labels.cut[going]][:, cuts]
    figures = np.empty_like(onward)
    for column, combine in enumerate(columns.combine):
        combine(
            labels.figures[going, column][:, None], onward[..., column], out=figures[..., column]
        )
    row, at = np.nonzero((figures <= ceilings[cuts]).all(axis=2) & np.isfinite(figures[..., 0]))
    return cuts[at], figures[row, at], going[row]


def _ceilings(cells: FloatArray, columns: Columns, max_latency_s: float) -> FloatArray:
    """The most that a label at each cut may have reached, shape (L+1, columns).

    For latency the limit less the least that the rest takes on the best nodes, each of them for every stage.
    """
    size = cells.shape[1]
    ceilings = np.full((size, cells.shape[3]), np.inf)
    column = columns.of(Objective.LATENCY)
    if column is None or not math.isfinite(max_latency_s):
        return ceilings
    cheapest = cells[..., column].min(axis=0)
    rest = np.full(size, np.inf)
    rest[-1] = 0.0
    for cut in range(size - 2, -1, -1):
        rest[cut] = (cheapest[cut] + rest).min()
    ceilings[:, column] = (max_latency_s - rest) * (1 + TIE) + TIE * max_latency_s
    return ceilings


def _labels_per_cell(states: Lattice, cells: FloatArray, stages: range, *, effort: int) -> int:
    """How many labels a cell may hold so that the whole search stays within its work."""
    size = cells.shape[1]
    searched = states.totals[states.totals < stages.stop]
    # With three figures and more, comparing costs as much as there are labels in a cell
    work = _WORK if cells.shape[3] < 3 else _WORK // 10
    pairs: int = int(searched.sum()) * size * size // 2
    most = effort * work // max(1, pairs)
    return max(_FEWEST, min(effort * _MOST, most))

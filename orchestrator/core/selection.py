"""Which of a model's pipelines takes the next item: the rules behind one interface, and what holds for all.

A rule (`Selector`) ranks candidates; what it goes by is on the `Board`, it keeps nothing itself. Whatever the
rule:

- Only pipelines with a free credit are candidates, and while there is one no item waits: a rule chooses where
  a job goes, never whether.
- One that failed or timed out since its last output comes after all that did not: a broken pipeline is
  always empty and would look like the fastest. It still takes what the others have no credit for.
- Ties go to the lowest (pipeline, generation).
- One that has been passed over for long is probed: it gets one item, whatever its rank, and so a new
  sample. Else one that was slow once would be out for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from orchestrator.core.board import ALL, Board, Flags, Floats, Rows

PROBE_EVERY = 20
"""At most every so many decisions is a probe: what probing may cost is 5 % of the jobs going elsewhere."""
_MOST_DOUBLINGS = 6
"""Each fault in a row doubles the wait for the next probe, up to 64-fold: a probe of a dead pipeline costs a
job its timeout."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """What a rule makes of some rows: the least of `order` is first; `terms` say how it came about.

    `passed_over` says by reason which rows the rule would rather not use; they are behind all others.
    """

    order: Floats
    terms: Mapping[str, Floats]
    passed_over: Mapping[str, Flags]


class Selector(Protocol):
    """A rule. Pure: the same board and time give the same ranking."""

    @property
    def name(self) -> str:
        """As the settings call it."""
        ...

    def rank(self, board: Board, rows: Rows, now: float) -> Ranking:
        """Rank `rows`, of which there is at least one."""
        ...


class LeastOutstanding:
    """The fewest items under way; it needs neither plan nor measurement."""

    name = "least-outstanding"

    def rank(self, board: Board, rows: Rows, now: float) -> Ranking:  # noqa: ARG002 - one interface
        """See `Selector`. Terms: `outstanding`."""
        outstanding = board.outstanding[rows]
        return Ranking(outstanding, {"outstanding": outstanding}, {})


class ShortestCompletion:
    """Where the item should be done first.

    `expected = max(slowness * latency, last_due + slowness / throughput - now)`: alone, an item takes the
    pipeline's latency; behind others, it follows the last of them at the pipeline's pace. Latency and pace
    are the plan's, corrected by how far the last flights were off; when those in flight are due follows the
    outputs as they come. While the oldest of them is overdue, all behind it are, and what is late is
    expected to be late by as much again: a pipeline that stalls is left before its credits are used up.
    """

    name = "shortest-completion"

    def rank(self, board: Board, rows: Rows, now: float) -> Ranking:
        """See `Selector`. Terms: `expected_s`, `outstanding`, `slowness`, `overdue_s`."""
        slowness = board.slowness[rows]
        overdue_s = np.maximum(now - board.due_at[rows], 0.0)
        turn_s = board.last_due_at[rows] + slowness / board.throughput_per_s[rows] - now
        expected_s = np.maximum(slowness * board.latency_s[rows], turn_s + overdue_s) + overdue_s
        return Ranking(
            expected_s,
            {
                "expected_s": expected_s,
                "outstanding": board.outstanding[rows],
                "slowness": slowness,
                "overdue_s": overdue_s,
            },
            {},
        )


@dataclass(frozen=True, slots=True)
class Considered:
    """One pipeline in a decision: the rule's terms, and why it was not taken by rank (empty: it could be)."""

    pipeline: str
    generation: int
    chosen: bool
    terms: dict[str, float]
    passed_over: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Why an item went where it went. `probe`: not by rank, but to get a new sample."""

    at: float
    scheduler: str
    probe: bool
    candidates: tuple[Considered, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """A row of the board, and the ranking of `rows` that it comes from."""

    row: int
    probe: bool
    rows: Rows
    ranking: Ranking


def choose(selector: Selector, board: Board, turn: int, now: float) -> Choice | None:
    """The row that takes the next item; None when none has a free credit.

    `turn` counts the model's decisions.
    """
    free = board.outstanding < board.window
    healthy = free & (board.faults_in_row == 0)
    rows = _rows(healthy)
    if rows is None:
        rows = _rows(free)
        if rows is None:
            return None
    ranking = selector.rank(board, rows, now)
    best = int(ranking.order.argmin())
    row = best if isinstance(rows, slice) else int(rows[best])
    if turn % PROBE_EVERY == 0:
        probed = _probe(board, free, turn)
        if probed is not None and probed != row:
            return Choice(probed, True, rows, ranking)
    return Choice(row, False, rows, ranking)


def explain(selector: Selector, board: Board, choice: Choice, now: float) -> Decision:
    """The decision with every pipeline's terms, those that were no candidates too."""
    indices = np.arange(len(board))[choice.rows]
    place = {int(row): index for index, row in enumerate(indices)}
    return Decision(
        at=now,
        scheduler=selector.name,
        probe=choice.probe,
        candidates=tuple(
            _considered(board, choice, row, place.get(row)) for row in range(len(board))
        ),
    )


def _considered(board: Board, choice: Choice, row: int, index: int | None) -> Considered:
    terms: dict[str, float] = {}
    if index is None:
        has_credit = board.outstanding[row] < board.window[row]
        why = ["failed or timed out last" if has_credit else "no free credit"]
    else:
        terms = {name: float(values[index]) for name, values in choice.ranking.terms.items()}
        why = [reason for reason, flags in choice.ranking.passed_over.items() if flags[index]]
    pipeline, generation = board.keys[row]
    return Considered(pipeline, generation, row == choice.row, terms, ", ".join(why))


def _rows(flags: Flags) -> Rows | None:
    """The rows that are set: all of them as a slice, which copies nothing; None when there are none."""
    count = np.count_nonzero(flags)
    if count == len(flags):
        return ALL
    return np.flatnonzero(flags) if count else None


def _probe(board: Board, free: Flags, turn: int) -> int | None:
    """The row with a free credit that is overdue for a sample the most, if one is.

    It is when each other one could have been probed since: with n pipelines after `PROBE_EVERY * n` turns.
    """
    doublings = np.minimum(board.faults_in_row, _MOST_DOUBLINGS)
    allowed = PROBE_EVERY * len(board) * np.exp2(doublings)
    late = np.where(free, (turn - board.chosen_turn) / allowed, 0.0)
    row = int(late.argmax())
    return row if late[row] >= 1.0 else None

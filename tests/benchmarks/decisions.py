"""Boards of any size with everyday figures, and a two-level selection to measure the flat one against."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from orchestrator.core.board import Board, Standing
from orchestrator.core.nsa import Nsa
from orchestrator.core.scheduler_settings import Form, Scheduler, SchedulerSettings
from orchestrator.core.selection import LeastOutstanding, Selector, ShortestCompletion, choose

RULES: dict[str, Selector] = {
    "shortest-completion": ShortestCompletion(),
    "least-outstanding": LeastOutstanding(),
    "nsa, normalised": Nsa(SchedulerSettings(scheduler=Scheduler.NSA)),
    "nsa, literal": Nsa(SchedulerSettings(scheduler=Scheduler.NSA, form=Form.LITERAL)),
}


@dataclass(slots=True, kw_only=True)
class Pipeline:
    """Satisfies `board.Candidate`."""

    pipeline: str
    throughput_per_s: float
    latency_s: float
    outstanding: int
    slowness: float
    due_at: float
    last_due_at: float
    mean_execution_s: float | None
    standing: Standing
    generation: int = 1
    window: int = 8
    faults_in_row: int = 0
    chosen_turn: int = 0


def pipelines(count: int, seed: int = 0) -> list[Pipeline]:
    """Candidates, most of them with something in flight, one in ten without a free credit."""
    chance = np.random.default_rng(seed)
    made = []
    for index in range(count):
        outstanding = 8 if chance.random() < 0.1 else int(chance.integers(0, 6))
        period_s = float(chance.uniform(0.02, 0.2))
        made.append(
            Pipeline(
                pipeline=f"p{index:05}",
                throughput_per_s=1.0 / period_s,
                latency_s=period_s * float(chance.integers(1, 4)),
                outstanding=outstanding,
                slowness=float(chance.uniform(0.8, 1.5)),
                due_at=1.0 + period_s if outstanding else math.inf,
                last_due_at=1.0 + outstanding * period_s if outstanding else -math.inf,
                mean_execution_s=float(chance.uniform(0.02, 0.5)),
                standing=Standing(
                    float(chance.uniform(0.9, 4.0)),
                    float(chance.uniform(0.9, 8.0)),
                    float(chance.uniform(0.0, 0.9)),
                    float(chance.uniform(0.0, 0.05)),
                ),
            )
        )
    return made


class Groups:
    """Two levels: about sqrt(n) groups of as many; the best group, then the best within it.

    A group is as good as its best member was when something last changed in it, so a decision looks at two
    times sqrt(n) figures, and each change ranks one group anew. Figures that age by themselves
    (`overdue_s`) and terms that are relative to all candidates (the normalised form) are stale or local.
    """

    def __init__(self, selector: Selector, members: list[Pipeline]) -> None:
        size = max(1, round(math.sqrt(len(members))))
        self._selector = selector
        parts = [members[first : first + size] for first in range(0, len(members), size)]
        self.boards = [Board(part) for part in parts]
        self._best = np.array([self._best_of(board, 1.0) for board in self.boards])

    def choose(self, now: float) -> tuple[int, int]:
        """(Group, row within it) of the next item, whose going there ranks that group anew."""
        group = int(self._best.argmin())
        choice = choose(self._selector, self.boards[group], 1, now)
        assert choice is not None
        self._best[group] = self._best_of(self.boards[group], now)
        return group, choice.row

    def _best_of(self, board: Board, now: float) -> float:
        rows = np.flatnonzero(board.outstanding < board.window)
        if not len(rows):
            return math.inf
        return float(self._selector.rank(board, rows, now).order.min())

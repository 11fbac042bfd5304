"""Candidates by hand: a row of a board with figures that say nothing unless a test gives them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.core.board import Board, Standing
from orchestrator.core.selection import Choice, Selector, choose

QUIET = 1
"""A turn at which nobody is probed."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Satisfies `board.Candidate`."""

    pipeline: str = "p"
    generation: int = 1
    window: int = 8
    outstanding: int = 0
    throughput_per_s: float = 10.0
    latency_s: float = 0.1
    slowness: float = 1.0
    due_at: float = math.inf
    last_due_at: float = -math.inf
    faults_in_row: int = 0
    mean_execution_s: float | None = None
    standing: Standing = field(default_factory=Standing)
    chosen_turn: int = 0


def board_of(rows: Iterable[Row]) -> Board:
    return Board(sorted(rows, key=lambda row: (row.pipeline, row.generation)))


def chosen(
    selector: Selector, rows: Iterable[Row], *, turn: int = QUIET, now: float = 0.0
) -> str | None:
    """The name of the pipeline that takes the next item."""
    board = board_of(rows)
    choice = choose(selector, board, turn, now)
    return None if choice is None else board.keys[choice.row][0]


def picked(selector: Selector, board: Board, *, turn: int = QUIET, now: float = 0.0) -> Choice:
    choice = choose(selector, board, turn, now)
    assert choice is not None
    return choice

"""The figures that a job is scheduled by: a column per figure, a row per active pipeline of one model.

Columns are NumPy arrays, so that a rule looks at ten thousand candidates in a few vector operations. Rows are
in order of (pipeline, generation): whoever takes the first of equals breaks ties by name, never by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Rows: TypeAlias = npt.NDArray[np.intp] | slice
"""Which rows of a board; a slice takes views, an array of indices copies."""
ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Standing:
    """How the nodes below a pipeline do, by telemetry; of several stages the weakest in each figure.

    `cpu_ratio` and `memory_ratio` are what is available over what the stage needs, `load_ratio` the CPU in
    use over what the node may use, `round_trip_s` to the broker. Without telemetry nothing speaks against a
    node: it has what it needs and is idle.
    """

    cpu_ratio: float = 1.0
    memory_ratio: float = 1.0
    load_ratio: float = 0.0
    round_trip_s: float = 0.0


class Candidate(Protocol):
    """An active pipeline as a rule sees it."""

    @property
    def pipeline(self) -> str: ...

    @property
    def generation(self) -> int: ...

    @property
    def window(self) -> int:
        """Messages that may be in flight at most: items, but for those that travel together."""
        ...

    @property
    def outstanding(self) -> int:
        """Messages in flight."""
        ...

    @property
    def throughput_per_s(self) -> float:
        """Predicted, items per second, > 0."""
        ...

    @property
    def latency_s(self) -> float:
        """Predicted, of an item that is alone in it."""
        ...

    @property
    def slowness(self) -> float:
        """Measured over predicted flights, moving; 1.0 before the first."""
        ...

    @property
    def due_at(self) -> float:
        """When the item that was dispatched first should be done; infinity when none is in flight."""
        ...

    @property
    def last_due_at(self) -> float:
        """When the item that was dispatched last should be done; minus infinity when none is in flight."""
        ...

    @property
    def faults_in_row(self) -> int:
        """Failures and timeouts since its last output."""
        ...

    @property
    def mean_execution_s(self) -> float | None:
        """From dispatch to output, mean of the last 100; None before the first."""
        ...

    @property
    def standing(self) -> Standing: ...

    @property
    def chosen_turn(self) -> int:
        """The model's decision at which it was chosen last, or became active."""
        ...


class Board:
    """Made of candidates in order of (pipeline, generation); kept up to date by `post`."""

    __slots__ = (
        "chosen_turn",
        "cpu_ratio",
        "due_at",
        "faults_in_row",
        "keys",
        "last_due_at",
        "latency_s",
        "load_ratio",
        "mean_execution_s",
        "memory_ratio",
        "outstanding",
        "round_trip_s",
        "slowness",
        "throughput_per_s",
        "window",
    )

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.keys = [(each.pipeline, each.generation) for each in candidates]
        assert self.keys == sorted(self.keys), "rows must be in order, or ties depend on chance"
        count = len(candidates)
        self.window = np.array([each.window for each in candidates], np.float64)
        self.throughput_per_s = np.array([each.throughput_per_s for each in candidates], np.float64)
        self.latency_s = np.array([each.latency_s for each in candidates], np.float64)
        self.cpu_ratio, self.memory_ratio = np.empty(count), np.empty(count)
        self.load_ratio, self.round_trip_s = np.empty(count), np.empty(count)
        self.outstanding = np.empty(count)
        self.due_at, self.last_due_at = np.empty(count), np.empty(count)
        self.slowness, self.faults_in_row = np.empty(count), np.empty(count)
        self.mean_execution_s, self.chosen_turn = np.empty(count), np.empty(count)
        for row, each in enumerate(candidates):
            self.post(row, each)
            self.post_standing(row, each.standing)

    def __len__(self) -> int:
        return len(self.keys)

    def post(self, row: int, of: Candidate) -> None:
        """An item went in or came out: take over what changes with it."""
        self.outstanding[row] = of.outstanding
        self.due_at[row] = of.due_at
        self.last_due_at[row] = of.last_due_at
        self.slowness[row] = of.slowness
        self.faults_in_row[row] = of.faults_in_row
        mean_s = of.mean_execution_s
        self.mean_execution_s[row] = np.nan if mean_s is None else mean_s
        self.chosen_turn[row] = of.chosen_turn

    def post_standing(self, row: int, standing: Standing) -> None:
        """Telemetry came."""
        self.cpu_ratio[row] = standing.cpu_ratio
        self.memory_ratio[row] = standing.memory_ratio
        self.load_ratio[row] = standing.load_ratio
        self.round_trip_s[row] = standing.round_trip_s

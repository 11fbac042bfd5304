"""What every benchmark is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from tests.benchmarks.report import Row, say

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Context:
    """`directory` is scratch of this run, one for all its benchmarks; `draw` is where a picture goes.

    `seconds`: how long a benchmark with a length of its own runs; None for as long as it likes.
    """

    quick: bool
    directory: Path
    draw: Path | None = None
    seconds: float | None = None

    def choose(self, quick: T, full: T) -> T:
        """`quick` with `--quick`, which shows that a benchmark works; `full` for figures to publish."""
        return quick if self.quick else full

    def say(self, text: str) -> None:
        """A line of progress."""
        say(text)


Benchmark: TypeAlias = Callable[[Context], Awaitable[list[Row]]]
"""A benchmark module's `run`: rows in the order in which they are to be read."""

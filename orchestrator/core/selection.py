"""Which of a model's pipelines takes the next item.

The rule is a function, so that the paper's node selection (ALGORITHMS.md section 2) can stand in its
place: `Selector`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias


class Candidate(Protocol):
    """An active pipeline with a free credit, as the rule sees it."""

    @property
    def pipeline(self) -> str: ...

    @property
    def generation(self) -> int: ...

    @property
    def outstanding(self) -> int:
        """Items in flight."""
        ...

    @property
    def throughput_per_s(self) -> float:
        """Predicted, items per second, > 0."""
        ...

    @property
    def faults_in_row(self) -> int:
        """Failures and timeouts since its last output."""
        ...


Selector: TypeAlias = Callable[[Sequence[Candidate]], int]
"""Takes at least one candidate, in order of activation; returns the index of one of them."""


def shortest_expected_completion(candidates: Sequence[Candidate]) -> int:
    """Index of the candidate that should be done first: least `(outstanding + 1) / throughput`.

    One that failed or timed out since its last output comes after all others: a broken pipeline is
    always empty and would look like the fastest. It still takes what the others have no credit for, so
    that it is tried again. Ties go to the one activated first.
    """
    best = 0
    if len(candidates) > 1:
        best_rank = (2, 0.0)
        for index, candidate in enumerate(candidates):
            expected_s = (candidate.outstanding + 1) / candidate.throughput_per_s
            rank = (1 if candidate.faults_in_row else 0, expected_s)
            if rank < best_rank:
                best, best_rank = index, rank
    return best

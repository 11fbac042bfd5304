"""The paper's node selection (NSA) and score: ALGORITHMS.md, section 2.

`total = w_R * S_R + w_L * S_L + w_P * S_P + w_B * S_B`, the highest wins. A candidate is passed over when its
load or its latency is above a threshold, or CPU or memory do not suffice; when all are, the best of them is
taken all the same, since credits bound what a node gets anyway.

The paper scores nodes. A pipeline of several stages is as good as its weakest stage: the least CPU ratio,
the least memory ratio, the highest load and the longest round trip of its nodes (`standing`). A pipeline of
one stage is its node.

What is done otherwise than in the paper's reference implementation (its faults are in ALGORITHMS.md): times
are in seconds; `task_count` is what is outstanding; there is no chance in ties; who was passed over is probed
again (`selection`). In the normalised form each term has the same spread in every decision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from orchestrator.core.board import Board, Flags, Floats, Rows, Standing
from orchestrator.core.scheduler_settings import Form, SchedulerSettings
from orchestrator.core.selection import Ranking

HISTORY = 100
"""Executions that `S_P` goes by."""
TERMS = ("resources", "load", "performance", "balance")
"""`S_R`, `S_L`, `S_P`, `S_B`, in the order of the weights."""
NO_HISTORY = 0.5
"""`S_P` without any."""
_MOST = 1e9
"""Of a ratio: a need next to nothing must not make it infinite, of which no score can be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFigures:
    """A stage's node: what it has for the stage, what the stage needs, how busy and how far it is."""

    node: str
    cpu_available: float
    """CPUs that nobody but this stage uses."""
    cpu_needed: float
    memory_available_bytes: float
    """Bytes that nobody but this stage holds."""
    memory_needed_bytes: float
    load_ratio: float
    round_trip_s: float


def standing(nodes: Iterable[NodeFigures]) -> Standing:
    """The weakest of a pipeline's nodes in each figure; at least one node."""
    nodes = tuple(nodes)
    return Standing(
        cpu_ratio=min(_ratio(node.cpu_available, node.cpu_needed) for node in nodes),
        memory_ratio=min(
            _ratio(node.memory_available_bytes, node.memory_needed_bytes) for node in nodes
        ),
        load_ratio=max(node.load_ratio for node in nodes),
        round_trip_s=max(node.round_trip_s for node in nodes),
    )


def resource_score(cpu_ratio: Floats, memory_ratio: Floats) -> Floats:
    """`S_R = 0.5 * cpu_available / cpu_needed + 0.5 * memory_available / memory_needed`; has no upper end."""
    return 0.5 * cpu_ratio + 0.5 * memory_ratio


def bounded_resource_score(cpu_ratio: Floats, memory_ratio: Floats) -> Floats:
    """`S_R` of `r / (1 + r)` in place of each ratio r: in [0, 1], in the same order.

    That is `1 / (1 + needed / available)`, of one kind with `S_P` and `S_B`. Without it one node with a
    hundred times what is needed would press all others together when terms are normalised.
    """
    return resource_score(cpu_ratio / (1.0 + cpu_ratio), memory_ratio / (1.0 + memory_ratio))


def load_score(load_ratio: Floats) -> Floats:
    """`S_L = 1 - load`."""
    return 1.0 - load_ratio


def performance_score(mean_execution_s: Floats) -> Floats:
    """`S_P = 1 / (1 + mean execution time of the last 100 tasks)`, in seconds; 0.5 for NaN, no history."""
    return np.where(np.isnan(mean_execution_s), NO_HISTORY, 1.0 / (1.0 + mean_execution_s))


def balance_score(outstanding: Floats) -> Floats:
    """`S_B = 1 / (1 + 2 * task_count)`."""
    return 1.0 / (1.0 + 2.0 * outstanding)


class Nsa:
    """The rule; see the module."""

    name = "nsa"

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._weights = np.array(settings.weights).reshape(len(TERMS), 1)

    def rank(self, board: Board, rows: Rows, now: float) -> Ranking:  # noqa: ARG002 - one interface
        """See `Selector`. Terms, as summed: `resources`, `load`, `performance`, `balance`; `total`."""
        settings = self._settings
        cpu_ratio, memory_ratio = board.cpu_ratio[rows], board.memory_ratio[rows]
        load_ratio = board.load_ratio[rows]
        passed_over = {
            "load above threshold": load_ratio > settings.max_load_ratio,
            "latency above threshold": board.round_trip_s[rows] > settings.max_latency_s,
            "CPU does not suffice": cpu_ratio < 1.0,
            "memory does not suffice": memory_ratio < 1.0,
        }
        loaded, far, slow, full = passed_over.values()
        out = loaded | far | slow | full
        terms = np.empty((len(TERMS), len(out)))
        terms[1] = load_score(load_ratio)
        terms[2] = performance_score(board.mean_execution_s[rows])
        terms[3] = balance_score(board.outstanding[rows])
        match settings.form:
            case Form.LITERAL:
                terms[0] = resource_score(cpu_ratio, memory_ratio)
            case Form.NORMALISED:
                terms[0] = bounded_resource_score(cpu_ratio, memory_ratio)
                terms = _spread(terms, ~out)
            case _:
                assert_never(settings.form)
        # Row by row: equal candidates get equal totals, to the last bit.
        total = np.add.reduce(self._weights * terms, axis=0)
        order = -total if out.all() else np.where(out, np.inf, -total)
        named = dict(zip(TERMS, terms, strict=True)) | {"total": total}
        return Ranking(order, named, passed_over)


def _spread(terms: Floats, among: Flags) -> Floats:
    """Each row min-max over the candidates that are not passed over (over all, when all are), in [0, 1].

    Where all are equal each gets 1: the term has nothing to say.
    """
    indices = np.flatnonzero(among)
    within = terms.take(indices, axis=1) if 0 < len(indices) < len(among) else terms
    low = within.min(axis=1, keepdims=True)
    span = within.max(axis=1, keepdims=True) - low
    alike = span <= 0.0
    spread: Floats = (terms - low) / np.where(alike, 1.0, span)
    spread[alike[:, 0]] = 1.0
    np.maximum(spread, 0.0, out=spread)
    np.minimum(spread, 1.0, out=spread)
    return spread


def _ratio(available: float, needed: float) -> float:
    """Available over needed; what needs nothing has enough, and no more than that."""
    return min(max(available, 0.0) / needed, _MOST) if needed > 0.0 else 1.0

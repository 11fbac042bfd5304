"""Which pipeline takes a model's next item by the rule in force, and when that is written down."""

from __future__ import annotations

from orchestrator.core.dispatch_lineup import Model, Pipeline
from orchestrator.core.rules import selector_of
from orchestrator.core.scheduler_settings import SchedulerSettings
from orchestrator.core.selection import Decision, choose, explain

EXPLAIN_S, EXPLAIN_CANDIDATE_S = 1.0, 0.01
"""A decision of each model is explained this often, and so much more rarely for each candidate, for whoever
asks: writing down the terms of one takes microseconds, those of thousands would hold jobs up."""


class Decider:
    """The rule, and how often it explains itself. Keeps nothing of a decision."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._selector = selector_of(settings)
        self._each = settings.log_decisions

    def decide(self, model: Model, now: float) -> tuple[Pipeline, Decision | None] | None:
        """The pipeline for the next item, and why, where that is to be told; None: no free credit."""
        lineup = model.lineup()
        told = self._is_told(model.decision, len(lineup), now)
        if len(lineup) == 1 and not told:
            only = lineup[0]
            return (only, None) if only.outstanding < only.window else None
        board = model.candidates()
        choice = choose(self._selector, board, model.turns + 1, now)
        if choice is None:
            return None
        decision = explain(self._selector, board, choice, now) if told else None
        return lineup[choice.row], decision

    def _is_told(self, last: Decision | None, candidates: int, now: float) -> bool:
        if self._each or last is None:
            return True
        return now - last.at >= EXPLAIN_S + EXPLAIN_CANDIDATE_S * candidates

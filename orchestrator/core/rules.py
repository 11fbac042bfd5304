"""The scheduling rules by name."""

from __future__ import annotations

from typing import assert_never

from orchestrator.core.nsa import Nsa
from orchestrator.core.scheduler_settings import Scheduler, SchedulerSettings
from orchestrator.core.selection import LeastOutstanding, Selector, ShortestCompletion


def selector_of(settings: SchedulerSettings) -> Selector:
    """The rule that the settings ask for."""
    match settings.scheduler:
        case Scheduler.SHORTEST_COMPLETION:
            return ShortestCompletion()
        case Scheduler.LEAST_OUTSTANDING:
            return LeastOutstanding()
        case Scheduler.NSA:
            return Nsa(settings)
        case _:
            assert_never(settings.scheduler)

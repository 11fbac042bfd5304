"""Which runtime a model is to be served with, where nobody says: the one with the better plan.

When it is asked for, and again when nodes come, go or change (`cluster_planning.consider`): then another
runtime has to be worth the switch, as every other plan.

A runtime that is faster on every node that has it may still lose: fewer nodes may have it, or its memory may
not suffice. So each is planned with, as the model would be, and the plans are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.cluster_settings import Zones
from orchestrator.core.hysteresis import gain_ratio
from orchestrator.core.replan import Choice, choose
from orchestrator.core.served import misses_rate
from shared.errors import PlanError
from shared.profile import NodeProfile


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model as it would be served with one runtime, and the nodes that could run it."""

    entry: ModelEntry
    nodes: Sequence[NodeProfile]


def best_runtime(candidates: Iterable[Candidate], zones: Zones) -> ModelEntry | None:
    """The entry with the best plan; None where there is no plan with any. Of equal ones the first.

    What was asked for (stages, a rate) counts before how good a plan is by its goal.

    Raises:
        ConfigurationError: options that no cluster could satisfy.
    """
    best: tuple[ModelEntry, Choice] | None = None
    for candidate in candidates:
        if not candidate.nodes:
            continue
        try:
            choice = choose(candidate.entry, candidate.nodes, zones)
        except PlanError:
            continue
        if best is None or better(candidate.entry, choice, best[1]):
            best = candidate.entry, choice
    return None if best is None else best[0]


def better(entry: ModelEntry, choice: Choice, than: Choice) -> bool:
    """Whether one choice is better than another by what was asked for."""
    mine, other = ((each.short, misses_rate(entry, each.plan.predicted)) for each in (choice, than))
    if mine != other:
        return mine < other
    plan = choice.plan
    return gain_ratio(than.plan.predicted, plan.predicted, plan.objective, plan.yardstick) > 0.0

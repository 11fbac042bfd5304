"""A request worked out once, for every strategy to use: tables, kinds of node, numbers of stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.core import cost
from orchestrator.core.evaluate import Placement, price
from orchestrator.core.figures import burden
from orchestrator.core.mixture import Pattern
from orchestrator.core.plan import Goal, Objective, PlanRequest, Priced
from orchestrator.core.tables import Kind, ModelTables, group_nodes, model_tables
from shared.errors import PlanError
from shared.profile import NodeProfile


@dataclass(frozen=True, slots=True)
class Problem:
    """`stages` are the numbers of stages that a pipeline may have; empty where the request allows none."""

    request: PlanRequest
    model: ModelTables
    kinds: tuple[Kind, ...]
    stages: range

    @property
    def counts(self) -> tuple[int, ...]:
        """Nodes of each kind."""
        return tuple(len(kind.names) for kind in self.kinds)

    @property
    def whole_bytes(self) -> int:
        """What the whole model needs on one node."""
        return int(self.model.memory_bytes[0, -1])

    def holding_all(self) -> list[NodeProfile]:
        """The nodes on which the whole model fits, sorted by name."""
        return [n for n in self.request.usable if cost.usable_bytes(n) >= self.whole_bytes]

    def price(self, placed: list[list[Placement]]) -> Priced:
        """Price placements under this request."""
        request = self.request
        return price(
            request.profile,
            request.nodes,
            placed,
            in_flight=request.in_flight,
            input_zone=request.home_zone,
        )


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a strategy hands back: who runs what, and what a reader should know."""

    placed: list[list[Placement]]
    notes: tuple[str, ...] = ()
    leaf_counts: tuple[int, ...] = ()


def pose(request: PlanRequest) -> Problem:
    """Work out a request."""
    if (
        request.objective not in (Objective.THROUGHPUT, Objective.LATENCY)
        or request.limits.objectives
        or request.keep_input
    ):
        raise PlanError(
            f"no search for {request.objective} under limits yet",
            expected="objective throughput or latency, no limits",
            got=str(request.objective),
        )
    return Problem(
        request=request,
        model=model_tables(request.profile, request.in_flight),
        kinds=group_nodes(request.usable),
        stages=range(request.min_stages, request.stage_limit + 1),
    )


def place(patterns: Iterable[Pattern], kinds: tuple[Kind, ...]) -> list[list[Placement]]:
    """Give the stages nodes: each kind's names in order, pipelines in the order of their patterns."""
    free = [iter(kind.names) for kind in kinds]
    return [
        [(next(free[kind]), (start, stop)) for kind, start, stop in pattern]
        for pattern in sorted(patterns)
    ]


def better_first(objective: Goal, priced: Priced) -> float:
    """A key that sorts plans best first."""
    assert isinstance(objective, Objective)
    return burden(priced.predicted, objective)

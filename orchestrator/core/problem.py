"""A request worked out once, for every strategy to use: tables, kinds of node, numbers of stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.core import cost
from orchestrator.core.evaluate import Placement, price
from orchestrator.core.limits import GRAIN
from orchestrator.core.mixture import Pattern
from orchestrator.core.plan import PlanRequest, Priced
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
        """The nodes on which the whole model fits and may be, sorted by name."""
        return [node for node in self.request.usable if self.model.fits(node)[0, -1]]

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
    """Work out a request.

    Raises PlanError where the input is to stay in a zone that it cannot stay in: broker or orchestrator are
    elsewhere, or the zone has no node.
    """
    _check_zones(request)
    return Problem(
        request=request,
        model=model_tables(
            request.profile,
            request.in_flight,
            home_zone=request.home_zone,
            first_outside=_first_outside(request),
        ),
        kinds=group_nodes(request.usable),
        stages=range(request.min_stages, request.stage_limit + 1),
    )


def _first_outside(request: PlanRequest) -> int:
    """The first block that may run outside the input's zone, by `keep_input` and the limit on exposure."""
    depth = request.keep_input.depth(request.profile) if request.keep_input is not None else 0
    most = request.limits.max_exposure_ratio
    if most is None:
        return depth
    exposed = cost.exposures(request.profile)
    return max(depth, next(j for j, ratio in enumerate(exposed) if ratio <= most * (1 + GRAIN)))


def _check_zones(request: PlanRequest) -> None:
    keep = request.keep_input
    if keep is None:
        return
    elsewhere = {
        name: zone
        for name, zone in (
            ("broker", request.broker_zone),
            ("orchestrator", request.orchestrator_zone),
        )
        if zone != keep.zone
    }
    if elsewhere:
        where = " and ".join(f"{name} is in zone {zone!r}" for name, zone in elsewhere.items())
        raise PlanError(
            f"{where}: keeping the input in zone {keep.zone!r} is refused, since every tensor crosses "
            "broker and orchestrator",
            expected=f"broker and orchestrator in zone {keep.zone!r}",
            got=", ".join(f"{name} in {zone!r}" for name, zone in elsewhere.items()),
        )
    zones = sorted({node.zone for node in request.usable})
    if zones and keep.zone not in zones:
        raise PlanError(
            f"zone {keep.zone!r} has no node; zones are: {', '.join(zones)}",
            expected=f"one of {', '.join(zones)}",
            got=keep.zone,
        )


def place(patterns: Iterable[Pattern], kinds: tuple[Kind, ...]) -> list[list[Placement]]:
    """Give the stages nodes: each kind's names in order, pipelines in the order of their patterns."""
    free = [iter(kind.names) for kind in kinds]
    return [
        [(next(free[kind]), (start, stop)) for kind, start, stop in pattern]
        for pattern in sorted(patterns)
    ]

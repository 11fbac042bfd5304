"""A question to the planner as somebody asked it on a command line, and everything that is told about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.core.dispatch_settings import default_window
from orchestrator.core.figures import Objective
from orchestrator.core.front import front as find_front
from orchestrator.core.goal import Goal
from orchestrator.core.limits import NO_LIMITS, KeepInput, Limits
from orchestrator.core.micro_batch import MicroBatchLimits
from orchestrator.core.micro_batch_limits import limits_for
from orchestrator.core.plan import (
    AUTO,
    DEFAULT_IN_FLIGHT,
    Front,
    PipelinePlan,
    Plan,
    PlanRequest,
    Strategy,
)
from orchestrator.core.plan_document import front_document, plan_document
from orchestrator.core.planner import plan as find_plan
from orchestrator.core.simulate import Simulated, simulate
from shared.codec import to_builtins
from shared.errors import ConfigurationError
from shared.profile import DEFAULT_ZONE, ModelProfile, NodeProfile

LEAST_JOBS, JOBS_PER_PIPELINE = 400, 40
"""Of a dry run: enough that filling and emptying the pipelines does not show in the rate."""
_BEST_NODE = "the least possible (every node's best, and nothing sent)"
_BOUNDS: dict[Goal, str] = {
    Objective.THROUGHPUT: "the least possible time per job (all work spread evenly, and nothing sent)",
    Objective.LATENCY: "the least possible latency (all work on the fastest node, and nothing sent)",
}
AXES = (2, 3)
"""How many objectives a front is drawn over: two axes, and perhaps a colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a plan shall be like; see `PlanRequest`, whose fields these are."""

    objective: Goal = Objective.THROUGHPUT
    strategy: Strategy = Strategy.OPTIMAL
    limits: Limits = NO_LIMITS
    min_stages: int = 1
    max_stages: int | None = None
    exclude: frozenset[str] = frozenset()
    in_flight: int = DEFAULT_IN_FLIGHT
    input_zone: str | None = None
    keep_input: KeepInput | None = None
    broker_zone: str | None = None
    orchestrator_zone: str | None = None
    compression: str = AUTO
    max_error: float = 0.0
    micro_batch: int | None = None

    def at(self, broker_zone: str, orchestrator_zone: str) -> Wish:
        """The same where broker and orchestrator are, unless the wish itself says so."""
        return replace(
            self,
            broker_zone=self.broker_zone or broker_zone,
            orchestrator_zone=self.orchestrator_zone or orchestrator_zone,
        )

    def request(self, profile: ModelProfile, nodes: Iterable[NodeProfile]) -> PlanRequest:
        """The question for this model and these nodes; zones that nobody named are `default`.

        Raises:
            ConfigurationError: it contradicts itself, or names a node that is not there.
        """
        nodes = tuple(nodes)
        names = {node.name for node in nodes}
        for name in sorted(self.exclude - names):
            raise ConfigurationError(
                f"--exclude {name}: there is no such node",
                expected=f"one of {', '.join(sorted(names))}",
                got=name,
            )
        return PlanRequest(
            profile=profile,
            nodes=nodes,
            objective=self.objective,
            strategy=self.strategy,
            limits=self.limits,
            min_stages=self.min_stages,
            max_stages=self.max_stages,
            exclude=self.exclude,
            in_flight=self.in_flight,
            input_zone=self.input_zone,
            keep_input=self.keep_input,
            broker_zone=self.broker_zone or DEFAULT_ZONE,
            orchestrator_zone=self.orchestrator_zone or DEFAULT_ZONE,
            compression=self.compression,
            max_error=self.max_error,
        )


@dataclass(frozen=True, slots=True)
class DryRun:
    """The plan simulated: saturated with the dispatcher's window of jobs in flight, and one job at a time."""

    window: int
    saturated: Simulated
    alone: Simulated


@dataclass(frozen=True, slots=True)
class Answer:
    """A plan with what was asked for beside it."""

    request: PlanRequest
    plan: Plan
    micro_batches: tuple[MicroBatchLimits, ...]
    """What each pipeline allows; which size it has is measured while it serves."""
    dry_run: DryRun | None = None
    front: Front | None = None

    def document(self) -> dict[str, Any]:
        """ALGORITHMS.md's plan, with `dry_run` and `front` where they were asked for."""
        document = plan_document(self.plan)
        for pipeline, limits in zip(document["pipelines"], self.micro_batches, strict=True):
            pipeline["micro_batch"] = {
                "most": limits.most,
                "wanted": limits.wanted,
                "reason": limits.reason,
            }
        if self.dry_run is not None:
            document["dry_run"] = to_builtins(self.dry_run)
        if self.front is not None:
            document["front"] = front_document(self.front)
        return document


def answer(
    request: PlanRequest,
    *,
    explain: bool = False,
    axes: Sequence[Objective] = (),
    micro_batch: int | None = None,
) -> Answer:
    """Plan, and where asked for simulate the plan and find the front over `axes`.

    `micro_batch` is how many items of a batch shall travel in one message; None leaves it open.

    Raises:
        PlanError: no plan satisfies the request; says which constraint cannot be met.
        ConfigurationError: the request contradicts itself or the model.
    """
    plan = find_plan(request)
    nodes = {node.name: node for node in request.nodes}
    limits = [
        limits_for(
            request.profile,
            nodes,
            pipeline,
            wanted=micro_batch,
            max_latency_s=request.limits.max_latency_s,
            in_flight=request.in_flight,
        )
        for pipeline in plan.pipelines
    ]
    return Answer(
        request,
        plan,
        tuple(limits),
        dry_run=dry_run(plan.pipelines) if explain else None,
        front=find_front(request, tuple(axes)) if axes else None,
    )


def dry_run(pipelines: Sequence[PipelinePlan]) -> DryRun:
    """Simulate jobs through the pipelines."""
    jobs = max(LEAST_JOBS, JOBS_PER_PIPELINE * len(pipelines))
    window = max(default_window(len(pipeline.stages)) for pipeline in pipelines)
    return DryRun(window, simulate(pipelines, jobs, window), simulate(pipelines, jobs, 1))


def parse_axes(text: str) -> tuple[Objective, ...]:
    """`latency,throughput`, and a third for the colour.

    Raises:
        ConfigurationError: not two or three different objectives.
    """
    names = [part.strip() for part in text.split(",")]
    known = set(Objective)
    if not set(names) <= known or len(set(names)) < len(names) or len(names) not in AXES:
        raise ConfigurationError(
            "--axes", expected=f"two or three of {', '.join(Objective)}", got=repr(text)
        )
    return tuple(Objective(name) for name in names)


def kind_of(pipelines: Sequence[PipelinePlan]) -> str:
    """A plan in words: `one node`, `3 copies`, `pipeline of 3`, `2 pipelines of 2 and 1 copy`."""
    lengths = [len(pipeline.stages) for pipeline in pipelines]
    parts = []
    for length in sorted(set(lengths), reverse=True):
        many = lengths.count(length)
        if length == 1:
            parts.append(f"{many} copies" if many > 1 else "1 copy")
        else:
            parts.append(f"{many} pipelines of {length}" if many > 1 else f"pipeline of {length}")
    text = " and ".join(parts)
    return "one node" if text == "1 copy" else text


def gap_text(plan: Plan) -> str:
    """How far the plan is from what no plan can be below, in words; empty where that says nothing."""
    gap = plan.gap_ratio
    if not math.isfinite(gap):
        return ""
    above = f"{max(gap, 0.0):.1%} above" if gap < 1.0 else f"{1.0 + gap:.1f} times"
    return f"at most {above} {_BOUNDS.get(plan.objective, _BEST_NODE)}"


def zone_note(request: PlanRequest) -> str:
    """What is worth saying where the input comes from a zone that no node is in; else empty."""
    zones = sorted({node.zone for node in request.usable})
    if request.home_zone in zones:
        return ""
    return (
        f"no node is in the input's zone, {request.home_zone!r}, so all of it is exposed; zones are "
        f"{', '.join(zones)}: --input-zone says which one the input comes from"
    )

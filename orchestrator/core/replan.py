"""Which plan is best for a model on the nodes that it is offered, and if it is worth a switch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.cluster_settings import Zones
from orchestrator.core.evaluate import evaluate
from orchestrator.core.goal import parse_goal
from orchestrator.core.limits import GRAIN, KeepInput, Limits, done_ratios, parse_keep_input
from orchestrator.core.nodes import Node
from orchestrator.core.plan import (
    Objective,
    PipelinePlan,
    Plan,
    PlanRequest,
    Predicted,
    Priced,
    Strategy,
)
from orchestrator.core.planner import plan as find_plan
from orchestrator.core.result_cache import check_cache
from orchestrator.core.served import Served, misses_rate, misses_stages
from shared.errors import ConfigurationError, PlanError
from shared.profile import NodeProfile

STRAY_RATIO = 0.05
"""By so much a running plan may miss a rate or break a limit before that alone is worth a switch."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The planner's answer; `short` when it has fewer stages than were asked for.

    Whether it reaches the rate that was asked for is in its prediction (`served.misses_rate`).
    """

    plan: Plan
    short: bool


def check(entry: ModelEntry, zones: Zones) -> None:
    """Refuse options that no cluster could satisfy.

    Raises:
        ConfigurationError: they make no sense.
    """
    options = entry.options
    if options.rate_per_s is not None and not 0.0 < options.rate_per_s < float("inf"):
        raise ConfigurationError(
            "rate_per_s", expected="a finite number above 0", got=f"{options.rate_per_s:g}"
        )
    check_cache(options.cache_bytes, options.max_error)
    _request(entry, (), zones, options.min_stages or 1, options.max_stages)
    keep = _keep_input(entry)
    if keep is not None and {zones.orchestrator, zones.broker} != {keep.zone}:
        # No node that joins could mend it.
        raise ConfigurationError(
            f"keep_input_in {keep.zone!r} is refused: every tensor crosses broker and orchestrator",
            expected=f"both in zone {keep.zone!r}",
            got=f"the broker in {zones.broker!r}, the orchestrator in {zones.orchestrator!r}",
        )


def strategy_of(entry: ModelEntry) -> Strategy:
    """The strategy that was asked for by name.

    Raises:
        ConfigurationError: there is none of that name.
    """
    try:
        return Strategy(entry.options.strategy)
    except ValueError:
        expected = f"one of {', '.join(sorted(Strategy))}"
        raise ConfigurationError(
            "strategy", expected=expected, got=repr(entry.options.strategy)
        ) from None


def limits_of(entry: ModelEntry) -> Limits:
    """The limits that were asked for.

    Raises:
        ConfigurationError: one is out of range.
    """
    options = entry.options
    return Limits(
        max_latency_s=options.max_latency_s,
        min_throughput_per_s=options.min_throughput_per_s,
        max_energy_j=options.max_energy_j,
        max_cost_per_1000=options.max_cost_per_1000,
        max_exposure_ratio=options.max_exposure_ratio,
    )


def choose(entry: ModelEntry, nodes: Sequence[NodeProfile], zones: Zones) -> Choice:
    """The best plan with the stages and at the rate asked for, else with as much of them as there can be.

    After a loss a model is served with fewer stages, and at a lower rate, rather than not at all. Where the
    rate cannot be had the plan is the one with the highest throughput. Limits and zones are kept always.

    Raises:
        PlanError: no plan fits, with any number of stages.
        ConfigurationError: see `check`.
    """
    check(entry, zones)
    wanted = entry.options.min_stages or 1
    last: PlanError | None = None
    for request in _wishes(entry, nodes, zones):
        try:
            return Choice(find_plan(request), short=request.min_stages < wanted)
        except PlanError as error:
            last = error
    assert last is not None
    raise last


def free_choice(entry: ModelEntry, nodes: Sequence[NodeProfile], zones: Zones) -> Plan | None:
    """What would be chosen if no number of stages had been asked for; None when none was."""
    if entry.options.min_stages is None and entry.options.max_stages is None:
        return None
    try:
        return find_plan(_request(entry, nodes, zones, 1, None))
    except PlanError:
        # What `choose` found is free to be chosen here, too; a bounded search may miss it.
        return None


def price(
    entry: ModelEntry,
    nodes: Iterable[NodeProfile],
    pipelines: Iterable[PipelinePlan],
    zones: Zones,
) -> Priced:
    """The figures of pipelines on the nodes of now.

    Raises:
        PlanError: they cannot run there.
    """
    keep = _keep_input(entry)
    home = zones.orchestrator if keep is None else keep.zone
    return evaluate(entry.profile, nodes, pipelines, input_zone=home)


def necessity(served: Served, choice: Choice) -> str | None:
    """Why the plan that was chosen has to be taken, whatever it gains; None where it has to pay."""
    active, entry = served.active, served.entry
    if active is None:
        return "nothing ran any more" if served.ran else "its first plan"
    if served.replaces:
        return "it replaces the model served before"
    if misses_stages(active):
        wanted = entry.options.min_stages or 1
        fewest = min(len(pipeline.stages) for pipeline in choice.plan.pipelines)
        if not choice.short:
            return f"the {wanted} stages asked for are possible now"
        if fewest > min(active.num_stages()):
            return f"{fewest} of the {wanted} stages asked for are possible now"
    return None


def strays(entry: ModelEntry, present: Predicted, choice: Choice) -> str | None:
    """What the present plan misses of what was asked for, if the plan that was chosen has it."""
    rate = entry.options.rate_per_s
    if (
        rate is not None
        and present.throughput_per_s < rate * (1.0 - STRAY_RATIO)
        and not misses_rate(entry, choice.plan.predicted)
    ):
        return f"the {rate:g} jobs/s asked for are possible now"
    keep = _keep_input(entry)
    if keep is not None:
        inside = done_ratios(entry.profile)[keep.depth(entry.profile)]
        if present.exposure_ratio > 1.0 - inside + GRAIN:
            return f"the present plan lets more out of zone {keep.zone!r} than it may"
    limits = limits_of(entry)
    if _relaxed(limits).broken(present):
        return f"the present plan {limits.breach(present)}"
    return None


def no_nodes(entry: ModelEntry, alive: Sequence[Node]) -> str:
    """Why there is nobody to plan for."""
    if not alive:
        return "no node is here; start one with `amp4ec agent`"
    runtimes = " or ".join(repr(variant.runtime) for variant in entry.variants())
    return (
        f"of {len(alive)} node(s) none can load it: each lacks the runtime {runtimes}, is cordoned, "
        "or failed to load the model a moment ago"
    )


def _wishes(entry: ModelEntry, nodes: Sequence[NodeProfile], zones: Zones) -> Iterator[PlanRequest]:
    """What was asked for, and then ever less of it."""
    wanted, most = entry.options.min_stages or 1, entry.options.max_stages
    rate = entry.options.rate_per_s
    # What exceeds blocks or nodes need not be tried: somebody may ask for a billion stages.
    possible = max(min(wanted, len(entry.profile.blocks), len(nodes)), 1)
    for fewest in range(possible, 0, -1):
        request = _request(entry, nodes, zones, fewest, most)
        if rate is not None and request.objective is not Objective.THROUGHPUT:
            least = max(request.limits.min_throughput_per_s or 0.0, rate)
            limits = dataclasses.replace(request.limits, min_throughput_per_s=least)
            yield dataclasses.replace(request, limits=limits)
            request = dataclasses.replace(request, objective=Objective.THROUGHPUT)
        yield request


def _request(
    entry: ModelEntry, nodes: Sequence[NodeProfile], zones: Zones, fewest: int, most: int | None
) -> PlanRequest:
    keep = _keep_input(entry)
    return PlanRequest(
        profile=entry.profile,
        nodes=tuple(nodes),
        objective=parse_goal(entry.options.objective),
        strategy=strategy_of(entry),
        min_stages=fewest,
        max_stages=most,
        # Jobs come in by way of the orchestrator.
        input_zone=zones.orchestrator if keep is None else keep.zone,
        limits=limits_of(entry),
        keep_input=keep,
        broker_zone=zones.broker,
        orchestrator_zone=zones.orchestrator,
        thorough=False,
        max_error=entry.options.max_error,
        compression=entry.options.compression,
    )


def as_asked(entry: ModelEntry, nodes: Sequence[NodeProfile], zones: Zones) -> PlanRequest:
    """The question for the stages, limits and zones that were asked for, and nothing less.

    Raises:
        ConfigurationError: see `check`.
    """
    return _request(entry, nodes, zones, entry.options.min_stages or 1, entry.options.max_stages)


def _relaxed(limits: Limits) -> Limits:
    """A little wider, so that noise about a limit moves nothing."""
    wider = {
        field.name: None
        if (value := getattr(limits, field.name)) is None
        else value * (1.0 - STRAY_RATIO if field.name.startswith("min_") else 1.0 + STRAY_RATIO)
        for field in dataclasses.fields(limits)
    }
    ratio = wider["max_exposure_ratio"]
    return Limits(**wider | {"max_exposure_ratio": None if ratio is None else min(ratio, 1.0)})


def _keep_input(entry: ModelEntry) -> KeepInput | None:
    text = entry.options.keep_input_in
    return None if text is None else parse_keep_input(text)

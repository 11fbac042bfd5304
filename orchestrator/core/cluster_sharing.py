"""What the models of a cluster leave to each other: offers, and what one's move does to the others."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.core import replan, sharing
from orchestrator.core.cluster_context import Context
from orchestrator.core.footprint import footprints
from orchestrator.core.generation import Generation
from orchestrator.core.hysteresis import gain_ratio
from orchestrator.core.plan import Plan, Predicted
from orchestrator.core.served import Served
from orchestrator.core.sharing import Offers, Use
from shared.errors import ConfigurationError, PlanError
from shared.profile import NodeProfile

MOST_NAMED = 6
"""Of those who are in the way, in an error."""


def offered(context: Context, served: Served) -> Offers:
    """The living nodes as a model may plan with them: what it holds itself is free for it."""
    held = footprints(_generations_beside(context, served))
    uses = sharing.uses_of(_beside(context, served))
    return sharing.offers(served.entry, _whole(context, served), uses, held)


def as_it_runs(context: Context, served: Served, offers: Offers) -> tuple[NodeProfile, ...]:
    """The living nodes as what runs may count on them: what it holds is its own.

    Others that move hold twice for a moment, or have all of a node's CPU promised: neither unloads what is
    there. A node that has less itself, or is gone, does.
    """
    active = served.active
    if active is None:
        return offers.profiles
    nodes = {profile.name: profile for profile in offers.profiles}
    own = footprints([active])
    for whole in _whole(context, served):
        if whole.name in own:
            share = active.reserved.get(whole.name, sharing.LEAST_SHARE)
            part = nodes.get(whole.name) or sharing.part_of(active.entry, whole, share, None)
            nodes[whole.name] = sharing.holding(part, whole, own[whole.name].bytes)
    return tuple(nodes.values())


def why_not(context: Context, served: Served, error: str) -> str:
    """Why a model cannot be had, with who is in the way if it could be had of nodes of its own.

    `error` is the planner's; empty when there was no node to plan with.
    """
    holders = sharing.cpu_holders(sharing.uses_of(_beside(context, served)))
    if error:
        holders = [*sharing.memory_holders(_generations_beside(context, served)), *holders]
    whole = list(_whole(context, served))
    if holders and whole:
        try:
            replan.choose(served.as_sent(served.entry), whole, context.settings.zones)
        except (PlanError, ConfigurationError):
            pass  # not with nodes of its own either
        else:
            more = len(holders) - MOST_NAMED
            named = [*holders[:MOST_NAMED], *([f"{more} more"] if more > 0 else [])]
            return f"{error or 'no node has CPU left to offer'} ({', '.join(named)})"
    return error or replan.no_nodes(served.entry, context.members.alive())


def effect_on_others(context: Context, served: Served, plan: Plan, offers: Offers) -> float:
    """What becomes of the other models' figures if a plan is taken, each by its own goal, multiplied.

    1 where nobody notices, 0.5 where somebody is left with half, 0 where somebody could not run any more.
    """
    mine = Use(
        served.name,
        {stage.node for pipeline in plan.pipelines for stage in pipeline.stages},
        None
        if served.entry.options.rate_per_s is None
        else sharing.reserve(served.entry.options.rate_per_s, plan.pipelines, offers.shares),
    )
    touched = set(mine.nodes)
    if served.newest is not None:
        touched |= served.newest.nodes()
    uses = sharing.uses_of(context.models.values())
    moved = [*(use for use in uses if use.model != served.name), mine]
    effect = 1.0
    for other in _beside(context, served):
        if other.newest is not None and other.newest.nodes() & touched:
            effect *= _effect(context, other, uses, moved)
    return effect


def _effect(context: Context, other: Served, before: list[Use], after: list[Use]) -> float:
    newest = other.newest
    assert newest is not None
    whole = [profile for profile in _whole(context, other) if profile.name in newest.nodes()]
    figures: list[Predicted] = []
    for uses in (before, after):
        beside = [use for use in uses if use.model != other.name]
        nodes = sharing.offers(newest.entry, whole, beside, {}).profiles
        try:
            entry = other.as_sent(newest.entry)
            priced = replan.price(entry, nodes, newest.pipelines(), context.settings.zones)
        except PlanError:
            # Before: it is in trouble as it is, and this is no reason to leave all as it is.
            return 0.0 if figures else 1.0
        figures.append(priced.predicted)
    return 1.0 + gain_ratio(figures[0], figures[1], newest.plan.objective)


def _beside(context: Context, served: Served) -> Iterable[Served]:
    return (other for other in context.models.values() if other.name != served.name)


def _generations_beside(context: Context, served: Served) -> Iterable[Generation]:
    for other in _beside(context, served):
        yield from other.all_generations()
    # Our own will be gone: what is planned now waits for that.
    yield from (g for g in context.draining if g.entry.name != served.name)


def _whole(context: Context, served: Served) -> Iterable[NodeProfile]:
    return (p for node in context.members.alive() if (p := node.profile(served.entry)) is not None)

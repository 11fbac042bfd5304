"""When to plan a model again, and how a new plan is set on its way: beside the old one, or after it."""

from __future__ import annotations

from orchestrator.core import replan
from orchestrator.core.cluster_context import Context
from orchestrator.core.generation import Generation, describe
from orchestrator.core.plan import Plan
from orchestrator.core.served import Again, Served
from shared.errors import ConfigurationError, PlanError
from shared.profile import NodeProfile

MOST_DOUBLINGS = 5
"""Of the cool-down, when switch after switch is made for measured speeds alone."""


def consider_all(context: Context, now: float, cause: str) -> None:
    """Nodes came, went or changed: look at each model again."""
    for served in context.models.values():
        served.drifts = 0
        consider(context, now, served, cause)


def consider_measured(context: Context, now: float, cause: str) -> None:
    """Nodes measured their speed. Nobody switches models about for that while they load or cool down."""
    for served in context.models.values():
        if not served.loads and not cools_down(context, now, served):
            consider(context, now, served, cause)


def consider(
    context: Context, now: float, served: Served, cause: str, threshold: float | None = None
) -> str | None:
    """Whether a better plan exists, and if so set it on its way; says why there is no plan at all.

    While a plan loads it is left alone, and the model considered again after that. `threshold` is the
    least gain that is worth a switch, if not that of the settings.
    """
    least = context.settings.gain_threshold if threshold is None else threshold
    if served.loads:
        waits = served.again
        served.again = Again(cause, least if waits is None else min(least, waits.threshold))
        return None
    served.considered, served.again = now, None
    entry = served.entry
    everyone = _profiles(context, served)
    nodes = [node for node in everyone if served.blocked.get(node.name, now) <= now]
    served.usable, served.present = len(nodes), len(context.members.alive())
    wanted = entry.options.min_stages or 1
    if not served.tried and len(nodes) < wanted > 1:
        waited = now - served.asked
        if waited < context.settings.settle_s:
            served.reason = f"waits for {wanted} nodes, {len(nodes)} are here"
            return None
    try:
        choice = replan.choose(entry, nodes)
    except (PlanError, ConfigurationError) as error:
        why = str(error) if nodes else replan.no_nodes(entry, context.members.alive())
        _no_plan(context, now, served, why)
        return why
    served.chosen, served.free_choice = choice.plan, replan.free_choice(entry, nodes)
    active = served.active
    if active is not None and not served.replaces and active.same_placement(choice.plan):
        active.reprice(everyone)
        return None
    worth = replan.worth(served, choice, everyone, least)
    if worth is not None:
        begin(context, now, served, choice.plan, f"{cause}; {worth}" if cause else worth)
    return None


def begin(context: Context, now: float, served: Served, plan: Plan, cause: str) -> None:
    """Give a plan a number and have it loaded as soon as there is room for it."""
    number = context.next_number(served.name)
    served.held = Generation(served.entry, number, plan, now, cause)
    served.tried, served.failed = True, False
    if served.active is None:
        served.reason = cause
    context.tell(
        "replanned",
        f"{served.name} generation {number}: {describe(plan.pipelines)} because {cause}",
        model=served.name,
        generation=number,
        reason=cause,
    )
    make_room(context, now, served)


def make_room(context: Context, now: float, served: Served) -> None:
    """Load the generation that is held back once its nodes have the memory for it.

    What drains is waited for. Where the active generation is in the way it is drained first: break
    before make, said on `event`.
    """
    held, active = served.held, served.active
    if held is None:
        return
    if not all(context.members.is_alive(node) for node in held.nodes()):
        served.held = None
        consider(context, now, served, "a node was lost before it could load")
        return
    nodes = context.members.nodes
    crowded = [] if active is None else replan.crowded(held, [active], nodes)
    if active is not None and crowded:
        served.active = None
        served.reason = held.cause
        context.drain(active)
        context.tell(
            "break_before_make",
            f"{served.name} generations {active.number} and {held.number} do not fit together on "
            f"{', '.join(crowded)}: the old one is drained first, requests wait",
            model=served.name,
            generation=held.number,
        )
        return
    beside = context.draining if active is None else [*context.draining, active]
    if replan.crowded(held, beside, nodes):
        return
    held.began = now
    served.pending, served.held = held, None


def tick(context: Context, now: float, served: Served) -> None:
    """Plan again what has no plan, and what runs on figures that may have changed."""
    if served.loads:
        return
    settings, age = context.settings, now - served.considered
    if served.active is None or served.replaces:
        if age >= settings.retry_s:
            consider(context, now, served, "")
    elif age >= settings.drift_interval_s and not cools_down(context, now, served):
        consider(context, now, served, "the measured speeds changed")
        served.drifts += served.loads


def cools_down(context: Context, now: float, served: Served) -> bool:
    """Whether the last switch was too short a time ago for one that only pays."""
    doublings = min(served.drifts, MOST_DOUBLINGS)
    return now - served.switched < context.settings.cool_down_s * (1 << doublings)


def _profiles(context: Context, served: Served) -> list[NodeProfile]:
    return [
        profile
        for node in context.members.alive()
        if (profile := node.profile(served.entry)) is not None
    ]


def _no_plan(context: Context, now: float, served: Served, why: str) -> None:
    if served.replaces:
        served.reason = f"the model served before stays: {why}"
    elif served.active is None:
        blocked = any(
            until > now and context.members.is_alive(name) for name, until in served.blocked.items()
        )
        # A load that failed says more than that nobody is left to try it.
        if not (served.failed and blocked):
            served.failed, served.reason = False, why

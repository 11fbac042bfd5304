"""When to plan a model again, and how a new plan is set on its way: beside the old one, or after it.

Models share the nodes. Each is planned for what the others leave (`sharing`), those first that asked for a
rate, then those that were asked for earlier. One that moves has its neighbours considered. Where nothing
forces a switch it has to pay for all together: the gains and losses of all models, multiplied, must come to
the threshold. So no model gains what another loses, and since each such switch brings the product up, they
come to an end.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

from orchestrator.core import cluster_sharing, replan, sharing
from orchestrator.core.cluster_context import Context
from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.footprint import crowded
from orchestrator.core.generation import Generation, describe
from orchestrator.core.hysteresis import gain_ratio
from orchestrator.core.plan import Plan
from orchestrator.core.runtimes import better
from orchestrator.core.served import Again, Served
from orchestrator.core.sharing import Offers
from shared.errors import ConfigurationError, PlanError
from shared.profile import NodeProfile

MOST_DOUBLINGS = 5
"""Of the cool-down, when switch after switch is made for measured speeds alone."""
NOTICED = 0.01
"""What others gain or lose by a switch is said when it is more than this."""


def consider_all(context: Context, now: float, cause: str) -> None:
    """Nodes came, went or changed: look at each model again."""
    for served in context.in_order():
        served.drifts = 0
        consider(context, now, served, cause)


def consider_measured(context: Context, now: float, cause: str) -> None:
    """Nodes measured their speed. Nobody switches models about for that while they load or cool down."""
    for served in context.in_order():
        if not served.loads and not cools_down(context, now, served):
            consider(context, now, served, cause)


def consider_neighbours(context: Context, now: float) -> None:
    """Models took or left room: look at the others, those that have none at once, unless they cool down."""
    moved, context.moved = context.moved, {}
    if context.restoring:
        return  # what is taken over was there before
    for served in context.in_order():
        causes = [cause for model, cause in sorted(moved.items()) if model != served.name]
        waits = served.active is None or served.replaces or served.loads
        if causes and (waits or not cools_down(context, now, served)):
            consider(context, now, served, "; ".join(causes), keep_runtime=True)


def consider_memory(context: Context, now: float, node: str, cause: str) -> None:
    """A node has less memory for us: plan anew what no longer fits, before it is killed there."""
    for served in context.in_order():
        active = served.active
        if active is None or node not in active.nodes():
            continue
        try:
            offers, zones = cluster_sharing.offered(context, served), context.settings.zones
            nodes = cluster_sharing.as_it_runs(context, served, offers)
            replan.price(served.as_sent(active.entry), nodes, active.pipelines(), zones)
        except PlanError as error:
            context.tell(
                "memory_short",
                f"{served.name} generation {active.number}: {cause}: {error}",
                node=node,
                model=served.name,
                generation=active.number,
                reason=str(error),
            )
            consider(context, now, served, cause)


@dataclass(frozen=True, slots=True)
class _Worth:
    """Why to switch, and whether at once: what measurements alone say may pass again."""

    text: str
    at_once: bool


def consider(
    context: Context,
    now: float,
    served: Served,
    cause: str,
    threshold: float | None = None,
    *,
    looks: float = 1,
    keep_runtime: bool = False,
) -> str | None:
    """Whether a better plan exists, and if so set it on its way; says why there is no plan at all.

    While a plan loads it is left alone, and the model considered again after that. `threshold` is the
    least gain that is worth a switch, if not that of the settings; `looks` at how many looks in a row it has
    to be worth it, this one included. `keep_runtime`: what runs is not given up for another runtime.
    """
    least = context.settings.gain_threshold if threshold is None else threshold
    if served.loads or context.restoring:
        served.reason = served.reason or cause
        waits = served.again
        served.again = Again(cause, least if waits is None else min(least, waits.threshold))
        return None
    served.considered, served.again = now, None
    _forget_runtime(served)
    entries = served.entry.variants()
    if keep_runtime and served.active is not None:
        entries = entries[:1]
    everyone = [_offered(context, now, served, entry) for entry in entries]
    nodes = max((each.nodes for each in everyone), key=len)
    served.usable, served.present = len(nodes), len(context.members.alive())
    wanted = served.entry.options.min_stages or 1
    if not served.tried and len(nodes) < wanted > 1:
        waited = now - served.asked
        if waited < context.settings.settle_s:
            served.reason = f"waits for {wanted} nodes, {len(nodes)} are here"
            return None
    try:
        found = _best_of_sizes(context, served, everyone)
    except (PlanError, ConfigurationError) as error:
        why = cluster_sharing.why_not(context, served, str(error) if nodes else "")
        served.stuck = why
        _no_plan(context, now, served, why)
        return why
    served.stuck = ""
    zones, choice = context.settings.zones, found.choice
    served.usable = len(found.nodes)
    served.chosen = choice.plan
    served.free_choice = replan.free_choice(served.as_sent(found.entry), found.nodes, zones)
    active, stays = served.active, found.entry is served.entry
    if active is not None and stays and not served.replaces and active.same_placement(choice.plan):
        served.looks = 0
        reprice(context, active, found.offers)
        return None
    worth = _worth(context, served, found, everyone[0].offers, least)
    served.looks = 0 if worth is None else served.looks + 1
    if worth is None or not (worth.at_once or served.looks >= looks):
        assert active is not None
        reprice(context, active, everyone[0].offers)
    else:
        served.looks = 0
        said = f"{cause}; {worth.text}" if cause else worth.text
        if not stays:
            said += f", with {found.entry.runtime} in the place of {served.entry.runtime}"
            _change_runtime(served, found.entry)
        begin(context, now, served, choice.plan, said, offers=found.offers)
    return None


def _may_hold(context: Context, served: Served, node: str) -> bool:
    """Whether a plan may use a node: one that is cordoned only for what it holds already."""
    cordon = context.cordons.get(node)
    if cordon is None:
        return True
    active = served.active
    return not cordon.drain and active is not None and node in active.nodes()


def _change_runtime(served: Served, entry: ModelEntry) -> None:
    """To be loaded; until it is, what runs stays, and comes back if that fails."""
    if served.active is not None and not served.replaces:
        served.before = served.active.entry
    served.entry = entry


def _forget_runtime(served: Served) -> None:
    """A change of runtime that did not come about: what runs is what was asked for."""
    active = served.active
    if active is not None and served.replaces and active.entry in served.entry.variants():
        served.entry, served.before = active.entry, None


@dataclass(frozen=True, slots=True)
class _Offered:
    """A model with one runtime, and the nodes for it: all that live, and those that it may be loaded on."""

    entry: ModelEntry
    offers: Offers
    nodes: list[NodeProfile]


@dataclass(frozen=True, slots=True)
class _Found:
    """The best plan, with the runtime that it is for, and the nodes that it was chosen from."""

    entry: ModelEntry
    offers: Offers
    choice: replan.Choice
    nodes: list[NodeProfile]


def _offered(context: Context, now: float, served: Served, entry: ModelEntry) -> _Offered:
    offers = cluster_sharing.offered(context, Served(entry, asked=served.asked))
    nodes = [
        node
        for node in offers.profiles
        if served.blocked.get(node.name, now) <= now and _may_hold(context, served, node.name)
    ]
    return _Offered(entry, offers, nodes)


def _best_of_sizes(context: Context, served: Served, everyone: list[_Offered]) -> _Found:
    """The best plan for jobs of the size that comes; where none fits and nothing runs, of the usual size.

    Of a model that nothing fits for no job is ever sent, so that none would show another size.

    Raises:
        PlanError, ConfigurationError: as of `_best`.
    """
    try:
        return _best(context, served, everyone)
    except PlanError:
        if served.active is not None or not served.inputs.forget():
            raise
    return _best(context, served, everyone)


def _best(context: Context, served: Served, everyone: list[_Offered]) -> _Found:
    """The best plan with any of the runtimes; of equal ones with the first, which is that of now.

    Raises:
        PlanError: no plan fits with any of them; the error is the first one's that has nodes.
        ConfigurationError: the options make no sense.
    """
    best: _Found | None = None
    error: PlanError | None = None
    for each in [offered for offered in everyone if offered.nodes] or everyone:
        try:
            choice, nodes = _choose(context, served.as_sent(each.entry), each.nodes)
        except PlanError as reason:
            error = error or reason
            continue
        if best is None or better(each.entry, choice, best.choice):
            best = _Found(each.entry, each.offers, choice, nodes)
    if best is None:
        assert error is not None
        raise error
    return best


def _choose(
    context: Context, entry: ModelEntry, nodes: list[NodeProfile]
) -> tuple[replan.Choice, list[NodeProfile]]:
    """The best plan without nodes that come and go, unless none fits without them; and its nodes.

    Raises:
        PlanError: no plan fits.
        ConfigurationError: the options make no sense.
    """
    zones = context.settings.zones
    steady = [node for node in nodes if not context.members.left_out(node.name)]
    if len(steady) < len(nodes):
        with contextlib.suppress(PlanError):
            return replan.choose(entry, steady, zones), steady
    return replan.choose(entry, nodes, zones), nodes


def reprice(context: Context, generation: Generation, offers: Offers) -> None:
    """Take the figures of what runs, and what is reserved for it, from the nodes of now.

    They stay where it cannot be priced.
    """
    entry = generation.entry
    served = context.models.get(entry.name)
    seen = entry if served is None else served.as_sent(entry)
    try:
        priced = replan.price(seen, offers.profiles, generation.pipelines(), context.settings.zones)
    except PlanError:
        return
    generation.reprice(priced)
    rate = entry.options.rate_per_s
    generation.reserved = sharing.reserve(rate, priced.pipelines, offers.shares)


def _worth(
    context: Context, served: Served, found: _Found, own: Offers, least: float
) -> _Worth | None:
    """Why to switch from what runs to the plan that was found, or None to stay.

    `own` are the nodes as offered to what runs, all that live: one on which a load failed a moment ago may
    well hold it.
    """
    choice, offers = found.choice, found.offers
    necessity = replan.necessity(served, choice)
    if necessity is not None:
        return _Worth(necessity, at_once=True)
    active, plan = served.active, choice.plan
    assert active is not None
    leaves = sorted(n for n in active.nodes() if (c := context.cordons.get(n)) and c.drain)
    if leaves:
        return _Worth(f"nothing shall stay on {', '.join(leaves)}", at_once=True)
    try:
        nodes = cluster_sharing.as_it_runs(context, served, own)
        present = replan.price(
            served.as_sent(served.entry), nodes, active.pipelines(), context.settings.zones
        ).predicted
    except PlanError as error:
        return _Worth(f"the present plan cannot run: {error}", at_once=True)
    strays = replan.strays(served.entry, present, choice)
    if strays is not None:
        return _Worth(strays, at_once=False)
    gain = gain_ratio(present, plan.predicted, plan.objective, plan.yardstick)
    if gain < 0.0:
        return None  # the best that a bounded search or a strategy of the paper has found
    others = cluster_sharing.effect_on_others(context, served, plan, offers)
    if not (1.0 + gain) * others >= 1.0 + least:
        return None
    said = f"predicted gain {gain:.0%}"
    if abs(others - 1.0) > NOTICED:
        said += f", to the other models {others - 1.0:+.0%}"
    return _Worth(said, at_once=False)


def begin(
    context: Context, now: float, served: Served, plan: Plan, cause: str, *, offers: Offers
) -> None:
    """Give a plan a number and have it loaded as soon as there is room for it."""
    number = context.next_number(served.name)
    held = served.held = Generation(served.entry, number, plan, now, cause)
    held.reserved = sharing.reserve(served.entry.options.rate_per_s, plan.pipelines, offers.shares)
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
        held.fate = "a node was lost before it could load"
        served.held = None
        consider(context, now, served, "a node was lost before it could load")
        return
    profiles = [
        profile
        for name in sorted(held.nodes())
        if (profile := context.members.nodes[name].profile(held.entry)) is not None
    ]
    others = [other for other in context.models.values() if other is not served]
    stays = [generation for other in others if (generation := other.stays) is not None]
    if crowded(held, stays, profiles):
        # A node has less than it had when this was planned.
        held.fate = "the room that was planned with is gone"
        served.held = None
        consider(context, now, served, "the room that was planned with is gone")
        return
    there = [*context.draining, *(g for other in others for g in other.generations())]
    if crowded(held, there, profiles):
        return
    in_the_way = [] if active is None else crowded(held, [*stays, active], profiles)
    if active is not None and in_the_way:
        served.active = None
        served.reason = held.cause
        context.drain(active)
        context.tell(
            "break_before_make",
            f"{served.name} generations {active.number} and {held.number} do not fit together on "
            f"{', '.join(in_the_way)}: the old one is drained first, requests wait",
            model=served.name,
            generation=held.number,
        )
        return
    if active is not None and crowded(held, [*there, active], profiles):
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
    elif age >= settings.drift_interval_s:
        # While the last switch cools down we look, and do nothing.
        looks = math.inf if cools_down(context, now, served) else settings.drift_looks
        cause = "what is measured has changed"
        consider(context, now, served, cause, looks=looks, keep_runtime=True)
        served.drifts += served.loads


def cools_down(context: Context, now: float, served: Served) -> bool:
    """Whether the last switch was too short a time ago for one that only pays."""
    doublings = min(served.drifts, MOST_DOUBLINGS)
    return now - served.switched < context.settings.cool_down_s * (1 << doublings)


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

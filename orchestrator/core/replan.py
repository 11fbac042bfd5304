"""Whether to change what runs: the best plan for the nodes of now, and if it is worth a switch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.cost import HEADROOM
from orchestrator.core.evaluate import evaluate
from orchestrator.core.generation import Generation
from orchestrator.core.hysteresis import gain_ratio
from orchestrator.core.nodes import Node
from orchestrator.core.plan import Objective, Plan, PlanRequest, Strategy
from orchestrator.core.planner import plan as find_plan
from orchestrator.core.served import Served, misses_stages
from shared.errors import ConfigurationError, PlanError
from shared.profile import NodeProfile


@dataclass(frozen=True, slots=True)
class Choice:
    """The planner's answer; `short` when it has fewer stages than were asked for."""

    plan: Plan
    short: bool


def check(entry: ModelEntry) -> None:
    """Refuse options that no cluster could satisfy.

    Raises:
        ConfigurationError: they make no sense.
    """
    _request(entry, (), entry.options.min_stages or 1, entry.options.max_stages)


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


def choose(entry: ModelEntry, nodes: Sequence[NodeProfile]) -> Choice:
    """The best plan with the stages asked for, else with as many as there can be.

    After a loss a model is served with fewer stages rather than not at all.

    Raises:
        PlanError: no plan fits, with any number of stages.
        ConfigurationError: see `check`.
    """
    check(entry)
    wanted, most = entry.options.min_stages or 1, entry.options.max_stages
    # What exceeds blocks or nodes need not be tried: somebody may ask for a billion stages.
    possible = min(wanted, len(entry.profile.blocks), len(nodes))
    for fewest in range(possible, 1, -1):
        try:
            return Choice(find_plan(_request(entry, nodes, fewest, most)), short=fewest < wanted)
        except PlanError:
            continue
    return Choice(find_plan(_request(entry, nodes, 1, most)), short=wanted > 1)


def free_choice(entry: ModelEntry, nodes: Sequence[NodeProfile]) -> Plan | None:
    """What would be chosen if no number of stages had been asked for; None when none was.

    Of nodes for which `choose` found a plan: that one is then free to be chosen too.
    """
    if entry.options.min_stages is None and entry.options.max_stages is None:
        return None
    return find_plan(_request(entry, nodes, 1, None))


def worth(
    served: Served, choice: Choice, nodes: Sequence[NodeProfile], threshold: float
) -> str | None:
    """Why to switch to the plan that was chosen, or None to stay with the active one.

    A switch that the plan in force makes necessary needs no gain; any other needs `threshold`. `nodes`
    are all that live: one on which a load failed a moment ago may well hold what runs.
    """
    active, entry = served.active, served.entry
    if active is None:
        return "nothing runs any more" if served.ran else "nothing runs yet"
    if served.replaces:
        return "it replaces the model served before"
    if misses_stages(active):
        wanted = entry.options.min_stages or 1
        fewest = min(len(pipeline.stages) for pipeline in choice.plan.pipelines)
        if not choice.short:
            return f"the {wanted} stages asked for are possible now"
        if fewest > min(active.num_stages()):
            return f"{fewest} of the {wanted} stages asked for are possible now"
    try:
        present = evaluate(entry.profile, nodes, active.pipelines())
    except PlanError as error:
        return f"the present plan cannot run: {error}"
    gain = gain_ratio(present.predicted, choice.plan.predicted, choice.plan.objective)
    return f"predicted gain {gain:.0%}" if gain >= threshold else None


def crowded(
    candidate: Generation, others: Iterable[Generation], nodes: dict[str, Node]
) -> list[str]:
    """Nodes whose memory cannot hold a candidate beside the others, by name."""
    together = [candidate, *others]
    part, whole = HEADROOM
    names = []
    for name in sorted(candidate.nodes()):
        hardware = nodes[name].state.hardware
        if hardware is not None and sum(1 for g in together if name in g.nodes()) > 1:
            limit = hardware.memory_bytes * part // whole
            if bytes_together(together, name) > limit:
                names.append(name)
    return names


def bytes_together(generations: Iterable[Generation], node: str) -> int:
    """Bytes that generations need on a node at once.

    The runtime is there once, and so are the weights of a block that several of them hold.
    """
    weights: dict[tuple[str, int], int] = {}
    runtimes: dict[str, int] = {}
    rest = 0
    for generation in generations:
        entry = generation.entry
        for _, _, stage in generation.places_on(node):
            blocks = entry.profile.blocks[slice(*stage.blocks)]
            weights |= {(entry.manifest, block.index): block.weight_bytes for block in blocks}
            runtimes[entry.runtime] = max(
                runtimes.get(entry.runtime, 0), entry.profile.runtime_bytes
            )
            own = sum(block.weight_bytes for block in blocks) + entry.profile.runtime_bytes
            rest += max(stage.memory_bytes - own, 0)
    return rest + sum(weights.values()) + sum(runtimes.values())


def no_nodes(entry: ModelEntry, alive: Sequence[Node]) -> str:
    """Why there is nobody to plan for."""
    if not alive:
        return "no node is here; start one with `amp4ec agent`"
    return (
        f"of {len(alive)} node(s) none can load it: each lacks the runtime {entry.runtime!r} "
        "or failed to load the model a moment ago"
    )


def _request(
    entry: ModelEntry, nodes: Sequence[NodeProfile], fewest: int, most: int | None
) -> PlanRequest:
    return PlanRequest(
        profile=entry.profile,
        nodes=tuple(nodes),
        objective=Objective(entry.options.objective),
        strategy=strategy_of(entry),
        min_stages=fewest,
        max_stages=most,
    )

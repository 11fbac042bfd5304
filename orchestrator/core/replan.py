"""Whether to change what runs: the best plan for the nodes of now, and if it is worth a switch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.evaluate import evaluate
from orchestrator.core.generation import Generation
from orchestrator.core.hysteresis import gain_ratio
from orchestrator.core.nodes import Node
from orchestrator.core.plan import Objective, Plan, PlanRequest, Strategy
from orchestrator.core.planner import plan as find_plan
from orchestrator.core.served import Served
from shared.errors import PlanError
from shared.profile import NodeProfile

MEMORY_SHARE = 0.9
"""As in the cost model: 10 % of a node's memory stay free."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The planner's answer; `short` when it has fewer stages than were asked for."""

    plan: Plan
    short: bool


def request(
    entry: ModelEntry, nodes: Sequence[NodeProfile], fewest: int, most: int | None
) -> PlanRequest:
    """The question that a model's options ask of the planner."""
    return PlanRequest(
        profile=entry.profile,
        nodes=tuple(nodes),
        objective=Objective(entry.options.objective),
        strategy=Strategy(entry.options.strategy),
        min_stages=fewest,
        max_stages=most,
    )


def choose(entry: ModelEntry, nodes: Sequence[NodeProfile]) -> Choice:
    """The best plan with the stages asked for, else with as many as there can be.

    After a loss a model is served with fewer stages rather than not at all.

    Raises:
        PlanError: no plan fits, with any number of stages.
    """
    wanted = entry.options.min_stages or 1
    for fewest in range(wanted, 1, -1):
        try:
            plan = find_plan(request(entry, nodes, fewest, entry.options.max_stages))
        except PlanError:
            continue
        return Choice(plan, short=fewest < wanted)
    return Choice(find_plan(request(entry, nodes, 1, entry.options.max_stages)), short=wanted > 1)


def free_choice(entry: ModelEntry, nodes: Sequence[NodeProfile]) -> Plan | None:
    """What would be chosen if no number of stages had been asked for; None when none was."""
    if entry.options.min_stages is None and entry.options.max_stages is None:
        return None
    try:
        return find_plan(request(entry, nodes, 1, None))
    except PlanError:
        return None


def misses_stages(entry: ModelEntry, generation: Generation) -> bool:
    """Whether a pipeline has fewer or more stages than were asked for."""
    low, high = entry.options.min_stages or 1, entry.options.max_stages
    return any(n < low or (high is not None and n > high) for n in generation.num_stages())


def worth(
    served: Served,
    choice: Choice,
    nodes: Sequence[NodeProfile],
    threshold: float,
) -> str | None:
    """Why to switch to the plan that was chosen, or None to stay with the active one.

    A switch that the plan in force makes necessary needs no gain; any other needs `threshold`.
    """
    active, entry = served.active, served.entry
    if active is None:
        return "nothing runs any more" if served.served_before else "nothing runs yet"
    if active.entry is not entry:
        return "it replaces the model served before"
    if not active.whole():
        return "a pipeline was lost"
    missed = misses_stages(entry, active)
    if missed and not choice.short:
        return f"the {entry.options.min_stages or 1} stages asked for are possible now"
    fewest = min(len(pipeline.stages) for pipeline in choice.plan.pipelines)
    if missed and fewest > min(active.num_stages()):
        return f"{fewest} of the {entry.options.min_stages} stages asked for are possible now"
    try:
        present = evaluate(entry.profile, nodes, active.plan.pipelines)
    except PlanError as error:
        return f"the present plan cannot run: {error}"
    gain = gain_ratio(present.predicted, choice.plan.predicted, choice.plan.objective)
    return f"predicted gain {gain:.0%}" if gain >= threshold else None


def crowded(active: Generation, candidate: Generation, nodes: dict[str, Node]) -> list[str]:
    """Nodes whose memory cannot hold both generations at once, by name.

    Weights that both use are counted twice: on the safe side.
    """
    names = []
    for name in sorted(active.nodes() & candidate.nodes()):
        hardware = nodes[name].state.hardware
        both = active.memory_on(name) + candidate.memory_on(name)
        both -= candidate.entry.profile.runtime_bytes  # the runtime is there once
        if hardware is not None and both > MEMORY_SHARE * hardware.memory_bytes:
            names.append(name)
    return names


def no_nodes(entry: ModelEntry, alive: Sequence[Node]) -> str:
    """Why there is nobody to plan for."""
    if not alive:
        return "no node is here; start one with `amp4ec agent`"
    return (
        f"of {len(alive)} node(s) none can load it: each lacks the runtime {entry.runtime!r} "
        "or failed to load the model a moment ago"
    )

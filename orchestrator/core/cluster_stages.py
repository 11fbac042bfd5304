"""What nodes and the dispatcher say about stages: ready, failed, gone, drained, measured."""

from __future__ import annotations

import math

from orchestrator.core.cluster_context import Context
from orchestrator.core.cluster_events import (
    ActivatePipeline,
    ModelEntry,
    ModelKnown,
    NodeReported,
    PipelineDrained,
    StageMeasured,
)
from orchestrator.core.cluster_planning import consider
from orchestrator.core.generation import Generation, describe
from orchestrator.core.micro_batch import MicroBatchLimits
from orchestrator.core.micro_batch_limits import limits_for
from orchestrator.core.plan import PipelinePlan
from orchestrator.core.served import Served
from orchestrator.core.speeds import stage_components
from orchestrator.core.stage_times import StageTimes
from shared.messages.stage import StageReport
from shared.profile import NodeProfile

StageKey = tuple[str, str, int, int]


def node_left(context: Context, name: str, *, crashed: bool) -> None:
    """A node is gone, `crashed` or otherwise: so is each pipeline that it was part of."""
    for generation in context.draining:
        _lose_on(context, generation, name, crashed=crashed)
    for served in context.models.values():
        if served.active is not None and _lose_on(context, served.active, name, crashed=crashed):
            _after_loss(served, f"node {name} is gone")
        if served.pending is not None and name in served.pending.nodes():
            served.pending.fate = f"node {name} is gone"
            served.pending = None


def reported(context: Context, event: NodeReported) -> None:
    """A node said how far each of its stages is."""
    report = event.report
    states = {(s.model, s.pipeline, s.generation, s.stage): s for s in report.stages}
    for generation in context.draining:
        _gone(context, generation, report.node, states)
    for served in context.models.values():
        _active_reported(context, event.now, served, report.node, states)
        _pending_reported(context, event.now, served, report.node, states)


def activate(context: Context, now: float, served: Served, generation: Generation) -> None:
    """Send jobs to a generation whose stages are all ready, and drain the one before it."""
    old = served.active
    served.active, served.pending = generation, None
    served.reason, served.switched, served.ran = generation.cause, now, True
    served.failed, served.before = False, None
    generation.activated = True
    for name in generation.nodes():
        if (node := context.members.nodes.get(name)) is not None:
            node.needs_disk_bytes.pop(served.name, None)
    context.moved[served.name] = f"{served.name} runs elsewhere than before"
    announce(context, served)
    for index, pipeline in generation.running():
        context.actions.append(
            ActivatePipeline(
                generation.entry,
                generation.names[index],
                generation.number,
                pipeline,
                1.0 / max(stage.period_s for stage in pipeline.stages),
                sum(s.compute_s + s.receive_s + s.send_s for s in pipeline.stages),
                _micro_batch(context, generation.entry, pipeline),
            )
        )
    if old is not None:
        context.drain(old)
    predicted = generation.plan.predicted
    context.tell(
        "pipeline_active",
        f"{served.name} generation {generation.number} is active after "
        f"{now - generation.decided:.1f} s: {describe(generation.pipelines())}; predicted "
        f"{predicted.throughput_per_s:.1f}/s, {predicted.latency_s * 1000:.0f} ms",
        model=served.name,
        generation=generation.number,
    )
    again, served.again = served.again, None
    if again is not None:
        consider(context, now, served, again.cause, again.threshold)


def _micro_batch(context: Context, entry: ModelEntry, pipeline: PipelinePlan) -> MicroBatchLimits:
    nodes: dict[str, NodeProfile] = {}
    for stage in pipeline.stages:
        node = context.members.nodes.get(stage.node)
        profile = None if node is None else node.profile(entry)
        if profile is not None:
            nodes[stage.node] = profile
    return limits_for(
        entry.profile,
        nodes,
        pipeline,
        wanted=entry.options.micro_batch,
        max_latency_s=entry.options.max_latency_s,
    )


def announce(context: Context, served: Served) -> None:
    """Let the dispatcher take jobs for what is asked for, if it does not yet."""
    if served.known is not served.entry:
        served.known = served.entry
        context.actions.append(ModelKnown(served.name, served.entry))


def load_failed(
    context: Context,
    now: float,
    served: Served,
    reasons: dict[str, str],
    needs_disk_bytes: int = 0,
) -> None:
    """A generation cannot be loaded by some nodes: try the others, else say so.

    Where a disk is full (`needs_disk_bytes` free would do) and the node tells what it has free, it is left
    out until it has that.
    """
    context.moved[served.name] = f"{served.name} made room"
    said = []
    for node, reason in sorted(reasons.items()):
        served.blocked[node] = now + context.settings.blocked_s
        if needs_disk_bytes:
            _disk_full(context, now, served, node, needs_disk_bytes)
        event = "disk_full" if needs_disk_bytes else "load_failed"
        text = f"{served.name} could not be loaded on {node}: {reason}"
        said.append(f"could not be loaded on {node}: {reason}")
        context.tell(event, text, node=node, model=served.name, reason=reason)
    why = "; ".join(said)
    if served.pending is not None:
        served.pending.fate = why
        served.pending = None
    if served.active is None:
        served.failed, served.reason = True, why
    consider(context, now, served, why)
    if not served.loads and not served.satisfied():
        context.finish_all(served, why)
        give_up_replacing(context, now, served, why)


def _disk_full(
    context: Context, now: float, served: Served, name: str, needs_disk_bytes: int
) -> None:
    node = context.members.nodes.get(name)
    if node is None:
        return
    if not node.needs_disk_bytes:
        node.disk_full_since = now
    node.needs_disk_bytes[served.name] = needs_disk_bytes
    if node.telemetry is not None and node.telemetry.disk_free_bytes is not None:
        served.blocked[name] = math.inf


def give_up_replacing(context: Context, now: float, served: Served, why: str) -> None:
    """What ran before goes on or comes back, as if nothing else had been asked for."""
    if served.before is None:
        return
    served.entry, served.before = served.before, None
    served.reason = f"what was to replace it {why}"
    # Who could not load that is not to be blamed for this.
    served.failed = False
    served.blocked.clear()
    consider(context, now, served, served.reason)


def load_timed_out(context: Context, now: float, served: Served) -> None:
    """Nodes that do not get a generation loaded in time are as good as failed."""
    limit, pending = context.settings.load_timeout_s, served.pending
    if pending is not None and now - max(pending.began, pending.progressed) > limit:
        slow = {node: f"not ready after {limit:.0f} s" for _, _, node in pending.unready()}
        load_failed(context, now, served, slow)


def drained(context: Context, event: PipelineDrained) -> None:
    """The last job left a pipeline: its stages may be unloaded."""
    for generation in context.draining:
        if (generation.entry.name, generation.number) == (event.model, event.generation):
            index = generation.index_of(event.pipeline)
            if index is not None and index not in generation.lost:
                generation.drained.add(index)


def forget_drained(context: Context) -> None:
    """Let go of the generations of which nothing runs any more."""
    for generation in [g for g in context.draining if g.dead()]:
        context.draining.remove(generation)
        name, number = generation.entry.name, generation.number
        how = "is drained and unloaded" if generation.drained else "is gone with its nodes"
        text = f"{name} generation {number} {how}"
        context.tell("generation_drained", text, model=name, generation=number)
        context.moved[name] = f"{name} made room"


def measured(context: Context, event: StageMeasured) -> None:
    """Correct what is thought of a node's speed by what its stage took."""
    served, node = context.models.get(event.model), context.members.nodes.get(event.node)
    running = [g for g in context.draining if g.entry.name == event.model]
    if served is not None and served.active is not None:
        running.append(served.active)
    generation = next((g for g in running if g.number == event.generation), None)
    index = None if generation is None else generation.index_of(event.pipeline)
    if node is None or generation is None or index is None:
        return
    place = next(
        (s for i, n, s in generation.places_on(event.node) if (i, n) == (index, event.stage)), None
    )
    hardware = node.state.hardware
    if place is None or hardware is None:
        return
    times = generation.times.setdefault((index, event.stage), StageTimes())
    window = times.gather(event.items, event.cpu_s, event.compute_s)
    if window is None:
        return
    entry = generation.entry
    node.contention.measured(event.now, window.cpu_s, window.wall_s, min(hardware.cpu, 1.0))
    sent = generation.plan.pipelines[index].compressions()
    components = stage_components(node.state, entry, place.blocks, sent)
    corrections = node.corrections_of(entry.runtime)
    expected_s = float(components @ corrections.multipliers(entry.name)) / node.cpu
    times.add(window, min(hardware.cpu, 1.0), float(components.sum()) / hardware.cpu, expected_s)
    if times.cpu_s is not None:
        # Not the time that passed: what neighbours take is `contention`, and passes with them. A thread
        # of a stage is one of several where the node has more CPUs than one.
        corrections.take(entry.name, components, times.cpu_s * max(hardware.cpu, 1.0))


def _pending_reported(
    context: Context, now: float, served: Served, node: str, states: dict[StageKey, StageReport]
) -> None:
    pending = served.pending
    if pending is None:
        return
    for index, number, _ in pending.places_on(node):
        report = states.get((served.name, pending.names[index], pending.number, number))
        if report is not None:
            before = pending.loads.get((index, number))
            pending.loads[index, number] = report
            if before is not None and report.here_bytes > before.here_bytes:
                pending.progressed = now  # it takes long, and goes on
        match None if report is None else report.state:
            case "ready":
                pending.ready.add((index, number))
            case "failed":
                assert report is not None
                why = report.reason or "no reason given"
                load_failed(context, now, served, {node: why}, report.needs_disk_bytes)
                return
            case _:
                pending.ready.discard((index, number))
    if not pending.unready():
        activate(context, now, served, pending)


def _active_reported(
    context: Context, now: float, served: Served, node: str, states: dict[StageKey, StageReport]
) -> None:
    active = served.active
    if active is not None and _gone(context, active, node, states):
        why = f"node {node} does not hold its stage any more"
        context.tell("stage_lost", f"{served.name}: {why}", node=node, model=served.name)
        _after_loss(served, why)
        consider(context, now, served, why)


def _gone(
    context: Context, generation: Generation, node: str, states: dict[StageKey, StageReport]
) -> bool:
    """Lose the pipelines of which a node's report says that it does not hold its stage."""
    lost = False
    for index, number, _ in list(generation.places_on(node)):
        place = (index, number)
        key = (generation.entry.name, generation.names[index], generation.number, number)
        report = states.get(key)
        if report is not None and report.state == "ready":
            generation.assumed.discard(place)
        elif report is None or report.state == "failed" or place in generation.assumed:
            context.lose(generation, index)
            lost = True
        # Else it is on its way, though it was ready before: a report delivered twice.
    return lost


def _lose_on(context: Context, generation: Generation, node: str, *, crashed: bool) -> bool:
    """Lose the pipelines that need a node; whether there were any."""
    indices = [index for index, _, _ in generation.places_on(node)]
    for index in indices:
        context.lose(generation, index, node if crashed else None)
    return bool(indices)


def _after_loss(served: Served, why: str) -> None:
    served.reason = why
    if served.active is not None and served.active.dead():
        served.active = None

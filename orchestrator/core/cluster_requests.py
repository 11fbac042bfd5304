"""What operators ask for, and what an earlier orchestrator had promised them."""

from __future__ import annotations

import dataclasses
import math

from orchestrator.core import cluster_sharing, model_view, replan
from orchestrator.core.cluster_context import Context
from orchestrator.core.cluster_events import (
    Finish,
    ModelEntry,
    ModelForgotten,
    ModelRestored,
    PublishModel,
    ReplanAsked,
    RestoreEnded,
    RoundingHurt,
    ServeAsked,
    StopAsked,
)
from orchestrator.core.cluster_planning import consider, reprice
from orchestrator.core.cluster_stages import activate, announce, give_up_replacing
from orchestrator.core.generation import Generation
from orchestrator.core.inputs_seen import InputsSeen
from orchestrator.core.plan import AUTO
from orchestrator.core.served import Served, Waiting
from shared.errors import ConfigurationError, ErrorCode


def serve(context: Context, event: ServeAsked) -> None:
    """Serve a model, or something else under its name; the same once more changes nothing."""
    entry, served = event.entry, context.models.get(event.entry.name)
    try:
        replan.check(entry, context.settings.zones)
    except ConfigurationError as error:
        finish = Finish(event.transaction, "serve", entry.name, str(error), ErrorCode.BAD_INPUT)
        context.finished.append(finish)
        return
    if served is not None:
        # The same once more, perhaps with a runtime that was chosen meanwhile.
        known = [served.entry] if served.active is None else [served.active.entry, served.entry]
        entry = next((each for each in known if each in entry.variants()), entry)
    if served is None:
        served = context.models[entry.name] = Served(entry, asked=event.now)
        announce(context, served)
    elif any(waiting.transaction == event.transaction for waiting in served.waiting):
        return  # the request was delivered twice
    elif served.entry != entry:
        context.finish_all(served, "something else was asked for under this name")
        _replace(served, entry, event.now)
        if served.active is None:
            announce(context, served)
    served.blocked.clear()
    served.drifts = 0
    served.waiting.append(Waiting(event.transaction, "serve", event.deadline))
    context.tell("model_asked", f"{entry.name} is to be served", model=entry.name)
    consider(context, event.now, served, "it was asked for")


def _replace(served: Served, entry: ModelEntry, now: float) -> None:
    if served.active is not None:
        served.before = None if served.active.entry is entry else served.active.entry
    if entry.manifest != served.entry.manifest:
        served.inputs = InputsSeen()
    served.entry, served.asked = entry, now
    for loading in (served.pending, served.held):
        if loading is not None:
            loading.fate = "something else was asked for under this name"
    served.pending = served.held = served.again = None
    served.tried = served.failed = False


def stop(context: Context, event: StopAsked) -> None:
    """Serve a model no more: new jobs are refused, those in its pipelines are finished."""
    served = context.models.pop(event.model, None)
    asked = Waiting(event.transaction, "stop", event.now)
    if served is None:
        names = ", ".join(sorted(context.models)) or "none"
        error = f"{event.model} is not served; served are: {names}"
        context.finish(event.model, asked, error, ErrorCode.UNKNOWN_MODEL)
        return
    if served.active is not None:
        context.drain(served.active)
    else:
        context.moved[event.model] = f"{event.model} made room"
    for loading in (served.pending, served.held):
        if loading is not None:
            loading.fate = "the model was stopped"
    for node in context.members.nodes.values():
        node.needs_disk_bytes.pop(event.model, None)
    context.actions.append(ModelForgotten(event.model))
    context.finish_all(served, "it was stopped")
    context.tell("model_stopped", f"{event.model} is not served any more", model=event.model)
    context.actions.append(PublishModel(event.model))
    context.finish(event.model, asked)


def rounding_hurt(context: Context, event: RoundingHurt) -> None:
    """Round no more between the stages of a model, until it is asked for anew."""
    served = context.models.get(event.model)
    if served is None or served.active is None or served.replaces:
        return
    if served.active.number != event.generation or served.active.entry.options.max_error == 0.0:
        return
    text = (
        f"{event.model}: rounding between stages changes answers by {event.error_ratio:.2g} of the largest"
        f" output, and {served.entry.options.max_error:g} was allowed: it is given up"
    )
    context.tell("rounding_stopped", text, model=event.model, generation=event.generation)
    options = dataclasses.replace(served.entry.options, max_error=0.0, compression=AUTO)
    _replace(served, served.entry.with_options(options), event.now)
    consider(context, event.now, served, "rounding between stages changed answers too much")


def replan_asked(context: Context, event: ReplanAsked) -> None:
    """Plan again with no hysteresis; what loads is waited for first."""
    served = context.models.get(event.model)
    asked = Waiting(event.transaction, "replan", event.now)
    if served is None:
        error = f"{event.model} is not served"
        context.finish(event.model, asked, error, ErrorCode.UNKNOWN_MODEL)
        return
    served.drifts = 0
    error_or_none = consider(context, event.now, served, "a new plan was asked for", 0.0)
    context.finish(event.model, asked, error_or_none)


def restored(context: Context, event: ModelRestored) -> None:
    """Go on with what an earlier orchestrator served, without loading anew what still runs."""
    entry, state = event.entry, event.state
    context.number_seen(entry.name, state.generation)
    if entry.name in context.models:
        return  # it was asked for again before we got here
    served = context.models[entry.name] = Served(entry, asked=event.now)
    announce(context, served)
    generation = model_view.generation_from(entry, state, event.now)
    cause = "the orchestrator started anew"
    if generation is None or state.state not in {"serving", "loading"}:
        consider(context, event.now, served, cause)
        return
    ran = state.state == "serving"
    served.tried = True  # its nodes are gone, not yet to come
    _take_stock(context, generation, ran=ran)
    if generation.dead() or (generation.lost and not ran):
        served.ran = ran
        consider(context, event.now, served, cause)
        return
    reprice(context, generation, cluster_sharing.offered(context, served))
    if generation.unready():
        served.pending, served.reason = generation, generation.cause
    else:
        activate(context, event.now, served, generation)
    # What the nodes were measured at is forgotten: no switch for a mere gain until it is known again.
    # But with a part of the plan lost, what is left has to be worth keeping.
    consider(context, event.now, served, cause, None if generation.lost else math.inf)


def restore_ended(context: Context, event: RestoreEnded) -> None:
    """All that was served is known: plan what was put off until one model's plan can see the others'."""
    context.restoring = False
    for served in context.in_order():
        again = served.again
        if again is not None and not served.loads:
            consider(context, event.now, served, again.cause, again.threshold)


def expire(context: Context, now: float, served: Served) -> None:
    """Answer those who have waited long enough."""
    late = [waiting for waiting in served.waiting if now >= waiting.deadline]
    if not late:
        return
    for waiting in late:
        served.waiting.remove(waiting)
        context.finish(served.name, waiting, _unmet(served))
    if not served.waiting and not served.loads:
        give_up_replacing(context, now, served, f"was not served in time: {served.reason}")


def _take_stock(context: Context, generation: Generation, *, ran: bool) -> None:
    """Compare a generation with what the nodes are and say; where they have not spoken, believe it."""
    for index, pipeline in list(generation.running()):
        for number, stage in enumerate(pipeline.stages):
            node = context.members.nodes.get(stage.node)
            if node is None or not node.alive or node.profile(generation.entry) is None:
                context.lose(generation, index)
                break
            key = (generation.entry.name, generation.names[index], generation.number, number)
            reports = (
                {}
                if node.report is None
                else {(r.model, r.pipeline, r.generation, r.stage): r for r in node.report.stages}
            )
            said = reports.get(key)
            if said is not None and said.state == "ready":
                generation.ready.add((index, number))
            elif said is not None and said.state == "failed":
                context.lose(generation, index)
                break
            elif ran and node.report is None:
                generation.ready.add((index, number))
                generation.assumed.add((index, number))
            elif ran and said is None:
                context.lose(generation, index)
                break


def _unmet(served: Served) -> str:
    if served.active is None or served.replaces:
        return f"not served in time: {served.reason}"
    return f"served, but with {served.shortage() or 'another number of stages than asked for'}"

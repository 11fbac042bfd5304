"""Nodes that an operator took out of plans: cordoned (no further model), or drained (what runs there moves).

A model is never left unserved for it: what fits nowhere else stays on a drained node, and whoever drains is
told what and why. It is retained on the broker, so that whoever leads next keeps to it.
"""

from __future__ import annotations

from collections.abc import Container

from orchestrator.core.cluster_context import Context, Drain
from orchestrator.core.cluster_events import (
    CordonAsked,
    CordonSeen,
    Finish,
    Progress,
    PublishCordon,
    UncordonAsked,
)
from orchestrator.core.cluster_planning import consider, consider_all
from shared.errors import ErrorCode
from shared.messages.cordon import Cordon

MOST_NAMED = 20
"""Of the nodes there are, in the error about one that is not."""


def asked(context: Context, event: CordonAsked) -> None:
    """Take a node out of plans; one that is drained is told done in `settle`."""
    verb = "drain" if event.drain else "cordon"
    if any(drain.transaction == event.transaction for drain in context.drains):
        return  # the request was delivered twice
    if event.node not in context.members.nodes:
        context.finished.append(_unknown(context, event.transaction, verb, event.node))
        return
    before = context.cordons.get(event.node)
    cordon = Cordon(node=event.node, drain=event.drain, at=event.at, reason=event.reason)
    if before is None or (before.drain, before.reason) != (cordon.drain, cordon.reason):
        context.cordons[event.node] = cordon
        context.actions.append(PublishCordon(event.node, cordon))
        what = "is to be drained" if event.drain else "is given no further model"
        text = f"node {event.node} {what}" + (f": {event.reason}" if event.reason else "")
        name = "node_draining" if event.drain else "node_cordoned"
        context.tell(name, text, node=event.node, reason=event.reason or None)
    if event.drain:
        context.drains.append(Drain(event.transaction, event.node, event.deadline))
        for served in context.in_order():
            if any(event.node in each.nodes() for each in served.all_generations()):
                consider(context, event.now, served, f"node {event.node} is to be drained")
    else:
        _give_up_draining(context, event.node, "it is only cordoned now")
        context.finished.append(Finish(event.transaction, verb, node=event.node))


def lifted(context: Context, event: UncordonAsked) -> None:
    """Plan with a node again."""
    if event.node not in context.members.nodes and event.node not in context.cordons:
        context.finished.append(_unknown(context, event.transaction, "uncordon", event.node))
        return
    if context.cordons.pop(event.node, None) is not None:
        _give_up_draining(context, event.node, "it was uncordoned")
        context.actions.append(PublishCordon(event.node, None))
        text = f"node {event.node} may be used again"
        context.tell("node_uncordoned", text, node=event.node)
        consider_all(context, event.now, text)
    context.finished.append(Finish(event.transaction, "uncordon", node=event.node))


def seen(context: Context, event: CordonSeen) -> None:
    """Keep to what an earlier orchestrator was asked for; what a broker says that was killed is old."""
    if context.restoring:
        context.members.assigned(event.now, event.node)  # it may be gone, and is forgotten in time
        context.cordons.setdefault(event.node, event.cordon)
    elif event.node not in context.cordons:
        context.actions.append(PublishCordon(event.node, None))


def forget(context: Context, node: str) -> None:
    """The node is gone for good."""
    if context.cordons.pop(node, None) is not None:
        context.actions.append(PublishCordon(node, None))
    _give_up_draining(context, node, "it is gone")


def settle(context: Context, holding: Container[str]) -> None:
    """Tell those who drain a node how far it is; `holding` are the nodes that are to hold something."""
    for drain in list(context.drains):
        if drain.node not in holding:
            context.drains.remove(drain)
            text = f"node {drain.node} holds nothing any more"
            context.tell("node_drained", text, node=drain.node)
            context.finished.append(Finish(drain.transaction, "drain", node=drain.node))
            continue
        line = _left_on(context, drain.node)
        if line != drain.told:
            drain.told = line
            context.actions.append(Progress(drain.transaction, "drain", line))


def expire(context: Context, now: float) -> None:
    """Answer those who have waited long enough; the node stays out of plans."""
    for drain in [drain for drain in context.drains if now >= drain.deadline]:
        context.drains.remove(drain)
        error = f"not drained in time: {_left_on(context, drain.node)}"
        context.finished.append(Finish(drain.transaction, "drain", error=error, node=drain.node))


def _left_on(context: Context, node: str) -> str:
    """What a node that is drained still holds, and why."""
    parts = []
    for served in context.in_order():
        active = served.active
        if active is not None and node in active.nodes():
            why = "another plan loads" if served.loads else served.stuck or "it is being moved"
            parts.append(f"{served.name} still runs on {node} ({why})")
    old = sorted({each.entry.name for each in context.draining if node in each.nodes()})
    parts += [f"the last jobs of {name} are answered" for name in old]
    return "; ".join(parts) or f"what loads on {node} is given up"


def _give_up_draining(context: Context, node: str, why: str) -> None:
    for drain in [drain for drain in context.drains if drain.node == node]:
        context.drains.remove(drain)
        error = f"node {node} was not drained: {why}"
        context.finished.append(Finish(drain.transaction, "drain", error=error, node=node))


def _unknown(context: Context, transaction: str, verb: str, node: str) -> Finish:
    names = sorted(context.members.nodes)
    more = len(names) - MOST_NAMED
    listed = ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    error = f"there is no node {node!r}; there are: {listed or 'none'}"
    return Finish(transaction, verb, error=error, code=ErrorCode.BAD_INPUT, node=node)

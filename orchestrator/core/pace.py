"""How soon time alone may change something: from one tick to the next.

A tick looks at all that the cluster is, which costs a tenth of a percent of a core for each that comes in a
second. So they are close together only while something waits for them.
"""

from __future__ import annotations

from orchestrator.core.cluster_context import Context

BUSY_S = 0.1
"""It is part of the time until a silent node is noticed."""
QUIET_S = 0.25


def next_tick_s(context: Context, now: float) -> float:
    """Seconds from `now` until the next tick should come."""
    if context.restoring or context.drains or context.draining:
        return BUSY_S
    if any(served.loads or served.waiting for served in context.models.values()):
        return BUSY_S
    # Those that are asked already, and those that have to be asked before a quiet tick would come.
    overdue = now + QUIET_S
    nodes = context.members.nodes.values()
    if any(node.alive and node.asks_at() <= overdue for node in nodes):
        return BUSY_S
    return QUIET_S

"""Nodes that are gone for good: when they are forgotten, and how many are remembered at most.

What is retained of a forgotten node is cleared. One that comes back is simply born.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.core.nodes import Node
from shared.messages.node import NodeState
from shared.messages.operation import NodeStanding

MOST_NODES = 2000
"""Alive and gone: a flood of invented names must not fill our memory."""
MOST_TOLD = 50
"""Of the nodes that are gone so many are shown, those gone last."""
LEFT_RATIO = 1 / 6
"""Who left by itself is forgotten that much sooner than who was lost: nobody wonders where it is."""


def ghost(name: str) -> NodeState:
    """The record of a node of which nothing is known but that something is retained for it."""
    return NodeState(state="lost", node=name, incarnation=0, reason="nobody knows of it")


def is_due(node: Node, now: float, forget_after_s: float) -> bool:
    """Whether a node is to be forgotten."""
    return not node.alive and now - node.gone_since >= _keep_s(node, forget_after_s)


def longest_gone(nodes: Mapping[str, Node]) -> Node | None:
    """Who is forgotten first when there are too many; None when all are alive."""
    gone = (node for node in nodes.values() if not node.alive)
    return min(gone, key=lambda node: (node.gone_since, node.name), default=None)


def standings(
    nodes: Mapping[str, Node], now: float, forget_after_s: float
) -> dict[str, NodeStanding]:
    """Of each node that is not simply there: what it is, since when, and until when, by name."""
    gone = sorted((n for n in nodes.values() if not n.alive), key=lambda n: -n.gone_since)
    told = [n for n in nodes.values() if n.left_out or (n.alive and n.needs_disk_bytes)]
    told += gone[:MOST_TOLD]
    return {
        node.name: _standing(node, now, forget_after_s)
        for node in sorted(told, key=lambda node: node.name)
    }


def _standing(node: Node, now: float, forget_after_s: float) -> NodeStanding:
    if node.alive and not node.left_out:
        needed = max(node.needs_disk_bytes.values())
        models = ", ".join(sorted(node.needs_disk_bytes))
        return NodeStanding(
            state="disk_full",
            for_s=round(max(0.0, now - node.disk_full_since), 1),
            until_s=0.0,
            reason=f"no room on its disk for {models}: {needed / 1e6:.1f} MB free would do",
        )
    if node.alive:
        left_s = max(0.0, node.visits.left_out_until - now)
        return NodeStanding(state="left_out", for_s=0.0, until_s=round(left_s, 1))
    state = node.state.state
    for_s = max(0.0, now - node.gone_since)
    return NodeStanding(
        state="silent" if state == "online" else state,
        for_s=round(for_s, 1),
        until_s=round(max(0.0, _keep_s(node, forget_after_s) - for_s), 1),
    )


def _keep_s(node: Node, forget_after_s: float) -> float:
    return forget_after_s * (LEFT_RATIO if node.state.state == "offline" else 1.0)

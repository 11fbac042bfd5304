"""How a node stands, in a word or two, the same wherever it is shown."""

from __future__ import annotations

from shared.client import NodeView
from shared.messages.operation import NodeStanding


def node_word(node: NodeView) -> tuple[str, str]:
    """A node's state for people, and what is to be said of it besides; mostly nothing."""
    state, standing = node.state, node.standing
    if state.state != "online":
        return state.state, gone(state.reason, standing)
    if standing is not None and standing.state == "silent":
        return "silent", gone("does not answer", standing)
    word, why = "online", ["no telemetry yet"] if node.telemetry is None else []
    if standing is not None and standing.state == "left_out":
        word = "left out"
        why.append(f"came and went, for {duration(standing.until_s)} more")
    if standing is not None and standing.state == "disk_full":
        word = "disk full"
        why.append(standing.reason)
    if node.cordon is not None:
        word = "drained" if node.cordon.drain else "cordoned"
        why.append(node.cordon.reason)
    return word, "; ".join(filter(None, why))


def gone(why: str, standing: NodeStanding | None) -> str:
    """Why a node is not there and, where the orchestrator has said it, since when."""
    if standing is None:
        return why
    since = f"for {duration(standing.for_s)}, forgotten in {duration(standing.until_s)}"
    return f"{why}, {since}" if why else since


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    for unit, size_s in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size_s:
            return f"{seconds / size_s:.0f} {unit}"
    return f"{seconds:.0f} s"

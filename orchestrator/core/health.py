"""Whether anything is wrong: what the cluster and the dispatcher know, put into words.

Pure: what was seen comes in as `Seen`. What is wrong follows from the state of now alone, so that a finding
goes when its cause does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from orchestrator.core.dispatch_settings import DispatchSettings
from orchestrator.core.dispatch_stats import ModelLoad
from orchestrator.core.model_view import reason
from orchestrator.core.served import Served
from shared.messages.health import Finding, Health
from shared.messages.operation import NodeStanding

FULL_RATIO = 0.8
"""A queue that is fuller than that will refuse jobs soon."""
RECENT_S = 30.0
"""What happened within so many seconds is happening, to whoever looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a judgement goes by.

    `refused` and `errors` are the jobs refused as `overloaded`, and our own failures, of the last `RECENT_S`
    seconds; `store_trouble` says why accepted jobs are not written to disk.
    """

    models: Mapping[str, Served]
    nodes_online: int
    standings: Mapping[str, NodeStanding]
    loads: Iterable[ModelLoad] = ()
    settings: DispatchSettings = field(default_factory=DispatchSettings)
    refused: int = 0
    errors: int = 0
    store_trouble: str = ""
    standbys: tuple[str, ...] = ()


def judge(seen: Seen, at: str) -> Health:
    """How the cluster is; `at` is what people call now."""
    findings = sorted(
        (*_models(seen), *_nodes(seen), *_queues(seen), *_ours(seen)),
        key=lambda found: (found.grade != "failing", found.about, found.name),
    )
    grade = findings[0].grade if findings else "ok"
    return Health(
        text=_in_words(seen, findings),
        health=grade,
        findings=findings,
        models={name: served.state for name, served in sorted(seen.models.items())},
        nodes_online=seen.nodes_online,
        standbys=list(seen.standbys),
        at=at,
    )


def _in_words(seen: Seen, findings: list[Finding]) -> str:
    if findings:
        more = len(findings) - 1
        return f"{findings[0].grade}: {findings[0].text}" + (f" (and {more} more)" if more else "")
    nodes = f"{seen.nodes_online} node{'' if seen.nodes_online == 1 else 's'} online"
    served = ", ".join(sorted(seen.models))
    return f"ok: {nodes}, " + (f"serving {served}" if served else "nothing is to be served")


def _models(seen: Seen) -> Iterator[Finding]:
    for name, served in seen.models.items():
        match served.state:
            case "unserved" | "failed":
                text = f"{name} is not served: {reason(served)}"
                yield Finding(grade="failing", about="model", name=name, text=text)
            case "loading":
                text = f"{name} loads and is not served yet: {reason(served)}"
                yield Finding(grade="degraded", about="model", name=name, text=text)
            case "serving" if short := served.shortage():
                text = f"{name} is served with less than was asked for: {short}"
                yield Finding(grade="degraded", about="model", name=name, text=text)
            case "serving":
                pass


def _nodes(seen: Seen) -> Iterator[Finding]:
    if seen.nodes_online == 0:
        text = "no node is online; start an agent with `amp4ec agent`"
        yield Finding(grade="degraded", about="node", text=text)
    for name, standing in seen.standings.items():
        match standing.state:
            case "silent":
                text = f"node {name} does not answer, for {standing.for_s:.0f} s"
            case "lost":
                text = f"node {name} was lost without a goodbye"
            case "left_out":
                text = f"node {name} came and went too often and is left out"
            case "disk_full":
                text = f"node {name}: {standing.reason}"
            case "offline":
                continue  # it left by itself
        yield Finding(grade="degraded", about="node", name=name, text=text)


def _queues(seen: Seen) -> Iterator[Finding]:
    most_items, most_bytes = seen.settings.max_queued_items, seen.settings.max_queued_bytes
    for load in seen.loads:
        full = max(load.queued_items / most_items, load.queued_bytes / most_bytes)
        if full >= FULL_RATIO:
            text = f"{load.model}: the queue is {min(full, 1.0):.0%} full, {load.queued_items} inputs wait"
            yield Finding(grade="degraded", about="queue", name=load.model, text=text)
    if seen.refused:
        text = f"{seen.refused} jobs were refused as overloaded in the last {RECENT_S:.0f} s"
        yield Finding(grade="degraded", about="queue", text=text)


def _ours(seen: Seen) -> Iterator[Finding]:
    if seen.store_trouble:
        text = f"accepted jobs would not outlive the orchestrator: {seen.store_trouble}"
        yield Finding(grade="degraded", about="store", text=text)
    if seen.errors:
        text = f"{seen.errors} failures of the orchestrator's own in the last {RECENT_S:.0f} s; see its log"
        yield Finding(grade="degraded", about="orchestrator", text=text)

"""What happened to one job, node or model, in order and across processes, from all who remember something.

The orchestrator remembers events, jobs and deployments, all by its own clock; logs of other machines are by
theirs, which `clocks_s` (how far each node's is ahead of the orchestrator's) puts right.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from deploy.log_lines import LogLine
from deploy.text import milliseconds, size
from shared.messages.life import JobLife, JobStep
from shared.messages.operation import Deployment, Happening

_OF_LIVES = frozenset(
    (
        "job accepted",
        "job dispatched",
        "job answered",
        "a job runs again",
        "a job ended with an error",
    )
)
"""Lines of the log that the orchestrator's memory of jobs tells as well."""
_SAME_S = 1.0
_LATEST = 4e9
"""The year 2096: beyond it a time is a slip, or a joke."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that happened, `at` in seconds since 1970, by the orchestrator's clock as far as it is known.

    `source` is the process that says so, `via` where it stood; `details` are further lines.
    """

    at: float
    source: str
    via: Literal["event", "job", "deployment", "log"]
    text: str
    level: str = "info"
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the orchestrator remembers, the oldest first, and what the logs say."""

    events: Sequence[Happening] = ()
    deployments: Sequence[Deployment] = ()
    lives: Sequence[JobLife] = ()
    lines: Sequence[LogLine] = ()
    clocks_s: Mapping[str, float] = field(default_factory=dict)


def story_of_job(job: str, memory: Memory) -> list[Entry]:
    """A job's lives, what happened to its model and the nodes that it ran on meanwhile, and the logs."""
    requests = {life.request for life in memory.lives}
    entries: list[Entry] = []
    for life in memory.lives:
        places = _places(life, memory.deployments)
        nodes = {node for place in places.values() for node in place}
        nodes |= {stage.node for stage in life.trace}
        own = [_step(life, step, places) for step in life.steps]
        entries += own
        begin, end = own[0].at, own[-1].at if life.steps[-1].what == "answered" else float("inf")
        entries += [
            entry
            for event, entry in _events(memory.events)
            if begin <= entry.at + 0.001
            and entry.at <= end
            # an event's time is cut to milliseconds
            and (event.model == life.model or event.node in nodes)
        ]
    lines = [
        line
        for line in memory.lines
        if job in (line.facts.get("job"), line.facts.get("request"))
        or line.facts.get("request") in requests
    ]
    return _sorted([*entries, *_log(lines, memory, known=requests)])


def story_of_node(node: str, memory: Memory) -> list[Entry]:
    """A node's comings and goings, what was deployed there, plans that name it, and its own log."""
    word = re.compile(rf"(?<![\w.-]){re.escape(node)}(?![\w-])")
    entries = [
        entry
        for event, entry in _events(memory.events)
        if event.node == node or word.search(event.text)
    ]
    entries += [
        _deployment(deployment, node)
        for deployment in memory.deployments
        if any(stage.node == node for stage in deployment.stages)
    ]
    lines = [line for line in memory.lines if line.facts.get("node") == node]
    return _sorted([*entries, *_log(lines, memory)])


def story_of_model(model: str, memory: Memory) -> list[Entry]:
    """How a model was asked for, planned, deployed and moved, and what the logs say of it."""
    entries = [entry for event, entry in _events(memory.events) if event.model == model]
    entries += [_deployment(each) for each in memory.deployments if each.model == model]
    lines = [line for line in memory.lines if line.facts.get("model") == model]
    return _sorted([*entries, *_log(lines, memory)])


def seconds(at: str) -> float:
    """Seconds since 1970 of an ISO 8601 time; 0 of anything else, which is another's word."""
    try:
        found = datetime.fromisoformat(at).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return found if 0.0 <= found < _LATEST else 0.0


def _sorted(entries: Iterable[Entry]) -> list[Entry]:
    """In order; of two lives of one job what both lived through is told once."""
    return sorted(dict.fromkeys(entries), key=lambda entry: entry.at)


def _events(events: Iterable[Happening]) -> Iterator[tuple[Happening, Entry]]:
    for event in events:
        yield (
            event,
            Entry(at=seconds(event.at), source="orchestrator", via="event", text=event.text),
        )


def _log(lines: Iterable[LogLine], memory: Memory, known: Collection[str] = ()) -> Iterator[Entry]:
    """The logs' lines, without what the orchestrator has told already."""
    told = {(event.text, round(seconds(event.at) / _SAME_S)) for event in memory.events}
    for line in lines:
        at = seconds(line.time)
        if any((line.event, round(at / _SAME_S) + near) in told for near in (-1, 0, 1)):
            continue
        if line.event in _OF_LIVES and line.facts.get("request") in known:
            continue
        process, node = line.facts.get("process"), line.facts.get("node")
        source = str(node if process == "agent" and node else process or line.logger)
        facts = {name: fact for name, fact in line.facts.items() if name != "kind"}
        if source == node:
            facts.pop("node")
        yield Entry(
            at=at - memory.clocks_s.get(source, 0.0),
            source=source,
            via="log",
            text=replace(line, facts=facts).text,
            level=line.level,
        )


def _deployment(deployment: Deployment, node: str | None = None) -> Entry:
    stages = [stage for stage in deployment.stages if node in (None, stage.node)]
    details = tuple(
        f"stage {stage.stage} [{stage.blocks[0]}, {stage.blocks[1]}) on {stage.node}: {stage.state}"
        + (
            f", fetched {size(stage.fetched_bytes)} in {milliseconds(stage.fetch_s)}"
            * bool(stage.fetched_bytes)
        )
        + (f", loaded in {milliseconds(stage.load_s)}" * bool(stage.load_s))
        for stage in stages
    )
    text = (
        f"{deployment.model} generation {deployment.generation} is sent out with {deployment.runtime}; "
        f"{deployment.outcome} after {milliseconds(deployment.took_s)}"
    )
    if deployment.outcome == "failed":
        text += f": {deployment.detail}"
    return Entry(
        at=seconds(deployment.at),
        source="orchestrator",
        via="deployment",
        text=text,
        level="info" if deployment.outcome == "active" else "warning",
        details=details,
    )


Places = dict[tuple[str | None, int | None], list[str]]
"""The nodes of a pipeline and generation, in the order of its stages."""


def _places(life: JobLife, deployments: Iterable[Deployment]) -> Places:
    places: Places = {}
    for deployment in deployments:
        if deployment.model == life.model:
            for stage in sorted(deployment.stages, key=lambda stage: stage.stage):
                places.setdefault((stage.pipeline, deployment.generation), []).append(stage.node)
    ends = (step for step in life.steps if step.what == "answered" and step.pipeline)
    for step in ends:
        if life.trace:
            places[step.pipeline, step.generation] = [stage.node for stage in life.trace]
    return places


def _step(life: JobLife, step: JobStep, places: Places) -> Entry:
    details: tuple[str, ...] = ()
    which = f"input {step.item}" if life.items > 1 and step.item is not None else "it"
    match step.what:
        case "accepted":
            text = f"job {life.job} accepted for {life.model}, from {life.client or 'somebody'}"
            if life.items > 1:
                text += f", {life.items} inputs"
        case "refused":
            text = f"job {life.job} refused: {step.text}"
        case "dispatched":
            nodes = " > ".join(places.get((step.pipeline, step.generation), []))
            where = f"pipeline {step.pipeline} generation {step.generation}"
            again = f"again (attempt {step.attempt}) " if (step.attempt or 1) > 1 else ""
            text = f"{which} is sent {again}to " + (f"{nodes} ({where})" if nodes else where)
            if step.text:
                text += f", {'since ' if again else ''}{step.text}"
        case "failed":
            text = f"attempt {step.attempt} at {which} failed: {step.text}"
        case "lost" | "set_aside":
            text = step.text
        case "answered":
            text = f"answered {step.text}"
            details = tuple(
                f"stage {stage.stage} on {stage.node}: way {milliseconds(stage.transit_s)}, "
                f"queue {milliseconds(stage.queue_s)}, compute {milliseconds(stage.compute_s)}"
                for stage in life.trace
            )
            if life.left_out:
                details += (f"{life.left_out} steps in between were not kept",)
    level = "warning" if step.what in ("failed", "lost", "set_aside", "refused") else "info"
    return Entry(
        at=seconds(step.at),
        source="orchestrator",
        via="job",
        text=text,
        level=level,
        details=details,
    )

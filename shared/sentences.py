"""A sentence for each message that people may read: what `text` says, at the front of its JSON.

So that `mosquitto_sub -v` reads like a log, without anybody taking JSON apart. The fields say the same to
programs; who decides by `text` decides wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from shared.messages.cordon import Cordon
from shared.messages.model import Figures, ModelState
from shared.messages.node import NodeState, Ping, Telemetry
from shared.messages.operation import Metrics, OrchestratorState, Standby
from shared.messages.settings import OrchestratorInfo
from shared.messages.stage import Assignment, Report, StageAssignment, StageReport

Worded = (
    NodeState
    | Telemetry
    | Assignment
    | Report
    | Cordon
    | ModelState
    | OrchestratorState
    | OrchestratorInfo
    | Ping
    | Standby
    | Metrics
)
W = TypeVar("W", bound=Worded)
_MOST_NAMED = 4
_KILO = 1000.0


def worded(message: W) -> W:
    """The same message with its sentence in `text`."""
    return replace(message, text=sentence(message))


def sentence(message: Worded) -> str:
    """What a message says, in a line."""
    match message:
        case NodeState():
            return _node(message)
        case Telemetry():
            return _telemetry(message)
        case Assignment():
            held = [_stage(stage) for stage in message.stages]
            return f"{message.node} is to hold {_some(held) or 'nothing'}"
        case Report():
            said = [f"{_stage(stage)} {_progress(stage)}" for stage in message.stages]
            return f"{message.node}: {_some(said) or 'holds nothing'}"
        case Ping():
            return f"{message.node} is asked whether it is there"
        case Standby():
            when = "at once" if message.ready else "once it has the models' packages"
            return f"{message.name} would take over, {when}"
        case Cordon():
            what = "to be kept empty" if message.drain else "to get no further model"
            return f"{message.node} is {what}" + (f": {message.reason}" if message.reason else "")
        case ModelState():
            return _model(message)
        case OrchestratorState():
            return _orchestrator(message)
        case OrchestratorInfo():
            changed = ", ".join(sorted(message.changed)) or "nothing"
            return f"amp4ec {message.version}; changed of its settings: {changed}"
        case Metrics():
            return _metrics(message)


def size_in_words(size_bytes: float) -> str:
    """`52.9 MB`, by thousands."""
    for unit in ("B", "KB", "MB", "GB"):
        if size_bytes < _KILO or unit == "GB":
            return f"{size_bytes:.3g} {unit}" if unit != "GB" else f"{size_bytes:.1f} GB"
        size_bytes /= _KILO
    raise AssertionError("unreachable")


def _node(state: NodeState) -> str:
    if state.state != "online" or state.hardware is None:
        said = {"online": "is online", "offline": "left", "lost": "is lost"}[state.state]
        why = "" if state.reason in ("", said) else f": {state.reason}"
        return f"{state.node} {said}{why}"
    runtimes = [f"{name} {version}" for name, version in sorted(state.runtimes.items())]
    parts = [
        f"{state.hardware.cpu:.3g} CPUs",
        size_in_words(state.hardware.memory_bytes),
        *(runtimes or ["no runtime"]),
        f"zone {state.zone}",
    ]
    return f"{state.node} is online: {', '.join(parts)}"


def _telemetry(told: Telemetry) -> str:
    used, limit = size_in_words(told.memory_used_bytes), size_in_words(told.memory_limit_bytes)
    parts = [f"CPU {told.cpu_percent:.0f}%", f"memory {used} of {limit}"]
    if told.round_trip_s is not None:
        parts.append(f"broker {_time(told.round_trip_s)} away")
    ran = [stage for stage in told.stages if stage.items]
    if ran:
        parts += [
            f"{stage.model} stage {stage.stage} {stage.items} inputs, {_time(stage.compute_s)} each"
            for stage in ran[:_MOST_NAMED]
        ]
    if told.queue:
        parts.append(f"{told.queue} wait")
    return f"{told.node}: {', '.join(parts)}"


def _model(state: ModelState) -> str:
    said = {"serving": "is served", "loading": "loads", "unserved": "is not served"}
    parts = [f"{state.model} {said.get(state.state, 'could not be loaded')}"]
    if state.pipelines:
        pipelines = [
            " > ".join(f"{s.node}[{s.blocks[0]}:{s.blocks[1]}]" for s in each.stages)
            for each in state.pipelines
        ]
        named = " + ".join(pipelines[:_MOST_NAMED])
        more = len(pipelines) - _MOST_NAMED
        parts.append(f"as generation {state.generation} on {named}")
        if more > 0:
            parts.append(f"and {more} more")
    line = " ".join(parts)
    for name, figures in (("predicted", state.predicted), ("measured", state.measured)):
        if figures.throughput_per_s is not None:
            line += f", {name} {_figures(figures)}"
    return f"{line} ({state.reason})" if state.reason else line


def _figures(figures: Figures) -> str:
    rate = f"{figures.throughput_per_s:.1f}/s"
    return rate if figures.latency_s is None else f"{rate} in {_time(figures.latency_s)}"


def _orchestrator(state: OrchestratorState) -> str:
    name = state.leader or "an orchestrator"
    match state.state:
        case "online":
            standbys = ", ".join(state.standbys) or "nobody"
            line = f"{name} leads under term {state.term}, {standbys} stands by"
            return line + (f", {state.set_aside} jobs set aside" if state.set_aside else "")
        case "starting":
            return f"{name} begins to lead under term {state.term}"
        case "offline":
            return f"{name} has stopped"
        case "lost":
            return f"{name} is lost"


def _metrics(metrics: Metrics) -> str:
    parts = [f"{metrics.nodes_online} node{'' if metrics.nodes_online == 1 else 's'} online"]
    for name, load in list(metrics.models.items())[:_MOST_NAMED]:
        line = f"{name} {load.answered_per_s:.1f}/s"
        if load.latency_p50_s is not None and load.latency_p95_s is not None:
            line += f" in {_time(load.latency_p50_s)} (p95 {_time(load.latency_p95_s)})"
        parts.append(f"{line}, {load.queued} wait, {load.in_flight} in flight")
    more = len(metrics.models) - _MOST_NAMED
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _stage(stage: StageAssignment | StageReport) -> str:
    return f"{stage.model} generation {stage.generation} stage {stage.stage}"


def _progress(report: StageReport) -> str:
    return f"{report.state}: {report.reason}" if report.reason else report.state


def _some(lines: Sequence[str]) -> str:
    more = len(lines) - _MOST_NAMED
    return ", ".join(lines[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"

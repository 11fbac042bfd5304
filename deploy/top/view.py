"""Rows for the screen, out of what was heard: no terminal and no clock."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from deploy.node_words import node_word
from deploy.text import milliseconds, size
from shared.client import ClusterStatus, NodeView
from shared.messages.model import ModelState
from shared.messages.node import StageTelemetry
from shared.messages.operation import Happening

Tone = Literal["", "good", "warn", "bad", "faint"]
Sort = Literal["name", "use", "memory", "queue"]
SORTS: tuple[Sort, ...] = ("name", "use", "memory", "queue")

NODE_COLUMNS = ("node", "state", "cpu", "use", "", "memory", "queue", "stages")
MODEL_COLUMNS = ("model", "state", "gen", "rate", "p50", "p95", "queue", "sent", "minute")
STAGE_COLUMNS = ("pipeline", "stage", "node", "blocks", "predicted", "measured", "queue", "")
RIGHT = frozenset((
    "cpu", "use", "memory", "queue", "gen", "rate", "p50", "p95", "sent", "stage", "predicted",
    "measured",
))  # fmt: skip
"""Columns of numbers."""
_BAR = 8
_BLOCKS = " ▁▂▃▄▅▆▇█"
_TREND = 8
_BUSY_PERCENT = 90.0
_FULL_RATIO = 0.9


@dataclass(frozen=True, slots=True)
class Cell:
    """A text, and how it is meant."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Row:
    """`key` is what the row is about, the same whenever it is shown; a cell per column."""

    key: str
    cells: tuple[Cell, ...]


def node_rows(status: ClusterStatus, *, sort: Sort = "name", wanted: str = "") -> list[Row]:
    """A row per node whose name, state or stages have `wanted` in them."""
    nodes = sorted(status.nodes, key=lambda node: (_rank(node, sort), _natural(node.state.node)))
    rows = [_node(node) for node in nodes]
    return [row for row in rows if _has(row, wanted)]


def model_rows(
    status: ClusterStatus, rates: Mapping[str, Sequence[float]], *, wanted: str = ""
) -> list[Row]:
    """A row per model: what it answers now, and how that was."""
    rows = [_model(model, status, rates.get(model.model, ())) for model in status.models]
    return [row for row in rows if _has(row, wanted)]


def stage_rows(status: ClusterStatus, model: ModelState) -> list[Row]:
    """A row per stage of the model's pipelines; the one that holds all others up is marked."""
    live = {
        (node.state.node, stage.pipeline, stage.generation, stage.stage): stage
        for node in status.nodes
        if node.telemetry is not None
        for stage in node.telemetry.stages
        if stage.model == model.model
    }
    rows = []
    for pipeline in model.pipelines:
        took_s = [row.measured_s or row.predicted_s for row in pipeline.stages]
        slowest = took_s.index(max(took_s)) if len(took_s) > 1 else -1
        for index, stage in enumerate(pipeline.stages):
            now: StageTelemetry | None = live.get(
                (stage.node, pipeline.pipeline, model.generation, stage.stage)
            )
            cells = (
                Cell(pipeline.pipeline if index == 0 else ""),
                Cell(str(stage.stage)),
                Cell(stage.node),
                Cell(f"[{stage.blocks[0]}, {stage.blocks[1]})"),
                Cell(milliseconds(stage.predicted_s), "faint"),
                Cell("-" if stage.measured_s is None else milliseconds(stage.measured_s)),
                Cell("-" if now is None else str(now.queue)),
                Cell("slowest", "warn") if index == slowest else Cell(""),
            )
            rows.append(Row(f"{pipeline.pipeline}/{stage.stage}", cells))
    return rows


def event_lines(events: Iterable[Happening], *, wanted: str = "") -> list[str]:
    """The events at the time of day here, those that have `wanted` in them."""
    return [
        f"{_time_of_day(event.at)} {event.text}"
        for event in events
        if wanted.lower() in f"{event.event} {event.text}".lower()
    ]


def headline(status: ClusterStatus) -> str:
    """Who leads, and how many are there."""
    leader = status.orchestrator
    if leader is None:
        who = "no orchestrator yet"
    elif leader.state == "online":
        who = f"orchestrator on {leader.host or '?'}"
        if leader.standbys:
            who += f" + {len(leader.standbys)} standing by"
    else:
        who = f"orchestrator {leader.state}"
    there, all_ = len(status.online), len(status.nodes)
    nodes = f"{all_} node{'s' * (all_ != 1)}"
    return f"{who}  {there} of {nodes}" if there < all_ else f"{who}  {nodes}"


def bar(ratio: float, width: int = _BAR) -> str:
    """A share of 0 to 1 as a bar."""
    full = round(min(max(ratio, 0.0), 1.0) * width)
    return "■" * full + "·" * (width - full)


def trend(rates: Sequence[float], width: int = _TREND) -> str:
    """How a figure went: means of some seconds each, the newest at the right, the highest full."""
    rates = list(rates)  # a deque has no slices
    if not rates:
        return ""
    each = max(1, -(-len(rates) // width))
    groups = [rates[max(0, end - each) : end] for end in range(len(rates), 0, -each)][::-1]
    means = [sum(group) / len(group) for group in groups]
    most = max(means)
    if most <= 0:
        return _BLOCKS[1] * len(means)
    return "".join(_BLOCKS[max(1, round(mean / most * (len(_BLOCKS) - 1)))] for mean in means)


def _node(node: NodeView) -> Row:
    state, now = node.state, node.telemetry
    word, why = node_word(node)
    cpu = f"{state.hardware.cpu:.3g}" if state.hardware else "?"
    known = word not in ("offline", "lost", "silent") and now is not None
    if not known or now is None:
        tone: Tone = "bad" if word in ("lost", "silent") else "faint"
        cells = (Cell(state.node, tone), Cell(word, tone), Cell(cpu), *4 * (Cell(""),))
        return Row(state.node, (*cells, Cell(why, "faint")))
    stages = ", ".join(f"{stage.model}[{stage.stage}]" for stage in now.stages) or "idle"
    use: Tone = "warn" if now.cpu_percent >= _BUSY_PERCENT else ""
    limit_bytes = max(now.memory_limit_bytes, 1)
    full: Tone = "warn" if now.memory_used_bytes / limit_bytes >= _FULL_RATIO else ""
    return Row(
        state.node,
        (
            Cell(state.node),
            Cell(word, "good" if word == "online" else "warn"),
            Cell(cpu),
            Cell(f"{now.cpu_percent:.0f}%", use),
            Cell(bar(now.cpu_percent / 100), use or "good"),
            Cell(_memory(now.memory_used_bytes, now.memory_limit_bytes), full),
            Cell(str(now.queue)),
            Cell(f"{stages}; {why}" if why else stages, "" if now.stages else "faint"),
        ),
    )


def _model(model: ModelState, status: ClusterStatus, rates: Sequence[float]) -> Row:
    tones: Mapping[str, Tone] = {"serving": "good", "loading": "warn", "unserved": "bad"}
    told = None if status.metrics is None else status.metrics.models.get(model.model)
    p50_s = None if told is None else told.latency_p50_s
    p95_s = None if told is None else told.latency_p95_s
    return Row(
        model.model,
        (
            Cell(model.model),
            Cell(model.state, tones.get(model.state, "bad")),
            Cell(str(model.generation)),
            Cell("-" if told is None else _rate(told.answered_per_s)),
            Cell("-" if p50_s is None else _latency(p50_s)),
            Cell("-" if p95_s is None else _latency(p95_s)),
            Cell("-" if told is None else str(told.queued)),
            Cell("-" if told is None else str(told.in_flight)),
            Cell(trend(rates), "good"),
        ),
    )


def _rate(per_s: float) -> str:
    return f"{per_s:.1f}/s" if per_s < 999.95 else f"{per_s:.0f}/s"


def _latency(latency_s: float) -> str:
    return milliseconds(latency_s) if latency_s < 0.9995 else f"{latency_s:.3g} s"


def _memory(used_bytes: int, limit_bytes: int) -> str:
    """Used and allowed: `150M/512M`, `158M/25G`."""
    return "/".join(
        size(each).replace(" ", "").removesuffix("B") for each in (used_bytes, limit_bytes)
    )


def _rank(node: NodeView, sort: Sort) -> float:
    now = node.telemetry
    if sort == "name":
        return 0.0
    if now is None or node.state.state != "online":
        return 1.0
    match sort:
        case "use":
            return -now.cpu_percent
        case "memory":
            return -now.memory_used_bytes
        case "queue":
            return -float(now.queue)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts pi-2 before pi-10: words and numbers in turn; of numbers the longer is the larger."""
    parts = [part.lstrip("0") if part.isdecimal() else part for part in re.split("([0-9]+)", name)]
    return [(len(part) if place % 2 else 0, part) for place, part in enumerate(parts)]


def _has(row: Row, wanted: str) -> bool:
    return any(wanted.lower() in cell.text.lower() for cell in row.cells)


def _time_of_day(at: str) -> str:
    try:
        return datetime.fromisoformat(at).astimezone().strftime("%H:%M:%S")
    except ValueError:  # another's word
        return at[:8]

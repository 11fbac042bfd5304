"""`amp4ec status`: orchestrator, nodes and models, from the topics that anybody may read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import click

from deploy.cli.deployments import describe_deployments
from deploy.cli.options import CONNECT_S, Common, common_options, json_option
from deploy.cli.output import note, print_json, print_line
from deploy.cli.tables import table
from deploy.levels import describe_quantisation
from deploy.node_words import duration, node_word
from deploy.operator import connect, new_transaction
from shared.client import Client, ClusterStatus, NodeView
from shared.codec import convert
from shared.messages.model import Figures, ModelState, PredictionError, ServeOptions
from shared.messages.node import Telemetry
from shared.messages.operation import (
    CacheMetrics,
    Decisions,
    Deployments,
    DeploymentsRequest,
    ExplainRequest,
    ModelDecision,
    ModelMetrics,
    OrchestratorState,
)
from shared.profile import UNCOMPRESSED

EXPLAIN_TIMEOUT_S = 10.0


@click.command("status")
@click.option(
    "--explain",
    is_flag=True,
    help="Show where each model's latest job went and why: every candidate's terms.",
)
@click.option(
    "--deployments",
    is_flag=True,
    help="List the latest deployments: what was put where, when, why, at what cost; what became of it.",
)
@json_option
@common_options
def status_command(*, common: Common, explain: bool, deployments: bool, as_json: bool) -> None:
    """Show the orchestrator, the nodes, and what each model runs on.

    \b
    Example:
        amp4ec status --broker mqtt://192.168.1.5
    """  # noqa: D301
    asked = asyncio.run(_status(common, explain=explain, deployments=deployments))
    status, decisions = asked.status, asked.decisions
    if as_json:
        document: dict[str, object] = {
            "orchestrator": status.orchestrator,
            "nodes": [
                {
                    "state": node.state,
                    "telemetry": node.telemetry,
                    "standing": node.standing,
                    "cordon": node.cordon,
                }
                for node in status.nodes
            ],
            "models": status.models,
            "metrics": status.metrics,
        }
        if decisions is not None:
            document["decisions"] = decisions.models
        if asked.deployments is not None:
            document["deployments"] = asked.deployments.deployments
        print_json(document)
    else:
        print_line(describe(status))
        for each in [] if decisions is None else decisions.models:
            print_line("\n" + describe_decision(each))
        if asked.deployments is not None:
            print_line("\n" + describe_deployments(asked.deployments.deployments))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What anybody may read, and what was asked for besides."""

    status: ClusterStatus
    decisions: Decisions | None = None
    deployments: Deployments | None = None


async def _status(common: Common, *, explain: bool, deployments: bool) -> _Asked:
    async with Client(common.broker, root=common.root, connect_timeout_s=CONNECT_S) as client:
        asked = _Asked(await client.status())
    if not explain and not deployments:
        return asked
    async with connect(common.broker, common.root) as operator:
        if explain:
            request = ExplainRequest(transaction=new_transaction())
            response = await operator.ask(request, EXPLAIN_TIMEOUT_S, note)
            asked = replace(asked, decisions=convert(response.data, Decisions))
        if deployments:
            listing = DeploymentsRequest(transaction=new_transaction())
            response = await operator.ask(listing, EXPLAIN_TIMEOUT_S, note)
            asked = replace(asked, deployments=convert(response.data, Deployments))
    return asked


def describe(status: ClusterStatus) -> str:
    """The status for people, within 80 columns where names allow it."""
    parts = [_orchestrator(status.orchestrator), _nodes(status)]
    told = {} if status.metrics is None else status.metrics.models
    parts += [describe_model(model, told.get(model.model)) for model in status.models] or [
        "no model is served"
    ]
    return "\n\n".join(parts)


def _orchestrator(state: OrchestratorState | None) -> str:
    if state is None:
        return "orchestrator: none has announced itself here; start one with `amp4ec orchestrator`"
    text = f"orchestrator: {state.state}, {state.host or 'unknown host'} (pid {state.pid})"
    if state.leader is not None:
        text += f", leads under term {state.term} as {state.leader}"
    if state.standbys:
        text += f"\n  standing by: {', '.join(state.standbys)}"
    if state.set_aside:
        what = "job was" if state.set_aside == 1 else "jobs were"
        text += (
            f"\n  {state.set_aside} {what} set aside because nodes died of them: table set_aside of "
            "jobs.sqlite3 in the orchestrator's state directory"
        )
    return text


def _nodes(status: ClusterStatus) -> str:
    if not status.nodes:
        return "no nodes: start agents with `amp4ec agent`"
    rows: list[tuple[str, ...]] = [
        ("node", "state", "cpu", "used", "memory", "up/down", "trip", "stages")
    ]
    rows += [_node(node) for node in status.nodes]
    return table(rows, right={2, 3, 4, 5, 6})


def _node(node: NodeView) -> tuple[str, ...]:
    state, now = node.state, node.telemetry
    word, why = node_word(node)
    if state.state != "online":
        return (state.node, word, *5 * ("",), why)
    cpu = f"{state.hardware.cpu:g}" if state.hardware else "?"
    if word == "silent":
        return (state.node, word, cpu, *4 * ("",), why)
    if now is None:
        return (state.node, word, cpu, *4 * ("?",), why)
    stages = ", ".join(f"{stage.model}[{stage.stage}]" for stage in now.stages) or "idle"
    return (
        state.node,
        word,
        cpu,
        f"{now.cpu_percent:.0f}%",
        f"{now.memory_used_bytes / 1e6:.0f}/{now.memory_limit_bytes / 1e6:.0f} MB",
        _link(now),
        _ms(now.round_trip_s),
        f"{stages}; {why}" if why else stages,
    )


def _link(now: Telemetry) -> str:
    """To and from the broker, in MB/s."""
    up, down = (
        "-" if rate is None else f"{rate / 1e6:.{1 if rate < 10e6 else 0}f}"
        for rate in (now.up_bytes_per_s, now.down_bytes_per_s)
    )
    return "-" if up == down == "-" else f"{up}/{down} MB/s"


def describe_model(model: ModelState, metrics: ModelMetrics | None = None) -> str:
    """A model for people: its state, why, what is measured of it where that is known, and its stages."""
    lines = [f"{model.model}: {model.state}, generation {model.generation}"]
    if model.weights == "none":
        lines[0] += ", random weights"
    if model.quantisation is not None:
        lines.append(f"  level {model.level}: {describe_quantisation(model.quantisation)}")
    if model.whole:
        lines.append(f"  served whole: {model.whole}")
    if model.reason:
        lines.append(f"  {model.reason}")
    for name, figures in (("predicted", model.predicted), ("measured", model.measured)):
        if figures.throughput_per_s is not None or figures.latency_s is not None:
            lines.append(f"  {name:<9} {_figures(figures)}")
    if metrics is not None:
        lines.append(f"  now       {_live(metrics)}")
    if model.cpu_reserved and model.options.rate_per_s is not None:
        shares = ", ".join(f"{share:.0%} of {n}" for n, share in model.cpu_reserved.items())
        lines.append(f"  CPU kept for {model.options.rate_per_s:g} jobs/s: {shares}")
    if model.prediction_error is not None:
        lines.append(f"  {describe_error(model.prediction_error)}")
    if model.options.cache_bytes:
        lines.append(f"  {_cache(model.options, None if metrics is None else metrics.cache)}")
    for pipeline in model.pipelines:
        rows = [("  stage", "node", "blocks", "weights", "sends", "predicted", "measured")]
        rows += [
            (
                f"  {row.stage}",
                row.node,
                f"[{row.blocks[0]}, {row.blocks[1]})",
                _mega(row.weight_bytes),
                f"{row.output_bytes / 1e3:.0f} kB"
                + ("" if row.compression == UNCOMPRESSED else f" {row.compression}"),
                _ms(row.predicted_s),
                _ms(row.measured_s),
            )
            for row in pipeline.stages
        ]
        lines += [f"  pipeline {pipeline.pipeline}", table(rows, right={3, 4, 5, 6})]
        if (batch := pipeline.micro_batch) is not None:
            up_to = f" (up to {batch.most})" if batch.most > batch.size else ""
            lines.append(f"  batches {batch.size} a message{up_to}: {batch.reason}")
    return "\n".join(lines)


def _live(metrics: ModelMetrics) -> str:
    """The last second."""
    parts = [_per_second(metrics.answered_per_s)]
    if metrics.latency_p50_s is not None:
        parts.append(f"p50 {_ms(metrics.latency_p50_s)}, p95 {_ms(metrics.latency_p95_s)}")
    parts.append(f"{metrics.queued} queued, {metrics.in_flight} sent")
    return ", ".join(parts)


def _cache(options: ServeOptions, now: CacheMetrics | None) -> str:
    """How answers are kept and, where the orchestrator has said so, how often that helped."""
    text = f"answers are kept for {duration(options.cache_for_s)} in {_mega(options.cache_bytes)}"
    if now is None or now.hit_ratio is None:
        return text
    return (
        f"{text}: {now.entries} now; {now.hits} inputs answered so, {now.joined} by an equal one under way, "
        f"{now.misses} run ({now.hit_ratio:.0%} spared)"
    )


def describe_decision(each: ModelDecision) -> str:
    """A model's latest decision for people: a row per candidate, a column per term."""
    decision = each.decision
    if decision is None or each.age_s is None:
        return f"{each.model}: no job was dispatched yet"
    how = f"by {decision.scheduler}" + (", as a probe" if decision.probe else "")
    names = list(dict.fromkeys(name for row in decision.candidates for name in row.terms))
    rows: list[tuple[str, ...]] = [("  ", "pipeline", "generation", *names, "")]
    rows += [
        (
            "=>" if row.chosen else "  ",
            row.pipeline,
            str(row.generation),
            *(f"{row.terms[name]:.4g}" if name in row.terms else "-" for name in names),
            row.passed_over,
        )
        for row in decision.candidates
    ]
    lines = table(rows, right=set(range(2, 3 + len(names))))
    return f"{each.model}: the job of {each.age_s:.1f} s ago was sent {how}\n{lines}"


def describe_error(error: PredictionError) -> str:
    """How far predicted stage times are from measured ones, for people."""
    return (
        f"stage times are off by {error.first_sight_ratio:.0%} at first sight, by {error.now_ratio:.0%} "
        f"now (mean of {error.stages} measured, {error.items} items or more each)"
    )


def _figures(figures: Figures) -> str:
    parts = [_per_second(figures.throughput_per_s), _ms(figures.latency_s)]
    if figures.energy_j:
        parts.append(f"{figures.energy_j:.3g} J per job")
    if figures.cost_per_1000:
        parts.append(f"{figures.cost_per_1000:.3g} per 1,000 jobs")
    if figures.exposure_ratio:
        parts.append(f"{figures.exposure_ratio:.0%} exposed")
    return ", ".join(parts)


def _mega(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 10e6 else f"{size / 1e6:.0f} MB"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f} ms"


def _per_second(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1f}/s"

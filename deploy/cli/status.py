"""`amp4ec status`: orchestrator, nodes and models, from the topics that anybody may read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import click

from deploy.cli.options import CONNECT_S, Common, common_options, json_option
from deploy.cli.output import print_json, print_line
from shared.client import Client, ClusterStatus, NodeView
from shared.messages.model import ModelState
from shared.messages.operation import OrchestratorState


@click.command("status")
@json_option
@common_options
def status_command(*, common: Common, as_json: bool) -> None:
    """Show the orchestrator, the nodes, and what each model runs on.

    \b
    Example:
        amp4ec status --broker mqtt://192.168.1.5
    """  # noqa: D301
    status = asyncio.run(_status(common))
    if as_json:
        print_json(
            {
                "orchestrator": status.orchestrator,
                "nodes": [
                    {"state": node.state, "telemetry": node.telemetry} for node in status.nodes
                ],
                "models": status.models,
                "metrics": status.metrics,
            }
        )
    else:
        print_line(describe(status))


async def _status(common: Common) -> ClusterStatus:
    async with Client(common.broker, root=common.root, connect_timeout_s=CONNECT_S) as client:
        return await client.status()


def describe(status: ClusterStatus) -> str:
    """The status for people, within 80 columns where names allow it."""
    parts = [_orchestrator(status.orchestrator), _nodes(status)]
    parts += [describe_model(model) for model in status.models] or ["no model is served"]
    return "\n\n".join(parts)


def _orchestrator(state: OrchestratorState | None) -> str:
    if state is None:
        return "orchestrator: none has announced itself here; start one with `amp4ec orchestrator`"
    return f"orchestrator: {state.state}, {state.host or 'unknown host'} (pid {state.pid})"


def _nodes(status: ClusterStatus) -> str:
    if not status.nodes:
        return "no nodes: start agents with `amp4ec agent`"
    rows: list[tuple[str, ...]] = [("node", "state", "cpu", "used", "memory", "of", "stages")]
    rows += [_node(node) for node in status.nodes]
    return _table(rows, right={2, 3, 4, 5})


def _node(node: NodeView) -> tuple[str, ...]:
    state, now = node.state, node.telemetry
    if state.state != "online":
        return (state.node, state.state, "", "", "", "", state.reason)
    cpu = f"{state.hardware.cpu:g}" if state.hardware else "?"
    if now is None:
        return (state.node, "online", cpu, "?", "?", "?", "no telemetry yet")
    stages = ", ".join(f"{stage.model}[{stage.stage}]" for stage in now.stages) or "idle"
    return (
        state.node,
        "online",
        cpu,
        f"{now.cpu_percent:.0f}%",
        _mega(now.memory_used_bytes),
        _mega(now.memory_limit_bytes),
        stages,
    )


def describe_model(model: ModelState) -> str:
    """A model for people: its state, why, and its stage tables."""
    lines = [f"{model.model}: {model.state}, generation {model.generation}"]
    if model.weights == "none":
        lines[0] += ", random weights"
    if model.reason:
        lines.append(f"  {model.reason}")
    for name, figures in (("predicted", model.predicted), ("measured", model.measured)):
        if figures.throughput_per_s is not None or figures.latency_s is not None:
            lines.append(
                f"  {name:<9} {_per_second(figures.throughput_per_s)}, {_ms(figures.latency_s)}"
            )
    for pipeline in model.pipelines:
        rows = [("  stage", "node", "blocks", "weights", "sends", "predicted", "measured")]
        rows += [
            (
                f"  {row.stage}",
                row.node,
                f"[{row.blocks[0]}, {row.blocks[1]})",
                _mega(row.weight_bytes),
                f"{row.output_bytes / 1e3:.0f} kB",
                _ms(row.predicted_s),
                _ms(row.measured_s),
            )
            for row in pipeline.stages
        ]
        lines += [f"  pipeline {pipeline.pipeline}", _table(rows, right={3, 4, 5, 6})]
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]], right: set[int]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _mega(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 10e6 else f"{size / 1e6:.0f} MB"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f} ms"


def _per_second(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1f}/s"

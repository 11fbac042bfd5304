"""The latest deployments for people: `amp4ec status --deployments`."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.cli.tables import table
from shared.messages.operation import DeployedStage, Deployment


def describe_deployments(deployments: Sequence[Deployment]) -> str:
    """A row for each, and below it why, and where what went."""
    if not deployments:
        return "nothing was deployed yet"
    head = ("when (UTC)", "model", "generation", "outcome", "took", "bytes", "package")
    cells = table([head, *map(_cells, deployments)], right={2, 4, 5}).splitlines()
    lines = [cells[0]]
    for line, each in zip(cells[1:], deployments, strict=True):
        lines += [line, f"    why: {each.reason}"]
        if each.detail:
            lines.append(f"    given up: {each.detail}")
        lines.append(f"    {_stages(each.stages)}")
    return "\n".join(lines)


def _cells(each: Deployment) -> tuple[str, ...]:
    return (
        each.at[:19].replace("T", " "),
        each.model,
        str(each.generation),
        each.outcome,
        _time(each.took_s),
        _size(each.fetched_bytes),
        f"{each.manifest[:12]} {each.level} {each.runtime}".strip(),
    )


def _stages(stages: Sequence[DeployedStage]) -> str:
    return ", ".join(
        f"{stage.node}[{stage.blocks[0]}:{stage.blocks[1]}] {stage.state}"
        f" ({_size(stage.fetched_bytes)} in {_time(stage.fetch_s)}, loaded in {_time(stage.load_s)})"
        for stage in stages
    )


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1.0 else f"{seconds * 1e3:.0f} ms"


def _size(size_bytes: int) -> str:
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"

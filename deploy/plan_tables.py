"""A plan for people, in a terminal: the pipelines drawn, the figures, and why the alternatives lost."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from deploy.plan_view import LinkView, PipelineView, StageView, view
from deploy.planning import Answer, DryRun, gap_text, kind_of, zone_note
from deploy.tables import Column, console, show, table
from deploy.text import milliseconds, per_second, percent, significant, size
from orchestrator.core.figures import Objective, Predicted, figure
from orchestrator.core.micro_batch import MAX_MICRO_BATCH
from orchestrator.core.plan import PipelinePlan, Plan, PlanRequest

_BAR = 20
_MOST_SHOWN = 6
"""Pipelines that differ; of more, the first are drawn and the rest counted."""
_MOST_NAMED = 3
_PIPELINE = (
    Column("node", wrap=True, least=16),
    Column("blocks"),
    Column("per job", right=True),
    Column("busy", drop=2),
    Column("", right=True),
    Column("weights", right=True, drop=1),
    Column("memory", right=True, drop=3),
    Column(""),
)
_ALTERNATIVES = (
    Column("plan"),
    Column("jobs/s", right=True),
    Column("ms", right=True, drop=1),
    Column("J", right=True, drop=2),
    Column("per 1,000", right=True, drop=3),
    Column("exposed", right=True, drop=4),
    Column("where", wrap=True, drop=5, least=20),
    Column("why not", wrap=True, least=30),
)


def print_answer(answer: Answer) -> None:
    """Print a plan; what was asked for beside it (alternatives and dry run, a front) as well."""
    out = console()
    plan, request = answer.plan, answer.request
    out.print(headline(plan, request), style="bold", soft_wrap=True)
    out.print(f"predicted: {figures(plan.predicted)}", soft_wrap=True)
    views = view(request.profile, plan.pipelines)
    out.print()
    rows = [row for shown in views[:_MOST_SHOWN] for row in _pipeline_rows(shown)]
    show(out, table(_PIPELINE, rows[1:], out.width))
    if len(views) > _MOST_SHOWN:
        left = sum(each.copies for each in views[_MOST_SHOWN:])
        out.print(f"\nand {left} more pipelines; --json has them all")
    for note in (*plan.notes, zone_note(request)):
        if note:
            out.print(f"\nnote: {note}")
    if plan.leaf_counts:
        out.print(f"\nleaves per partition by the paper's rule: {list(plan.leaf_counts)}")
    if answer.dry_run is not None:
        out.print()
        _print_why(out, answer, answer.dry_run)
    if answer.front is not None:
        out.print()
        _print_front(out, answer)


def headline(plan: Plan, request: PlanRequest) -> str:
    """What the plan is, in a line."""
    used = sum(len(pipeline.stages) for pipeline in plan.pipelines)
    there = len(request.usable)
    how = (
        f"best for {plan.objective}" if plan.strategy == "optimal" else f"strategy {plan.strategy}"
    )
    return f"{plan.model}: {kind_of(plan.pipelines)}, {used} of {there} nodes, {how}"


def micro_batch_lines(answer: Answer) -> list[str]:
    """How batches will go through the pipelines: a line for those that allow the same."""
    lines: dict[str, list[str]] = {}
    for pipeline, limits in zip(answer.plan.pipelines, answer.micro_batches, strict=True):
        if limits.most == 1 or limits.wanted is not None:
            size = min(limits.most, limits.wanted or 1)
            text = f"{size} {'item' if size == 1 else 'items'} a message, since {limits.reason}"
        elif limits.most == MAX_MICRO_BATCH:
            text = f"up to {limits.most} items a message, as will be measured"
        else:
            text = f"up to {limits.most} items a message, as will be measured; {limits.reason}"
        lines.setdefault(text, []).append(where((pipeline,)))
    return [
        f"batches by {' + '.join(places[:_MOST_NAMED])}"
        f"{f' + {more} more' if (more := len(places) - _MOST_NAMED) > 0 else ''}: {text}"
        for text, places in lines.items()
    ]


def figures(predicted: Predicted) -> str:
    """The figures in a line; those that are 0 for want of a price, a power or a zone are left out."""
    parts = [per_second(predicted.throughput_per_s), milliseconds(predicted.latency_s)]
    if predicted.energy_j:
        parts.append(f"{significant(predicted.energy_j)} J a job")
    if predicted.cost_per_1000:
        parts.append(f"{significant(predicted.cost_per_1000)} per 1,000 jobs")
    if predicted.exposure_ratio:
        parts.append(f"{percent(predicted.exposure_ratio)} exposed")
    return ", ".join(parts)


def _pipeline_rows(pipeline: PipelineView) -> list[list[str | Text]]:
    """An empty row, and then the way of a job."""
    first, *links = pipeline.links
    rows: list[list[str | Text]] = [[""] * len(_PIPELINE)]
    if pipeline.others:
        first_nodes = " > ".join(stage.node for stage in pipeline.stages)
        named = ", ".join([first_nodes, *pipeline.others][:_MOST_NAMED])
        more = pipeline.copies - _MOST_NAMED
        text = f"{pipeline.copies} of these: {named}" + (f" and {more} more" if more > 0 else "")
        rows.append([text, *[""] * (len(_PIPELINE) - 1)])
    rows.append(_link_row("input", first, "╷"))
    for stage, link in zip(pipeline.stages, links, strict=True):
        rows += [_stage_row(stage), _link_row("", link, "│")]
    rows[-1] = _link_row("result", links[-1], "╵")
    return rows


def _stage_row(stage: StageView) -> list[str | Text]:
    style = "bold red" if stage.bottleneck else ""
    return [
        Text(f"■ {stage.node}", style or "bold"),
        f"[{stage.blocks[0]}, {stage.blocks[1]})",
        milliseconds(stage.seconds),
        Text(_bar(stage.busy_ratio), style or "cyan"),
        percent(stage.busy_ratio),
        size(stage.weight_bytes),
        size(stage.memory_bytes),
        Text("◀ bottleneck", style) if stage.bottleneck else "",
    ]


def _link_row(name: str, link: LinkView, mark: str) -> list[str | Text]:
    style = "bold red" if link.bottleneck else ""
    sent = f"{name} {link.sent}".strip()
    return [
        Text(f"{mark} {sent}", style or "dim"),
        "",
        Text(milliseconds(link.seconds), style or "dim"),
        Text(_bar(link.busy_ratio), style or "dim"),
        Text(percent(link.busy_ratio), style or "dim"),
        "",
        "",
        Text("◀ bottleneck", style) if link.bottleneck else "",
    ]


def _bar(ratio: float) -> str:
    """A bar of eighths, so that small shares can be told apart."""
    eighths = round(min(ratio, 1.0) * _BAR * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[rest]


def _print_why(out: Console, answer: Answer, run: DryRun) -> None:
    """The alternatives beside the plan, the bound, and the dry run."""
    plan = answer.plan
    rows = [_alternative_row("chosen", plan.pipelines, plan.predicted, "")]
    rows += [
        _alternative_row(other.kind, other.pipelines, other.predicted, other.reason)
        for other in plan.alternatives
    ]
    show(out, table(_ALTERNATIVES, rows, out.width))
    slowest = " on the slowest pipeline" if len(plan.pipelines) > 1 else ""
    out.print()
    out.print(
        f"dry run: {per_second(run.saturated.throughput_per_s)} with {run.window} in flight per pipeline "
        f"(predicted {per_second(plan.predicted.throughput_per_s)}), "
        f"{milliseconds(run.alone.latency_s)} one at a time "
        f"(predicted {milliseconds(plan.predicted.latency_s)}{slowest})",
        soft_wrap=True,
    )
    if gap := gap_text(plan):
        out.print(f"the plan is {gap}", soft_wrap=True)
    for text in micro_batch_lines(answer):
        out.print(text, soft_wrap=True)


def _alternative_row(
    kind: str, pipelines: Sequence[PipelinePlan], predicted: Predicted | None, reason: str
) -> list[str | Text]:
    cells = ["", "", "", "", ""] if predicted is None else _cells(predicted)
    return [kind, *cells, where(pipelines), reason]


def _cells(predicted: Predicted) -> list[str]:
    """The five figures for a table; one that is 0 is left out, and a column of such goes."""
    return [
        significant(predicted.throughput_per_s),
        significant(predicted.latency_s * 1e3),
        *(
            significant(value) if value else ""
            for value in (predicted.energy_j, predicted.cost_per_1000)
        ),
        percent(predicted.exposure_ratio) if predicted.exposure_ratio else "",
    ]


def where(pipelines: Sequence[PipelinePlan]) -> str:
    """Nodes and their first and last blocks: `pi-1 0-20 > pi-2 21-52`; of many pipelines the first few."""
    parts = [
        " > ".join(f"{s.node} {s.blocks[0]}-{s.blocks[1] - 1}" for s in pipeline.stages)
        for pipeline in pipelines[:_MOST_NAMED]
    ]
    more = len(pipelines) - _MOST_NAMED
    return " + ".join(parts) + (f" + {more} more" if more > 0 else "")


def _print_front(out: Console, answer: Answer) -> None:
    front = answer.front
    assert front is not None
    out.print(
        f"the front over {', '.join(front.objectives)}: no plan is as good in all and better in one"
    )
    rows = [
        [kind_of(point.pipelines), *_cells(point.predicted), where(point.pipelines), ""]
        for point in front.points
    ]
    show(out, table(_ALTERNATIVES, rows, out.width))
    for note in front.notes:
        out.print(f"note: {note}")


def axis_title(objective: Objective) -> str:
    """An objective with its unit, for an axis."""
    return {
        Objective.THROUGHPUT: "throughput, jobs/s",
        Objective.LATENCY: "latency, ms",
        Objective.ENERGY: "energy, J a job",
        Objective.COST: "cost per 1,000 jobs",
        Objective.EXPOSURE: "exposure, %",
    }[objective]


def axis_value(predicted: Predicted, objective: Objective) -> float:
    """The figure in the unit of `axis_title`."""
    scale = {Objective.LATENCY: 1e3, Objective.EXPOSURE: 100.0}.get(objective, 1.0)
    return figure(predicted, objective) * scale

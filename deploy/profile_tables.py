"""A profile for people: what it sums to, and a line per block or per layer."""

from __future__ import annotations

from deploy.profile_layers import kernel_text
from deploy.profile_report import ProfileReport
from deploy.tables import Column, console, show, table
from deploy.text import amount, milliseconds, size

_BLOCKS = (
    Column("#", right=True),
    Column("block", drop=1, cut=True),
    Column("type", cut=True),
    Column("params", right=True, drop=3),
    Column("macs", right=True),
    Column("weights", right=True, drop=2),
    Column("makes", right=True, drop=4),
    Column("paper", right=True, drop=5),
    Column("ms", right=True),
    Column("cut after", right=True),
)
_LAYERS = (
    Column("#", right=True),
    Column("layer", cut=True),
    Column("type", cut=True),
    Column("params", right=True, drop=3),
    Column("macs", right=True),
    Column("weights", right=True, drop=2),
    Column("makes", right=True, drop=4),
    Column("paper", right=True, drop=5),
    Column("ms", right=True),
    Column("live after", right=True, drop=1),
)


def print_profile(report: ProfileReport, *, layers: bool) -> None:
    """Print it; with `layers` a line per layer, the first column then being the block's number."""
    out = console()
    for line in summary(report):
        out.print(line, soft_wrap=True)
    out.print()
    columns, rows = (_LAYERS, _layer_rows(report)) if layers else (_BLOCKS, _block_rows(report))
    show(out, table(columns, rows, out.width))
    for line in _legend(report):
        out.print(line, style="dim")


def summary(report: ProfileReport) -> list[str]:
    """What the model is and takes in all, in two or three lines."""
    profile, made = report.profile, report.made
    parameters = [row.parameters for row in report.rows() if row.parameters is not None]
    what = [f"{len(profile.blocks)} blocks"]
    if made.layers:
        what.append(f"{sum(1 for layer in made.layers if layer.op)} layers")
        what.append(f"{amount(sum(parameters))} parameters")
    what += [
        f"{amount(sum(block.macs for block in profile.blocks))} multiply-adds",
        f"{size(sum(block.weight_bytes for block in profile.blocks))} of weights",
    ]
    lines = [f"{profile.model}: {', '.join(what)}"]
    if profile.whole:
        lines.append(f"served whole: {profile.whole}")
    by = f" with {made.runtime}" if made.runtime else ""
    on = f" on {made.machine}" if made.machine else ""
    takes = milliseconds(profile.work_s - profile.input_seconds)
    lines.append(f"measured{by}{on}: {takes} at 1.0 CPU")
    ends = f"input {size(profile.input_bytes)}, output {size(profile.output_bytes)}"
    if profile.input_seconds:
        ends += f"; {milliseconds(profile.input_seconds)} more to read the input"
    if profile.runtime_bytes:
        ends += f"; the runtime itself takes {size(profile.runtime_bytes)} of memory"
    return [*lines, ends]


def _block_rows(report: ProfileReport) -> list[list[str]]:
    profile = report.profile
    cuts = {cut.index: cut for cut in profile.cuts}
    rows = []
    for block, row in zip(profile.blocks, report.rows(), strict=True):
        cut = cuts.get(block.index + 1)
        crossing = "" if cut is None else size(cut.bytes)
        if cut is not None and cut.tensors > 1:
            crossing = f"{cut.tensors}x {crossing}"
        rows.append(
            [
                str(block.index),
                block.name,
                row.kind,
                _known(row.parameters),
                amount(block.macs),
                size(block.weight_bytes),
                "" if row.activation_bytes is None else size(row.activation_bytes),
                _known(row.paper_cost),
                f"{block.seconds * 1e3:.3f}",
                crossing,
            ]
        )
    return rows


def _layer_rows(report: ProfileReport) -> list[list[str]]:
    return [
        [
            str(layer.block),
            layer.name,
            kernel_text(layer),
            amount(layer.parameters) if layer.parameters else "",
            amount(layer.macs) if layer.macs else "",
            size(layer.weight_bytes) if layer.weight_bytes else "",
            size(layer.activation_bytes) if layer.op else "",
            _known(layer.paper_cost),
            "" if layer.seconds is None else f"{layer.seconds * 1e3:.3f}",
            size(layer.live_bytes) if layer.op else "",
        ]
        for layer in report.made.layers
    ]


def _legend(report: ProfileReport) -> list[str]:
    lines = [
        "makes: bytes of what it computes; cut after: what a cut there would send; dwconv: depthwise"
    ]
    if report.profile.leaves:
        total = sum(leaf.cost for leaf in report.profile.leaves)
        lines.append(
            f"paper: the paper's cost, {amount(total)} in all; its cuts go by that, ours by ms"
        )
    return lines


def _known(value: int | None) -> str:
    return "" if value is None else amount(value)

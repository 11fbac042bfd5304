"""Figures as pictures: throughput, latency and memory over the number of nodes, and what levels bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from deploy.bench.cells import MAIN_LEVEL, Kind, PlanKind
from deploy.bench.figures import Figures, Table
from deploy.bench.subjects import title_of
from deploy.drawing import FAINT, INK, PALETTE, RED, figure, plain, save

DRAWINGS: Mapping[str, str] = {
    "throughput.svg": "Throughput of 1 to 4 nodes with one CPU in all, as a share of the whole model's in one"
    " process with one CPU",
    "levels.svg": "Inferences per second of three nodes in three stages, by runtime and level",
    "latency.svg": "Latency of a job alone, as a multiple of an inference in one process",
    "memory.svg": "Memory of the node that needs most, and of one process with the whole model",
}
"""By file name, with what each shows."""
_GROUP = 0.8
"""Of the room between two models."""


def draw_all(table: Table, folder: Path) -> list[Path]:
    """Write all drawings below `folder`; those for which nothing was measured are left out."""
    draws: Mapping[str, Callable[[Table, Path], bool]] = {
        "throughput.svg": _throughput,
        "levels.svg": _levels,
        "latency.svg": _latency,
        "memory.svg": _memory,
    }
    return [folder / name for name, draw in draws.items() if draw(table, folder / name)]


def _throughput(table: Table, path: Path) -> bool:
    return _over_nodes(
        table, path, lambda each: (each.ratio.median, each.ratio.low, each.ratio.high),
        "of the whole model's rate", line=1.0,
    )  # fmt: skip


def _latency(table: Table, path: Path) -> bool:
    return _over_nodes(
        table, path,
        lambda each: (each.latency_ratio.median, each.latency_ratio.low, each.latency_ratio.high),
        "of an inference in one process", line=1.0, plans=("stages",),
    )  # fmt: skip


def _memory(table: Table, path: Path) -> bool:
    def of(each: Figures) -> tuple[float, float, float]:
        mb = each.resident_most_bytes / 1e6
        return mb, mb, mb

    return _over_nodes(table, path, of, "MB", plans=("stages",), whole=_whole_mb)


def _whole_mb(each: Figures) -> float:
    return each.measured.whole_resident_bytes / 1e6


def _over_nodes(
    table: Table,
    path: Path,
    of: Callable[[Figures], tuple[float, float, float]],
    unit: str,
    *,
    line: float | None = None,
    plans: Sequence[PlanKind] = ("stages", "free"),
    whole: Callable[[Figures], float] | None = None,
) -> bool:
    """A panel for each runtime at level O1: groups of models, a bar for each number of nodes.

    `of` gives a bar's height and the ends of its spread. The free plan is a mark upon the bar. `whole` is
    what one process has, a dash across the group.
    """
    kinds = [kind for kind in table.kinds() if kind.level == MAIN_LEVEL]
    if not kinds:
        return False
    models, nodes = table.models(), table.nodes()
    picture = figure(9.0, 2.9 * len(kinds))
    panels = picture.subplots(len(kinds), 1, squeeze=False, sharex=True)[:, 0]
    width = _GROUP / len(nodes)
    for axes, kind in zip(map(plain, panels), kinds, strict=True):
        for place, model in enumerate(models):
            for index, count in enumerate(nodes):
                at = place + (index - (len(nodes) - 1) / 2) * width
                colour = PALETTE[index % len(PALETTE)]
                stages = table.get(model, kind, count, "stages")
                if stages is not None:
                    _bar(axes, of(stages), at, width=width, colour=colour)
                free = table.get(model, kind, count, "free")
                if free is not None and "free" in plans:
                    axes.plot(at, of(free)[0], "D", color=INK, markersize=4, zorder=3)
            any_of = table.of(model, kind)
            if whole is not None and any_of:
                ends = [place - _GROUP / 2, place + _GROUP / 2]
                axes.plot(ends, [whole(any_of[0])] * 2, color=RED, linewidth=1.2, zorder=3)
        if line is not None:
            axes.axhline(line, color=RED, linewidth=1, zorder=0)
        axes.set_title(f"{kind.runtime}, level {kind.level}", fontsize=10, loc="left", color=INK)
        axes.set_ylabel(unit, fontsize=8, color=INK)
        axes.grid(axis="y", color=FAINT, alpha=0.25)
        axes.set_axisbelow(True)
    panels[-1].set_xticks(range(len(models)), [title_of(model) for model in models])
    _legend(panels[0], nodes, free="free" in plans, line=line is not None or whole is not None)
    save(picture, path)
    return True


def _bar(
    axes: Axes, ends: tuple[float, float, float], at: float, *, width: float, colour: str
) -> None:
    """A bar with its spread as a line upon it; `ends` are its height and the spread's."""
    value, low, high = ends
    axes.bar(at, value, width * 0.9, color=colour)
    if low < high:
        axes.vlines(at, low, high, color=INK, linewidth=1)


def _legend(axes: Axes, nodes: Sequence[int], *, free: bool, line: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Patch | Line2D] = [
        Patch(color=PALETTE[index % len(PALETTE)], label=f"{count} node{'s' * (count > 1)}")
        for index, count in enumerate(nodes)
    ]
    if free:
        handles.append(
            Line2D([], [], marker="D", linestyle="", color=INK, markersize=4, label="free plan")
        )
    if line:
        handles.append(Line2D([], [], color=RED, linewidth=1.2, label="one process"))
    axes.legend(
        handles=handles, fontsize=8, frameon=False, ncols=len(handles), loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
    )  # fmt: skip


def _levels(table: Table, path: Path) -> bool:
    """Models in groups, a bar for each runtime with level, where all that there are were measured."""
    nodes = 3 if 3 in table.nodes() else table.nodes()[-1]
    kinds: list[Kind] = list(reversed(table.kinds()))
    if len(kinds) < 2:
        return False
    picture = figure(9.0, 3.4)
    axes = plain(picture.subplots())
    width = _GROUP / len(kinds)
    for index, kind in enumerate(kinds):
        for place, model in enumerate(table.models()):
            each = table.get(model, kind, nodes, "stages")
            if each is None:
                continue
            at = place + (index - (len(kinds) - 1) / 2) * width
            axes.bar(
                at, each.per_s.median, width * 0.9, color=PALETTE[index],
                label=str(kind) if place == 0 else None,
            )  # fmt: skip
            axes.annotate(
                f"{each.per_s.median:.3g}", (at, each.per_s.median), ha="center", va="bottom",
                fontsize=7, color=INK,
            )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5 * min(bar.get_height() for bar in axes.patches))  # type: ignore[attr-defined]
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xticks(range(len(table.models())), [title_of(model) for model in table.models()])
    axes.set_ylabel("per second", fontsize=8, color=INK)
    axes.set_title(f"{nodes} nodes in stages, one CPU in all", fontsize=10, loc="left", color=INK)
    axes.legend(
        fontsize=8, frameon=False, ncols=len(kinds), loc="lower right", bbox_to_anchor=(1.0, 1.0)
    )
    save(picture, path)
    return True

"""`amp4ec bench`: what nodes in a cluster give, beside one process with the same CPU."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from deploy.bench.cells import KINDS, MAIN_LEVEL, SHARES, Kind, cells_of
from deploy.cli.options import json_option
from deploy.cli.output import note, print_json, print_line
from shared.errors import ConfigurationError

T = TypeVar("T")
_MODELS = ("mobilenet_v2", "efficientnet_b0", "encoder", "resnet50", "vit_b_16")
"""Of `deploy.bench.subjects`, which is loaded when something is measured."""
_QUICK_MODELS, _QUICK_NODES = ("mobilenet_v2",), (1, 3)


def _names(text: str) -> tuple[str, ...]:
    return tuple(word for part in text.split(",") if (word := part.strip()))


def _listed(option: str, parse: Callable[[str], T]) -> Callable[..., tuple[T, ...] | None]:
    """A callback of click's: words between commas, each parsed; None where the option is not given."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[T, ...] | None:
        if value is None:
            return None
        try:
            found = tuple(dict.fromkeys(map(parse, _names(value))))
        except (ConfigurationError, ValueError) as error:
            raise click.BadParameter(str(error), ctx, param) from error
        if not found:
            raise click.BadParameter(f"{option} names nothing", ctx, param)
        return found

    return read


def _kind(text: str) -> Kind:
    """A runtime, or a runtime with a level, as in `torch:O1`."""
    for kind in KINDS:
        if text in (f"{kind.runtime}:{kind.level}", str(kind)):
            return kind
    raise ConfigurationError(
        "a runtime with its level",
        expected=" | ".join(f"{kind.runtime}:{kind.level}" for kind in KINDS),
        got=text,
    )


def _count(text: str) -> int:
    if text not in map(str, SHARES):
        raise ConfigurationError(
            "a number of nodes", expected=" | ".join(map(str, SHARES)), got=text
        )
    return int(text)


@click.command("bench")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("amp4ec-bench"),
    show_default=True,
    help="The folder for raw data, page and drawings; a run that was cut off goes on with what is there.",
)
@click.option(
    "--models",
    metavar="NAME,...",
    callback=_listed("--models", str),
    help=f"Torchvision's names, or `encoder` (BERT-like, text).  [default: {','.join(_MODELS)}]",
)
@click.option(
    "--nodes",
    metavar="N,...",
    callback=_listed("--nodes", _count),
    help="How many nodes share the one CPU.  [default: 1,2,3,4]",
)
@click.option(
    "--kinds",
    metavar="RUNTIME:LEVEL,...",
    callback=_listed("--kinds", _kind),
    help="Runtimes with levels; torch:O0 is eager.  "
    f"[default: {','.join(f'{kind.runtime}:{kind.level}' for kind in KINDS)}]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.2, 600.0),
    default=1.0,
    show_default=True,
    help="Of a stretch under load.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="Turns of whole model and cluster, for medians and spreads.",
)
@click.option(
    "--quick", is_flag=True, help="MobileNetV2, 1 and 3 nodes, level O1: about two minutes."
)
@click.option(
    "--page-only", is_flag=True, help="Measure nothing: write page and drawings of what is there."
)
@json_option
def bench_command(
    *,
    output: Path,
    models: tuple[str, ...] | None,
    nodes: tuple[int, ...] | None,
    kinds: tuple[Kind, ...] | None,
    seconds: float,
    rounds: int,
    quick: bool,
    page_only: bool,
    as_json: bool,
) -> None:
    """Measure throughput, latency, memory and bytes of models on 1 to 4 nodes of this machine.

    Nodes are processes with a share of one CPU each, kept by cgroup: this needs root. Every figure stands
    beside that of one process which runs the whole model with the same runtime and one CPU. All of it
    takes about 40 minutes on two quiet cores.

    \b
    Example:
        amp4ec bench --quick
        amp4ec bench --models resnet50 --nodes 1,3 --kinds onnxruntime:O1 --output resnet
    """  # noqa: D301
    from deploy.bench.cell import Lengths
    from deploy.bench.drawings import draw_all
    from deploy.bench.figures import Table
    from deploy.bench.page import write_page
    from deploy.bench.raw import RAW, RawFile
    from deploy.bench.run import Bench
    from deploy.bench.subjects import subject_of
    from deploy.machine import this_machine

    names = [subject_of(name).name for name in models or (_QUICK_MODELS if quick else _MODELS)]
    if kinds is None:
        kinds = tuple(kind for kind in KINDS if kind.level == MAIN_LEVEL or not quick)
    cells = list(cells_of(names, kinds, nodes or (_QUICK_NODES if quick else tuple(SHARES))))
    output.mkdir(parents=True, exist_ok=True)
    raw = RawFile.open(output / RAW)
    if not page_only:
        with tempfile.TemporaryDirectory(prefix="amp4ec-bench-") as scratch:
            bench = Bench(
                cells=cells,
                lengths=Lengths(seconds=seconds, rounds=rounds),
                raw=raw,
                machine=this_machine(),
                directory=Path(scratch),
                say=note,
            )
            asyncio.run(bench.run())
    lines = raw.latest(raw.cells())
    if not lines:
        raise ConfigurationError(
            f"there is nothing in {raw.path} to draw",
            expected="what an earlier run measured; leave out --page-only",
        )
    table = Table(lines)
    drawn = draw_all(table, output)
    written = [write_page(lines, [path.name for path in drawn], output), *drawn]
    if as_json:
        print_json([line for line in lines if line.cell in cells])
        return
    for path in written:
        print_line(str(path))

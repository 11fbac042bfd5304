"""`amp4ec experiment`: measure, and write down what was found."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from deploy.cli.options import json_option
from deploy.cli.output import note, print_json, print_line
from shared.errors import ConfigurationError

T = TypeVar("T")
_FAILED = 1


@click.command("experiment")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--minutes", type=float, default=1.0, show_default=True, help="How long one round measures."
)
@click.option(
    "--repeat", type=int, default=3, show_default=True, help="How many rounds each case has."
)
@click.option(
    "--scale",
    type=float,
    default=0.5,
    show_default=True,
    help="What the CPUs of the paper's devices are multiplied with.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "docker"]),
    default="local",
    show_default=True,
    help="Processes with a CPU share each, or containers, which have memory limits as well.",
)
@click.option(
    "--case",
    "cases",
    multiple=True,
    metavar="TEXT",
    help="Only cases with this in their name; may be given several times.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of inputs and their order.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("experiments"),
    show_default=True,
    help="The folder for raw data, drawings and RESULTS.md.",
)
@click.option("--results", "only_results", is_flag=True, help="Measure nothing; write RESULTS.md.")
@json_option
@click.pass_context
def experiment_command(
    ctx: click.Context,
    *,
    names: tuple[str, ...],
    minutes: float,
    repeat: int,
    scale: float,
    cases: tuple[str, ...],
    seed: int,
    engine: str,
    output: Path,
    only_results: bool,
    as_json: bool,
) -> None:
    """Run experiments, and write tables and drawings from what they gave; without NAME, list them.

    What is recorded already, as long or longer, is not measured again: end it at any time, and start it again
    to go on; on another machine, rounds that were not finished are begun again. Give `all` for all: it goes
    through them round by round, the most telling first. A quiet machine with at least two cores is needed,
    and the right to limit CPU by cgroup.

    \b
    Example:
        amp4ec experiment
        amp4ec experiment table-1 --minutes 5 --output results
        amp4ec experiment all --output results
    """  # noqa: D301
    from deploy.experiments.case import Engine, Settings
    from deploy.experiments.catalogue import EXPERIMENTS
    from deploy.experiments.results import write_results
    from deploy.experiments.run import missing, run

    settings = Settings(
        minutes=minutes, repeat=repeat, scale=scale, seed=seed, engine=Engine(engine)
    )
    wanted = list(EXPERIMENTS) if names == ("all",) else list(names)
    for name in wanted:
        if name not in EXPERIMENTS:
            raise ConfigurationError(
                "no such experiment", expected=f"all, or some of {', '.join(EXPERIMENTS)}", got=name
            )
    failed: dict[str, str] = {}
    if not wanted and not only_results:
        rows: list[dict[str, str | int]] = []
        for each in EXPERIMENTS.values():
            todo = missing([each], settings, output)
            seconds = sum(round_.case.seconds for round_ in todo)
            rows.append({"name": each.name, "title": each.title, "missing_s": round(seconds)})
            if not as_json:
                print_line(f"{each.name:<24} {seconds / 60:>5.0f} min to go  {each.title}")
        if as_json:
            print_json(rows)
        else:
            todo = missing(list(EXPERIMENTS.values()), settings, output)
            total_s = sum(round_.case.seconds for round_ in todo)
            print_line(
                f"{'all':<24} {total_s / 60:>5.0f} min to go; what several have in common counts once"
            )
        return
    if wanted and not only_results:
        chosen = [EXPERIMENTS[name].only(cases) for name in wanted]
        try:
            failed = asyncio.run(_until_terminated(run(chosen, settings, output, note)))
        except asyncio.CancelledError:
            raise click.Abort from None  # by SIGTERM; what is recorded stays
    path = write_results(output)
    if as_json:
        print_json({"results": str(path), "failed": failed})
    else:
        print_line(f"written: {path}")
        for name, why in failed.items():
            note(f"failed: {name}: {why}")
    if failed:
        ctx.exit(_FAILED)


async def _until_terminated(work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. SIGTERM ends it as Ctrl-C does: clusters are taken down first."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task

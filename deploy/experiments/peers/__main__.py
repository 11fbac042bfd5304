"""`python -m deploy.experiments.peers`: AMP4EC and its peers on the same cores, round by round."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from deploy.experiments.peers.report import print_table
from deploy.experiments.peers.run import EXPERIMENT, Plan, run
from deploy.experiments.peers.systems import PAPER_SHARES, SYSTEMS, Bench, choose
from deploy.experiments.records import RecordFile
from orchestrator.core.dispatch_settings import default_window
from shared.errors import Amp4ecError


@click.command(context_settings={"max_content_width": 100})
@click.option("--scale", default=0.5, show_default=True, help="Of the paper's 1.0/0.6/0.4 CPU.")
@click.option("--seconds", default=20.0, show_default=True, help="What counts, in each round.")
@click.option("--settle", default=12.0, show_default=True, help="Seconds of load before it.")
@click.option("--watch", default=60.0, show_default=True, help="Seconds to come back in.")
@click.option("--repeat", default=3, show_default=True, help="Rounds of all systems.")
@click.option("--window", type=int, help="Items under way; what AMP4EC's dispatcher lets in.")
@click.option(
    "--only", default="", help="Names with commas between: " + ", ".join(s.name for s in SYSTEMS)
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("experiments"),
    show_default=True,
    help="Where records, logs and the exported model go; a run goes on with what is there.",
)
@click.option("--table", is_flag=True, help="Measure nothing, print what is there.")
def main(
    *,
    scale: float,
    seconds: float,
    settle: float,
    watch: float,
    repeat: int,
    window: int | None,
    only: str,
    data: Path,
    table: bool,
) -> None:
    """Measure AMP4EC and its peers: throughput, latency, memory, and what a killed stage costs.

    Example: python -m deploy.experiments.peers --scale 0.5 --seconds 20 --repeat 3
    """
    plan = Plan(seconds=seconds, settle_s=settle, watch_s=watch, rounds=repeat)
    records = RecordFile(data / f"{EXPERIMENT}.jsonl")
    failed: list[str] = []
    try:
        systems = choose([name.strip() for name in only.split(",") if name.strip()])
        bench = Bench(
            directory=(data / EXPERIMENT).resolve(),
            shares=tuple(round(share * scale, 4) for share in PAPER_SHARES),
            window=window or default_window(len(PAPER_SHARES)),
        )
        if not table:
            _say(f"{len(systems)} systems: about {plan.total_s(len(systems)) / 60:.0f} minutes")
            failed += asyncio.run(run(plan, bench, systems, records, _say))
        print_table(records.read())
    except Amp4ecError as error:
        raise click.ClickException(str(error)) from error
    for reason in failed:
        _say(f"not measured: {reason}")
    sys.exit(1 if failed else 0)


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()

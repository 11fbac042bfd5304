"""`amp4ec plan`: what should run where, how good it would be, and why not otherwise."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from deploy.cli.files import check_output, read_file
from deploy.cli.goal import wish_options
from deploy.cli.modelling import modelling_options
from deploy.cli.options import Common, common_options, json_option
from deploy.cli.output import Progress, note, print_json
from deploy.modelling import Modelling
from deploy.planning import Wish, answer, parse_axes
from orchestrator.core.plan import PlanRequest
from shared.cluster_file import load_cluster
from shared.errors import ConfigurationError
from shared.profile import ModelProfile
from shared.profile_file import load_profile

_PICTURE = click.Path(dir_okay=False, path_type=Path)
_AXES = "latency,throughput"


@click.command("plan")
@click.argument("model", required=False)
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    help="Plan with a saved profile (`amp4ec profile MODEL --output FILE`) in the place of MODEL.",
)
@click.option(
    "--cluster", type=click.Path(path_type=Path), help="The nodes: a TOML file of [[node]] tables."
)
@click.option(
    "--live", is_flag=True, help="Plan for the nodes of the running cluster, as measured."
)
@wish_options
@click.option(
    "--explain", is_flag=True, help="Show the alternatives, why they lost, and a dry run."
)
@click.option("--pareto", type=_PICTURE, help="Draw the front of plans that nothing beats.")
@click.option(
    "--axes",
    metavar="A,B[,C]",
    help="The front's two objectives, and a third for colour; without --pareto the front is only printed."
    "  [default: latency,throughput]",
)
@click.option("--draw", type=_PICTURE, help="Draw the plan: a .png, .svg or .pdf file.")
@modelling_options
@json_option
@common_options
def plan_command(
    *,
    common: Common,
    model: str | None,
    profile: Path | None,
    cluster: Path | None,
    live: bool,
    wish: Wish,
    explain: bool,
    pareto: Path | None,
    axes: str | None,
    draw: Path | None,
    how: Modelling,
    as_json: bool,
) -> None:
    """Say what should run where: the best plan of one node, copies, pipelines and mixtures.

    MODEL is what `amp4ec serve` takes, a saved profile (FILE.json), or with --live the name of a model that
    is served. From a profile and --cluster it plans with nothing running: two files are enough.

    \b
    Example:
        amp4ec plan --profile p.json --cluster c.toml --explain --draw plan.png
        amp4ec plan mobilenet_v2 --live --objective latency=0.7,cost=0.3 --max-latency 200ms
    """  # noqa: D301
    if model is not None and profile is None and model.endswith(".json"):
        profile, model = Path(model), None
    _check_sources(model, profile, cluster, live=live)
    check_output("--pareto", pareto, picture=True)
    check_output("--draw", draw, picture=True)
    over = parse_axes(axes or _AXES) if axes is not None or pareto is not None else ()
    if live:
        assert model is not None
        request = _live(common, model, how, wish)
    else:
        assert cluster is not None
        # The small file first: a slip in it need not wait until a model is measured
        nodes = load_cluster(read_file("--cluster", cluster))
        request = wish.request(_profile(model, profile, how), nodes)
    given = answer(request, explain=explain, axes=over, micro_batch=wish.micro_batch)
    if draw is not None:
        from deploy.drawing_plan import draw_plan

        draw_plan(given, draw)
        note(f"drawn {draw}")
    if pareto is not None:
        from deploy.drawing_front import draw_front

        draw_front(given, pareto)
        note(f"drawn {pareto}")
    if as_json:
        print_json(given.document())
        return
    from deploy.plan_tables import print_answer

    print_answer(given)


def _check_sources(
    model: str | None, profile: Path | None, cluster: Path | None, *, live: bool
) -> None:
    """Refuse too little or too much to plan from."""
    if model is None and profile is None:
        raise ConfigurationError(
            "nothing to plan for",
            expected="MODEL, or --profile FILE (made by `amp4ec profile MODEL --output FILE`)",
            got="neither",
        )
    if model is not None and profile is not None:
        raise ConfigurationError(
            "two models to plan for", expected="MODEL or --profile", got=f"{model} and {profile}"
        )
    if (cluster is not None) == live:
        raise ConfigurationError(
            "no nodes to plan for" if not live else "nodes from two places",
            expected="--cluster FILE with [[node]] tables, or --live for the running cluster",
            got="both" if live else "neither",
        )
    if live and model is None:
        raise ConfigurationError(
            "--live has the model measured for the cluster's nodes",
            expected="MODEL in the place of --profile",
            got=f"--profile {profile}",
        )


def _profile(model: str | None, saved: Path | None, how: Modelling) -> ModelProfile:
    if saved is not None:
        return load_profile(read_file("--profile", saved))
    assert model is not None
    from deploy.profile_model import profile_model

    with Progress(f"profiling {model}") as progress:
        return profile_model(model, how, layers=False, step=progress.step).profile


def _live(common: Common, model: str, how: Modelling, wish: Wish) -> PlanRequest:
    from deploy.plan_live import ask

    with Progress(f"asking the orchestrator about {model}") as progress:
        known = asyncio.run(ask(common.broker, common.root, model, how, progress.step))
    here = wish.at(known.broker_zone, known.orchestrator_zone)
    return here.request(known.profile, known.nodes)

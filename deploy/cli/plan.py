"""`amp4ec plan`: what should run where, how good it would be, and why not otherwise."""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli.files import check_output, read_file
from deploy.cli.goal import wish_options
from deploy.cli.modelling import modelling_options
from deploy.cli.options import json_option
from deploy.cli.output import Progress, note, print_json
from deploy.modelling import Modelling
from deploy.planning import Wish, answer
from shared.cluster_file import load_cluster
from shared.errors import ConfigurationError
from shared.profile import ModelProfile
from shared.profile_file import load_profile

_PICTURE = click.Path(dir_okay=False, path_type=Path)


@click.command("plan")
@click.argument("model", required=False)
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    help="Plan with a saved profile (`amp4ec profile MODEL --output FILE`) in the place of MODEL.",
)
@click.option(
    "--cluster",
    type=click.Path(path_type=Path),
    required=True,
    help="The nodes: a TOML file of [[node]] tables.",
)
@wish_options
@click.option(
    "--explain", is_flag=True, help="Show the alternatives, why they lost, and a dry run."
)
@click.option("--draw", type=_PICTURE, help="Draw the plan: a .png, .svg or .pdf file.")
@modelling_options
@json_option
def plan_command(
    *,
    model: str | None,
    profile: Path | None,
    cluster: Path,
    wish: Wish,
    explain: bool,
    draw: Path | None,
    how: Modelling,
    as_json: bool,
) -> None:
    """Say what should run where: the best plan of one node, copies, pipelines and mixtures.

    MODEL is what `amp4ec serve` takes. With --profile nothing runs: two files are enough.

    \b
    Example:
        amp4ec plan --profile p.json --cluster c.toml --explain --draw plan.png
    """  # noqa: D301
    _check_sources(model, profile)
    check_output("--draw", draw, picture=True)
    # The small file first: a slip in it need not wait until a model is measured
    nodes = load_cluster(read_file("--cluster", cluster))
    given = answer(wish.request(_profile(model, profile, how), nodes), explain=explain)
    if draw is not None:
        from deploy.drawing_plan import draw_plan

        draw_plan(given, draw)
        note(f"drawn {draw}")
    if as_json:
        print_json(given.document())
        return
    from deploy.plan_tables import print_answer

    print_answer(given)


def _check_sources(model: str | None, profile: Path | None) -> None:
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


def _profile(model: str | None, saved: Path | None, how: Modelling) -> ModelProfile:
    if saved is not None:
        return load_profile(read_file("--profile", saved))
    assert model is not None
    from deploy.profile_model import profile_model

    with Progress(f"profiling {model}") as progress:
        return profile_model(model, how, layers=False, step=progress.step).profile

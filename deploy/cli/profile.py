"""`amp4ec profile`: what each layer and block of a model is, weighs and takes."""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli.files import check_output, read_file
from deploy.cli.modelling import modelling_options
from deploy.cli.options import json_option
from deploy.cli.output import Progress, note, print_json
from deploy.modelling import Modelling
from shared import logs
from shared.codec import encode_json

_SAVED = ".json"


@click.command("profile")
@click.argument("model")
@modelling_options
@click.option("--layers", is_flag=True, help="Time and print each layer, not only each block.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Save the profile as JSON, for `amp4ec plan --profile`.",
)
@click.option(
    "--draw",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw time, multiply-adds and bytes per block: a .png, .svg or .pdf file.",
)
@click.option("--log-level", type=click.Choice(logs.LEVELS), help="How much to log.")
@json_option
def profile_command(
    *,
    model: str,
    how: Modelling,
    layers: bool,
    output: Path | None,
    draw: Path | None,
    log_level: str | None,
    as_json: bool,
) -> None:
    """Measure MODEL on this machine and show what its layers and blocks cost.

    MODEL is a torchvision model's name, a torch.export archive (FILE.pt2), an ONNX file (FILE.onnx) or
    module:factory; or a profile that was saved before (FILE.json), which is shown without measuring.

    \b
    Example:
        amp4ec profile mobilenet_v2 --weights none --output p.json --draw p.png
    """  # noqa: D301
    from deploy.profile_report import read_report
    from deploy.profile_tables import print_profile

    if log_level is not None:
        logs.set_level(log_level)
    check_output("--output", output)
    check_output("--draw", draw, picture=True)
    if model.endswith(_SAVED):
        report = read_report(read_file("MODEL", Path(model)))
    else:
        from deploy.profile_model import profile_model

        with Progress(f"profiling {model}") as progress:
            report = profile_model(model, how, layers=layers, step=progress.step)
    document = report.document()
    if output is not None:
        output.write_bytes(encode_json(document) + b"\n")
        note(f"saved {output}")
    if draw is not None:
        from deploy.drawing_profile import draw_profile

        draw_profile(report, draw)
        note(f"drawn {draw}")
    if as_json:
        print_json(document)
    else:
        print_profile(report, layers=layers)

"""`amp4ec serve` and `amp4ec stop`."""

from __future__ import annotations

import asyncio

import click

from deploy.cli.options import DURATION, NAME, Common, common_options, json_option, serve_options
from deploy.cli.output import Progress, note, print_json, print_line
from deploy.cli.status import describe_model
from deploy.flags import ServeFlags


@click.command("serve")
@click.argument("model")
@serve_options
@json_option
@common_options
def serve_command(*, common: Common, model: str, flags: ServeFlags, as_json: bool) -> None:
    """Have MODEL served: a torchvision classification model's name, FILE.onnx, FILE.pt2 (torch.export),
    or module:factory, a Python callable that gives a torch.nn.Module.

    Imports and times the model on this machine, gives it to the orchestrator, and returns when it is served
    or says why not. Serving it again replaces it without a gap. A factory is called on this machine only.

    \b
    Example:
        amp4ec serve mobilenet_v2 --weights none --min-stages 3 --max-stages 3
        amp4ec serve nets/birds.onnx --preprocess imagenet --labels birds.txt
        amp4ec serve mynets:Encoder --input-shape ids:1x128:int64 --input-shape mask:1x128:int64
    """  # noqa: D205, D301
    from deploy.serve import serve

    flags.source(model)  # wrong usage is said before anything is done

    with Progress(f"serving {model}") as progress:
        state = asyncio.run(serve(common.broker, common.root, model, flags, progress.step))
    if state.weights == "none":
        note("the weights are random (--weights none): the labels of answers mean nothing")
    if as_json:
        print_json(state)
    else:
        print_line(describe_model(state))


@click.command("stop")
@click.argument("model", type=NAME)
@click.option(
    "--timeout", type=DURATION, default="30s", show_default=True, help="How long to wait."
)
@json_option
@common_options
def stop_command(*, common: Common, model: str, timeout: float, as_json: bool) -> None:
    """Have MODEL not served any more; its stages are unloaded.

    \b
    Example:
        amp4ec stop mobilenet_v2
    """  # noqa: D301
    from deploy.serve import stop

    asyncio.run(stop(common.broker, common.root, model, timeout))
    if as_json:
        print_json({"model": model, "state": "stopped"})
    else:
        print_line(f"{model} is not served any more")

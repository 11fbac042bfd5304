"""The command group: settings, logging, exit codes, and errors as one line each.

Exit codes: 0 done, 1 the work failed, 2 wrong usage, 3 the broker is not reachable.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import click

from deploy import settings
from deploy.cli.options import GROUP, group_options
from deploy.cli.output import note, print_json
from deploy.supervisor import follow_parent
from shared import logs
from shared.errors import Amp4ecError, BrokerUnreachableError, ConfigurationError

log = logs.get_log(__name__)

FAILED, USAGE, UNREACHABLE = 1, 2, 3

_COMMANDS = {
    "broker": "deploy.cli.broker",
    "join-token": "deploy.cli.broker",
    "orchestrator": "deploy.cli.services",
    "agent": "deploy.cli.services",
    "up": "deploy.cli.up",
    "docker": "deploy.cli.docker",
    "serve": "deploy.cli.serving",
    "stop": "deploy.cli.serving",
    "infer": "deploy.cli.infer",
    "status": "deploy.cli.status",
    "top": "deploy.cli.top",
    "events": "deploy.cli.events",
    "story": "deploy.cli.story",
    "cordon": "deploy.cli.nodes",
    "drain": "deploy.cli.nodes",
    "uncordon": "deploy.cli.nodes",
    "options": "deploy.cli.operating",
    "health": "deploy.cli.operating",
    "profile": "deploy.cli.profile",
    "plan": "deploy.cli.plan",
    "bench": "deploy.cli.bench",
    "experiment": "deploy.cli.experiment",
    "doctor": "deploy.cli.doctor",
}
_EXTRAS = {
    "torch": "agent,torch",
    "safetensors": "agent,torch",
    "onnxruntime": "agent,onnx",
    "onnx": "orchestrator,onnx",
    "torchvision": "orchestrator",
    "PIL": "agent",
    "psutil": "agent",
    "aiohttp": "web",
    "rich": "deploy",
    "textual": "deploy",
    "matplotlib": "deploy",
    "cryptography": "deploy",
    "docker": "deploy",
    "packaging": "deploy",
    "av": "camera",
    "watchdog": "camera",
}
"""Which extra brings a module that a bare install lacks."""


class _Commands(click.Group):
    """Imports a command's module when the command is used: `infer` loads nothing of `serve`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = getattr(importlib.import_module(module), f"{cmd_name.replace('-', '_')}_command")
        assert isinstance(command, click.Command)
        return command


def _read_config(ctx: click.Context, _: click.Parameter, value: Path | None) -> Path | None:
    path = value or settings.find(os.environ, Path.cwd())
    if path is None:
        return None
    group = ctx.command
    assert isinstance(group, click.Group)
    commands = {
        name: {param.name for param in command.params if param.name}
        for name in group.list_commands(ctx)
        if (command := group.get_command(ctx, name)) is not None
    }
    try:
        ctx.default_map = settings.check(settings.load(path), GROUP, commands)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    return path


def _version() -> str:
    try:
        return version("amp4ec")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+checkout"


@click.group(
    cls=_Commands,
    context_settings={
        "auto_envvar_prefix": "AMP4EC",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
    epilog="Settings come from flags, then from AMP4EC_* environment variables (AMP4EC_BROKER, "
    "AMP4EC_SERVE_TIMEOUT, ...), then from one TOML file: the one that --config or AMP4EC_CONFIG "
    "names, else the first of ./amp4ec.toml, ~/.config/amp4ec/config.toml and /etc/amp4ec.toml. "
    "Exit codes: 0 done, 1 the work failed, 2 wrong usage, 3 broker not reachable.",
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="A TOML file with settings.  [default: the first of the places below]",
)
@group_options
@click.version_option(_version(), prog_name="amp4ec")
def cli(*, log_level: str, log_format: logs.Format, **_: Any) -> None:
    """One deep-learning model over many small devices, by plain MQTT.

    \b
    A whole cluster on this machine, and an answer from it:
        amp4ec up --agents 3 --serve mobilenet_v2
        amp4ec infer mobilenet_v2 cat.jpg
    """  # noqa: D301
    logs.set_up(log_format, log_level)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with its code."""
    follow_parent()
    logs.set_up()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(arguments, prog_name="amp4ec", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        note("interrupted")
        sys.exit(FAILED)
    except BaseExceptionGroup as group:
        sys.exit(_report(_first(group), arguments))
    except Exception as error:  # noqa: BLE001 - said in a line; debug shows the rest
        sys.exit(_report(error, arguments))
    sys.exit(code if isinstance(code, int) else 0)


def _first(error: BaseException) -> BaseException:
    """The error that a group of errors is about: the first of ours, else the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_first(part) for part in error.exceptions]
    ours = (leaf for leaf in leaves if isinstance(leaf, Amp4ecError))
    return next(ours, leaves[0])


def _report(error: BaseException, arguments: Sequence[str]) -> int:
    """Say what went wrong and what to do, in a line; the code to exit with."""
    text, code = str(error) or type(error).__name__, FAILED
    match error:
        case BrokerUnreachableError():
            code = UNREACHABLE
        case ConfigurationError():
            code = USAGE
        case Amp4ecError():
            pass
        case ModuleNotFoundError() if (error.name or "").split(".")[0] in _EXTRAS:
            module = (error.name or "").split(".")[0]
            text = (
                f"this needs {module}, which is not installed; "
                f"install it with: pip install 'amp4ec[{_EXTRAS[module]}]'"
            )
        case OSError():
            pass
        case _:
            text = (
                f"{type(error).__name__}: {text} (a fault of ours; --log-level debug shows where)"
            )
    if log.is_debug:
        log.traceback("the command failed", error)
    if logs.is_bound("process") and logs.writes_json():
        log.error("ended by an error", error=text, exit_code=code)  # its log is all that it writes
    else:
        note(f"error: {text}")
    if "--json" in arguments:
        expected, got = getattr(error, "expected", None), getattr(error, "got", None)
        message = error.message if isinstance(error, Amp4ecError) else text
        body = {"code": getattr(error, "code", None), "message": message}
        body |= {"expected": expected, "got": got}
        print_json({"status": "error", "error": body})
    return code

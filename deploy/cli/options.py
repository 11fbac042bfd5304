"""Options that several commands share, and the types of what stands behind them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from deploy import settings
from deploy.cli.limits import (
    KEEP_INPUT,
    LIMITS,
    OBJECTIVE,
    SENDING,
    check_keep_input,
    check_micro_batch,
    check_objective,
    check_rate,
    check_sending,
    take_limits,
)
from deploy.flags import ServeFlags
from deploy.levels import MIN_AGREEMENT, check_level
from orchestrator.core.result_cache import check_cache
from orchestrator.core.scheduler_settings import weights_of
from orchestrator.models.source import SHAPE_FORM, InputShape
from orchestrator.web.address import HTTP_FORM, HttpAddress
from shared import logs
from shared.bus import BrokerUrl
from shared.errors import ConfigurationError
from shared.ids import HOME_ASSISTANT, check_name, check_prefix
from shared.logs import FORMATS, LEVELS, Format
from shared.manifest import Level
from shared.topics import DEFAULT_ROOT, Topics

F = TypeVar("F", bound=Callable[..., Any])

CONNECT_S = 5.0
"""How long a command tries to reach the broker; a service tries for ever."""
DEFAULT_BROKER = "mqtt://127.0.0.1:1883"
COMMON = ("broker", "root", "log_level", "log_format")
_GROUP_NAMES = {"broker": "broker_url"}
"""Not the name of the command `broker`, or a file of settings could not tell the two apart."""
GROUP = tuple(_GROUP_NAMES.get(name, name) for name in COMMON)

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # not generic at run time before click 8.4
    _ParamType = click.ParamType

# An option given after the command counts more than before it, a flag more than the environment, ...
_RANK = {
    ParameterSource.COMMANDLINE: 0,
    ParameterSource.PROMPT: 0,
    ParameterSource.ENVIRONMENT: 1,
    ParameterSource.DEFAULT_MAP: 2,
    ParameterSource.DEFAULT: 3,
}


class _Parsed(_ParamType):
    """A type whose parser raises ConfigurationError for what it refuses."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)


def _root(text: str) -> str:
    return Topics(text).root


def _name(text: str) -> str:
    return check_name("name", text)


BROKER = _Parsed("URL", BrokerUrl.parse)
ROOT = _Parsed("TOPIC", _root)
NAME = _Parsed("NAME", _name)
PREFIX = _Parsed("PREFIX", check_prefix)
DURATION = _Parsed("DURATION", settings.duration_s)
SIZE = _Parsed("SIZE", settings.size_bytes)
CACHE = _Parsed("off|on|SIZE", settings.cache_bytes)
HTTP = _Parsed(HTTP_FORM, HttpAddress.parse)
INPUT_SHAPE = _Parsed("SHAPE", InputShape.parse)
SCHEDULER_WEIGHTS = _Parsed("R,L,P,B", weights_of)


@dataclass(frozen=True, slots=True)
class Common:
    """What every command knows: where the broker is, below which root, and what to log how."""

    broker: BrokerUrl
    root: str
    log_level: str
    log_format: Format = "auto"


def group_options(function: F) -> F:
    """`--broker`, `--root`, `--log-level` and `--log-format`, with their defaults, for the command group."""
    for decorator in (
        click.option(
            "--log-format",
            type=click.Choice(FORMATS),
            default="auto",
            show_default=True,
            help="Log lines for people or JSON lines; auto: for people on a terminal.",
        ),
        click.option(
            "--log-level",
            type=click.Choice(LEVELS),
            default="warning",
            show_default=True,
            help="How much to log, on standard error.",
        ),
        click.option(
            "--root", type=ROOT, default=DEFAULT_ROOT, show_default=True, help="The root topic."
        ),
        click.option(
            "--broker",
            "broker_url",
            type=BROKER,
            envvar="AMP4EC_BROKER",
            default=DEFAULT_BROKER,
            show_default=True,
            help="mqtt://[user:password@]host[:port], mqtts://..., or host:port.",
        ),
    ):
        function = decorator(function)
    return function


def common_options(function: F) -> F:
    """The same after the command's name; the function gets one `common`."""
    return _common_options(function, None)


def service_options(function: F) -> F:
    """As `common_options`, for commands that run until they are told to stop: they log what happens."""
    return _common_options(function, "info")


def _common_options(function: F, log_level: str | None) -> F:
    @click.option("--broker", type=BROKER, help="The broker's address, as before the command.")
    @click.option("--root", type=ROOT, help="The root topic, as before the command.")
    @click.option(
        "--log-level",
        type=click.Choice(LEVELS),
        default=log_level,
        show_default=log_level is not None,
        help="How much to log.",
    )
    @click.option("--log-format", type=click.Choice(FORMATS), help="How, as before the command.")
    @click.pass_context
    @functools.wraps(function)
    def wrapper(ctx: click.Context, /, **values: Any) -> Any:
        chosen = {name: _choose(ctx, name, values.pop(name)) for name in COMMON}
        common = Common(**chosen)
        logs.set_up(common.log_format, common.log_level)
        if log_level is not None:
            logs.bind(process=ctx.info_name)
        return ctx.invoke(function, common=common, **values)

    return wrapper  # type: ignore[return-value]


def json_option(function: F) -> F:
    """`--json`: one JSON document on standard output."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document for programs."
    )(function)


def source_options(function: F) -> F:
    """What MODEL needs beside its name; the function gets `weights` and `input_shapes`."""
    for decorator in (
        click.option(
            "--input-shape",
            "input_shapes",
            type=INPUT_SHAPE,
            multiple=True,
            metavar=SHAPE_FORM,
            help="The form of an input of module:factory, or of an ONNX file that leaves it open; "
            "repeatable, one per input.",
        ),
        click.option(
            "--weights",
            default="default",
            show_default=True,
            metavar="default|none|FILE",
            help="The model's own (torchvision: pretrained); random; or a .safetensors or state-dict file.",
        ),
    ):
        function = decorator(function)
    return function


home_assistant_option = click.option(
    "--home-assistant",
    type=PREFIX,
    is_flag=False,
    flag_value=HOME_ASSISTANT,
    metavar="[PREFIX]",
    help="Announce nodes and served models to Home Assistant, below its discovery prefix "
    f"({HOME_ASSISTANT} unless given), with each model's last label on `metrics`.",
)
"""Of `orchestrator`, and of `up`, which passes it on."""


def level_options(function: F) -> F:
    """How far the graph is optimised; the function gets `level`, `calibrate` and `min_agreement`."""
    for decorator in (
        click.option(
            "--min-agreement",
            type=click.FloatRange(0.0, 1.0),
            default=MIN_AGREEMENT,
            show_default=True,
            help="Refuse O2 where fewer samples have the same class first as at O1.",
        ),
        click.option(
            "--calibrate",
            type=click.Path(exists=True, path_type=Path),
            multiple=True,
            metavar="DIR|FILE",
            help="For O2: images such as the model will see, or .npz files of its inputs; repeatable.",
        ),
        click.option(
            "--level",
            type=click.Choice([level.value for level in Level]),
            default="O1",
            show_default=True,
            help="O0: the graph as it is. O1: exact simplifications. O2: int8, not exact.",
        ),
    ):
        function = decorator(function)
    return function


def serve_options(function: F) -> F:
    """How a model is to be served; the function gets one `flags`."""

    @click.option("--name", type=NAME, help="Serve under this name.  [default: the model's own]")
    @source_options
    @level_options
    @click.option(
        "--min-stages", type=click.IntRange(min=1), help="Cut in at least so many stages."
    )
    @click.option("--max-stages", type=click.IntRange(min=1), help="Cut in at most so many stages.")
    @click.option(
        "--strategy", default="optimal", show_default=True, help="How to choose the cuts."
    )
    @OBJECTIVE
    @_all(LIMITS)
    @KEEP_INPUT
    @click.option(
        "--rate",
        "rate_per_s",
        type=float,
        metavar="JOBS/S",
        help="Keep CPU for so many jobs per second, whatever else is served.",
    )
    @_all(SENDING)
    @click.option(
        "--cache",
        "cache_bytes",
        type=CACHE,
        default="off",
        show_default=True,
        metavar="off|on|SIZE",
        help="Keep answers for who asks the same again, in so much memory; on: 64Mi.",
    )
    @click.option(
        "--cache-for",
        "cache_for_s",
        type=DURATION,
        default="1h",
        show_default=True,
        help="How long an answer is kept.",
    )
    @click.option("--runtime", default="auto", show_default=True, help="What runs the stages.")
    @click.option(
        "--preprocess",
        metavar="imagenet|FILE",
        help="How images become tensors.  [default: the model's own transform]",
    )
    @click.option(
        "--labels",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A label per line, or a JSON list.  [default: the model's own]",
    )
    @click.option(
        "--timeout",
        type=DURATION,
        default="120s",
        show_default=True,
        help="How long the cluster may take to serve it, once it is exported here.",
    )
    @functools.wraps(function)
    def wrapper(**values: Any) -> Any:
        names = (
            *("name", "weights", "input_shapes", "level", "min_stages", "max_stages", "strategy"),
            *("calibrate", "min_agreement"),
            *("objective", "keep_input_in", "rate_per_s", "runtime", "preprocess", "labels"),
            *("compression", "max_error", "cache_bytes", "cache_for_s", "micro_batch"),
        )
        taken = {name: values.pop(name) for name in names}
        taken["limits"] = take_limits(values)
        check_objective(taken["objective"])
        check_keep_input(taken["keep_input_in"])
        check_rate(taken["rate_per_s"])
        check_level(taken["level"], taken["calibrate"], taken["runtime"])
        check_sending(taken["compression"], taken["max_error"])
        taken["micro_batch"] = check_micro_batch(taken["micro_batch"])
        low, high = taken["min_stages"], taken["max_stages"]
        if low is not None and high is not None and low > high:
            raise click.UsageError(f"--min-stages {low} is above --max-stages {high}.")
        flags = ServeFlags(timeout_s=values.pop("timeout"), **taken)
        check_cache(flags.cache_bytes, flags.max_error)
        return function(flags=flags, **values)

    return wrapper  # type: ignore[return-value]


def _all(options: Iterable[Callable[[F], F]]) -> Callable[[F], F]:
    """Several options as one decorator, in their order in `--help`."""

    def decorate(function: F) -> F:
        for option in reversed([*options]):
            function = option(function)
        return function

    return decorate


def _choose(ctx: click.Context, name: str, value: Any) -> Any:
    group = ctx.parent
    assert group is not None
    here = _RANK[ctx.get_parameter_source(name) or ParameterSource.DEFAULT]
    theirs = _GROUP_NAMES.get(name, name)
    there = _RANK[group.get_parameter_source(theirs) or ParameterSource.DEFAULT]
    return value if value is not None and here <= there else group.params[theirs]

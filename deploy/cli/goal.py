"""What a plan shall be like: options of `plan`."""

from __future__ import annotations

import functools
from typing import Any

import click

from deploy.cli.limits import KEEP_INPUT, LIMIT_NAMES, LIMITS, OBJECTIVE, named, take_limits
from deploy.cli.options import F
from deploy.planning import Wish
from orchestrator.core.goal import parse_goal
from orchestrator.core.limits import parse_keep_input
from orchestrator.core.plan import DEFAULT_IN_FLIGHT, Strategy
from shared.errors import ConfigurationError

_OPTIONS = (
    click.option(
        "--strategy",
        type=click.Choice([str(strategy) for strategy in Strategy]),
        default="optimal",
        show_default=True,
        help="How the plan is found; equal and ralos are the paper's rules.",
    ),
    OBJECTIVE,
    *LIMITS,
    click.option("--min-stages", type=int, default=1, help="Cut in at least so many stages."),
    click.option("--max-stages", type=int, help="Cut in at most so many stages."),
    click.option("--exclude", multiple=True, metavar="NODE", help="Leave a node out; repeatable."),
    click.option(
        "--in-flight",
        type=int,
        default=DEFAULT_IN_FLIGHT,
        show_default=True,
        help="Jobs inside a pipeline that memory is kept for.",
    ),
    click.option(
        "--input-zone",
        metavar="ZONE",
        help="Where the input comes from.  [default: that of --keep-input-in, else default]",
    ),
    KEEP_INPUT,
    click.option(
        "--broker-zone", metavar="ZONE", help="The broker's zone: every tensor crosses it."
    ),
    click.option(
        "--orchestrator-zone", metavar="ZONE", help="The orchestrator's: so does every input."
    ),
)
_NAMES = (
    *("strategy", "objective", *LIMIT_NAMES, "min_stages", "max_stages"),
    *("exclude", "in_flight", "input_zone"),
    *("keep_input_in", "broker_zone", "orchestrator_zone"),
)


def wish_options(function: F) -> F:
    """Strategy, goal, limits, stages, nodes to leave out and zones; in one `wish`."""

    @functools.wraps(function)
    def wrapper(**values: Any) -> Any:
        taken = {name: values.pop(name) for name in _NAMES}
        return function(wish=_wish(taken), **values)

    wrapped: Any = wrapper
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def _wish(taken: dict[str, Any]) -> Wish:
    """The options' values as one; a figure that makes no sense is named by its flag."""
    limits, keep = take_limits(taken), taken["keep_input_in"]
    low, high = taken["min_stages"], taken["max_stages"]
    for flag, value in (
        ("--min-stages", low),
        ("--max-stages", high),
        ("--in-flight", taken["in_flight"]),
    ):
        if value is not None and value < 1:
            raise ConfigurationError(flag, expected="1 or more", got=str(value))
    if high is not None and high < low:
        raise ConfigurationError(
            "--max-stages is below --min-stages", expected=f"{low} or more", got=str(high)
        )
    return Wish(
        objective=named("--objective", parse_goal, taken["objective"]),
        strategy=Strategy(taken["strategy"]),
        limits=limits,
        min_stages=low,
        max_stages=high,
        exclude=frozenset(taken["exclude"]),
        in_flight=taken["in_flight"],
        input_zone=taken["input_zone"],
        keep_input=None if keep is None else named("--keep-input-in", parse_keep_input, keep),
        broker_zone=taken["broker_zone"],
        orchestrator_zone=taken["orchestrator_zone"],
    )

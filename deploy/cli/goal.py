"""What a plan shall be like: options of `plan`."""

from __future__ import annotations

import functools
from typing import Any

import click

from deploy.cli.limits import (
    KEEP_INPUT,
    LIMIT_NAMES,
    LIMITS,
    OBJECTIVE,
    SENDING,
    check_micro_batch,
    check_sending,
    named,
    take_limits,
)
from deploy.cli.options import F
from deploy.planning import Wish
from orchestrator.core.goal import parse_goal
from orchestrator.core.limits import parse_keep_input
from orchestrator.core.plan import DEFAULT_IN_FLIGHT, Strategy
from shared.errors import ConfigurationError

_OPTIONS = (
    click.option(
        "--strategy",
        default="optimal",
        show_default=True,
        metavar="|".join(Strategy),
        help="How the plan is found; equal and ralos are the paper's rules.",
    ),
    OBJECTIVE,
    *LIMITS,
    *SENDING,
    click.option("--min-stages", metavar="N", default="1", help="Cut in at least so many stages."),
    click.option("--max-stages", metavar="N", help="Cut in at most so many stages."),
    click.option("--exclude", multiple=True, metavar="NODE", help="Leave a node out; repeatable."),
    click.option(
        "--in-flight",
        metavar="N",
        default=str(DEFAULT_IN_FLIGHT),
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
    *("compression", "max_error", "micro_batch"),
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
    """The options' values as one.

    Raises:
        ConfigurationError: one that makes no sense; in a line that names the option.
    """
    limits = take_limits(taken)
    check_sending(taken["compression"], taken["max_error"])
    fewest = named("--min-stages", _count, taken["min_stages"])
    most, keep = taken["max_stages"], taken["keep_input_in"]
    if most is not None and named("--max-stages", _count, most) < fewest:
        raise ConfigurationError(
            "--max-stages is below --min-stages", expected=f"{fewest} or more", got=most
        )
    return Wish(
        objective=named("--objective", parse_goal, taken["objective"]),
        strategy=named("--strategy", _strategy, taken["strategy"]),
        limits=limits,
        min_stages=fewest,
        max_stages=None if most is None else _count(most),
        exclude=frozenset(taken["exclude"]),
        in_flight=named("--in-flight", _count, taken["in_flight"]),
        input_zone=taken["input_zone"],
        keep_input=None if keep is None else named("--keep-input-in", parse_keep_input, keep),
        broker_zone=taken["broker_zone"],
        orchestrator_zone=taken["orchestrator_zone"],
        compression=taken["compression"],
        max_error=taken["max_error"],
        micro_batch=check_micro_batch(taken["micro_batch"]),
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError("not a count", expected="a whole number, 1 or more", got=text)
    return int(text)


def _strategy(text: str) -> Strategy:
    try:
        return Strategy(text)
    except ValueError:
        raise ConfigurationError(
            "no such strategy", expected=f"one of {', '.join(Strategy)}", got=text
        ) from None

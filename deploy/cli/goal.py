"""What a plan shall be like: options of `plan`."""

from __future__ import annotations

import functools
from typing import Any

import click

from deploy.cli.options import F
from deploy.planning import Wish
from deploy.settings import duration_s
from orchestrator.core.goal import parse_goal
from orchestrator.core.limits import Limits, parse_keep_input
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
    click.option(
        "--objective",
        default="throughput",
        show_default=True,
        metavar="GOAL",
        help="throughput, latency, energy, cost or exposure; or weights: latency=0.7,cost=0.3.",
    ),
    click.option("--max-latency", metavar="DURATION", help="As in 200ms."),
    click.option("--min-throughput", type=float, metavar="JOBS/S", help="At least so many jobs/s."),
    click.option("--max-energy", type=float, metavar="J", help="Joules per job."),
    click.option("--max-cost", type=float, metavar="MONEY", help="Per 1,000 jobs."),
    click.option(
        "--max-exposure",
        type=float,
        metavar="RATIO",
        help="The share of the work, 0 to 1, still undone when a tensor leaves the input's zone.",
    ),
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
    click.option(
        "--keep-input-in",
        metavar="ZONE[:DEPTH]",
        help="The input never leaves this zone, nor what the first DEPTH blocks (home:4) or that share of "
        "the work (home:25%) make of it.",
    ),
    click.option(
        "--broker-zone", metavar="ZONE", help="The broker's zone: every tensor crosses it."
    ),
    click.option(
        "--orchestrator-zone", metavar="ZONE", help="The orchestrator's: so does every input."
    ),
)
_NAMES = (
    *("strategy", "objective", "max_latency", "min_throughput", "max_energy", "max_cost"),
    *("max_exposure", "min_stages", "max_stages", "exclude", "in_flight", "input_zone"),
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
    latency, keep = taken["max_latency"], taken["keep_input_in"]
    limits = {
        "max_latency_s": None if latency is None else _named("--max-latency", duration_s, latency),
        "min_throughput_per_s": taken["min_throughput"],
        "max_energy_j": taken["max_energy"],
        "max_cost_per_1000": taken["max_cost"],
        "max_exposure_ratio": taken["max_exposure"],
    }
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
        objective=_named("--objective", parse_goal, taken["objective"]),
        strategy=Strategy(taken["strategy"]),
        limits=Limits(**limits),
        min_stages=low,
        max_stages=high,
        exclude=frozenset(taken["exclude"]),
        in_flight=taken["in_flight"],
        input_zone=taken["input_zone"],
        keep_input=None if keep is None else _named("--keep-input-in", parse_keep_input, keep),
        broker_zone=taken["broker_zone"],
        orchestrator_zone=taken["orchestrator_zone"],
    )


def _named(flag: str, parse: Any, text: str) -> Any:
    """What `parse` makes of an option's text; its error names the option."""
    try:
        return parse(text)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{flag} {text!r}: {error.message}", expected=error.expected, got=error.got
        ) from error

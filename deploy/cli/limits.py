"""What a model's plan is to be good at and what it must keep to: options of `serve`, `up` and `plan`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from deploy.settings import duration_s
from orchestrator.core.goal import parse_goal
from orchestrator.core.limits import Limits, parse_keep_input
from shared.errors import ConfigurationError

T = TypeVar("T")

OBJECTIVE = click.option(
    "--objective",
    default="throughput",
    show_default=True,
    metavar="GOAL",
    help="throughput, latency, energy, cost or exposure; or weights: latency=0.7,cost=0.3.",
)
LIMITS = (
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
)
KEEP_INPUT = click.option(
    "--keep-input-in",
    metavar="ZONE[:DEPTH]",
    help="The input never leaves this zone, nor what the first DEPTH blocks (home:4) or that share of "
    "the work (home:25%) make of it.",
)
LIMIT_NAMES = ("max_latency", "min_throughput", "max_energy", "max_cost", "max_exposure")


def take_limits(values: dict[str, Any]) -> Limits:
    """Take the options of `LIMITS` out of a command's values.

    Raises:
        ConfigurationError: one makes no sense; it is named by its flag where its text does not parse.
    """
    latency = values.pop("max_latency")
    return Limits(
        max_latency_s=None if latency is None else named("--max-latency", duration_s, latency),
        min_throughput_per_s=values.pop("min_throughput"),
        max_energy_j=values.pop("max_energy"),
        max_cost_per_1000=values.pop("max_cost"),
        max_exposure_ratio=values.pop("max_exposure"),
    )


def check_objective(text: str) -> str:
    """The text of `--objective`, when it can be read.

    Raises:
        ConfigurationError: it cannot.
    """
    named("--objective", parse_goal, text)
    return text


def check_keep_input(text: str | None) -> str | None:
    """The text of `--keep-input-in`, when it can be read.

    Raises:
        ConfigurationError: it cannot.
    """
    if text is not None:
        named("--keep-input-in", parse_keep_input, text)
    return text


def check_rate(rate_per_s: float | None) -> float | None:
    """The number of `--rate`, when there can be such a rate.

    Raises:
        ConfigurationError: it is not above 0, or no number.
    """
    if rate_per_s is not None and not 0.0 < rate_per_s < math.inf:
        raise ConfigurationError(
            "--rate", expected="a finite number above 0", got=f"{rate_per_s:g}"
        )
    return rate_per_s


def named(flag: str, parse: Callable[[str], T], text: str) -> T:
    """What `parse` makes of an option's text; its error names the option."""
    try:
        return parse(text)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{flag} {text!r}: {error.message}", expected=error.expected, got=error.got
        ) from error

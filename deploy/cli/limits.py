"""What a model's plan is to be good at and what it must keep to: options of `serve`, `up` and `plan`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from deploy.settings import duration_s
from orchestrator.core.goal import parse_goal
from orchestrator.core.limits import Limits, parse_keep_input
from orchestrator.core.micro_batch import MAX_MICRO_BATCH
from orchestrator.core.plan import AUTO
from shared.compression import COMPRESSIONS, Compression
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
    click.option("--min-throughput", metavar="JOBS/S", help="At least so many jobs/s."),
    click.option("--max-energy", metavar="J", help="Joules per job."),
    click.option("--max-cost", metavar="MONEY", help="Per 1,000 jobs."),
    click.option(
        "--max-exposure",
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
SENDING = (
    click.option(
        "--compression",
        default=AUTO,
        show_default=True,
        metavar="|".join([AUTO, *map(str, COMPRESSIONS)]),
        help="How tensors travel between stages; auto: what makes the plan better, and rounding only within "
        "--max-error.",
    ),
    click.option(
        "--max-error",
        type=float,
        default=0.0,
        show_default=True,
        metavar="RATIO",
        help="By how much rounding tensors between stages may change the output, relative to its largest "
        "value; 0 allows none.",
    ),
    click.option(
        "--micro-batch",
        default=AUTO,
        show_default=True,
        metavar=f"{AUTO}|N",
        help="Items of a batch in one message; auto: what the stages measure to be best.",
    ),
)
LIMIT_NAMES = ("max_latency", "min_throughput", "max_energy", "max_cost", "max_exposure")


def take_limits(values: dict[str, Any]) -> Limits:
    """Take the options of `LIMITS` out of a command's values.

    Raises:
        ConfigurationError: one makes no sense; it is named by its flag.
    """

    def take(name: str, field: str, parse: Callable[[str], float]) -> float | None:
        text = values.pop(name)
        if text is None:
            return None
        flag = f"--{name.replace('_', '-')}"
        # Checked alone, so that what is wrong with it has its flag's name
        limit = named(flag, lambda given: Limits(**{field: parse(given)}), str(text))
        value: float = getattr(limit, field)
        return value

    return Limits(
        max_latency_s=take("max_latency", "max_latency_s", duration_s),
        min_throughput_per_s=take("min_throughput", "min_throughput_per_s", _number),
        max_energy_j=take("max_energy", "max_energy_j", _number),
        max_cost_per_1000=take("max_cost", "max_cost_per_1000", _number),
        max_exposure_ratio=take("max_exposure", "max_exposure_ratio", _number),
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


def check_sending(compression: str, max_error: float) -> None:
    """Look at the values of `SENDING`.

    Raises:
        ConfigurationError: no such compression, or no such error.
    """
    if compression != AUTO:
        named("--compression", Compression.parse, compression)
    if not 0.0 <= max_error < 1.0:
        raise ConfigurationError(
            "--max-error", expected="0 or more, less than 1", got=f"{max_error:g}"
        )


def check_micro_batch(text: str) -> int | None:
    """The number of `--micro-batch`; None where what is measured decides.

    Raises:
        ConfigurationError: it is no number of items.
    """
    if text == AUTO:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MAX_MICRO_BATCH:
        raise ConfigurationError(
            "--micro-batch", expected=f"{AUTO}, or 1 to {MAX_MICRO_BATCH} items", got=repr(text)
        )
    return int(text)


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


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError("not a number", expected="a number", got=text) from None

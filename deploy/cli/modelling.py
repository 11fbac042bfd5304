"""Which model, and how it is read and timed: options of `profile` and `plan`."""

from __future__ import annotations

import functools
from typing import Any

import click

from deploy.cli.options import F, level_options, source_options
from deploy.levels import check_level
from deploy.modelling import Modelling


def modelling_options(function: F) -> F:
    """`--weights`, `--input-shape`, `--level` with its samples, `--preprocess`, `--runtime`; one `how`."""

    @source_options
    @level_options
    @click.option(
        "--preprocess",
        metavar="imagenet|FILE",
        help="How images become tensors.  [default: the model's own transform]",
    )
    @click.option(
        "--runtime",
        default="auto",
        show_default=True,
        help="What it is timed with; auto: the faster of those that are installed.",
    )
    @functools.wraps(function)
    def wrapper(**values: Any) -> Any:
        names = (
            *("weights", "input_shapes", "level", "calibrate", "min_agreement"),
            *("preprocess", "runtime"),
        )
        how = Modelling(**{name: values.pop(name) for name in names})
        check_level(how.level, how.calibrate, how.runtime)
        return function(how=how, **values)

    return wrapper  # type: ignore[return-value]

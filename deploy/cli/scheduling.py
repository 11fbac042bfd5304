"""How the orchestrator gives jobs to pipelines: the flags of `orchestrator`, which `up` takes too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from deploy.cli.options import DURATION, SCHEDULER_WEIGHTS
from orchestrator.core.scheduler_settings import Form, Scheduler, SchedulerSettings

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULT = SchedulerSettings()


def scheduler_options(function: F) -> F:
    """Which pipeline takes a job; the function gets one `scheduling`."""

    @click.option(
        "--scheduler",
        type=click.Choice([each.value for each in Scheduler]),
        default=_DEFAULT.scheduler.value,
        show_default=True,
        help="Which pipeline takes a job when a model has several.",
    )
    @click.option(
        "--scheduler-form",
        type=click.Choice([each.value for each in Form]),
        default=_DEFAULT.form.value,
        show_default=True,
        help="nsa: its terms spread from 0 to 1 in each decision, or as the paper prints them.",
    )
    @click.option(
        "--scheduler-weights",
        type=SCHEDULER_WEIGHTS,
        default=",".join(f"{weight:g}" for weight in _DEFAULT.weights),
        show_default=True,
        help="nsa: of resources, load, performance, balance.",
    )
    @click.option(
        "--scheduler-max-load",
        type=click.FloatRange(0, 1, min_open=True),
        default=_DEFAULT.max_load_ratio,
        show_default=True,
        help="nsa: pass over nodes that are busier.",
    )
    @click.option(
        "--scheduler-max-latency",
        type=DURATION,
        default=f"{_DEFAULT.max_latency_s * 1e3:g}ms",
        show_default=True,
        help="nsa: pass over nodes with a longer round trip to the broker.",
    )
    @click.option(
        "--event-level",
        type=click.Choice(("info", "debug")),
        default="info",
        show_default=True,
        help="debug: an `event` for each job, with every candidate's terms.",
    )
    @functools.wraps(function)
    def wrapper(**values: Any) -> Any:
        scheduling = SchedulerSettings(
            scheduler=Scheduler(values.pop("scheduler")),
            form=Form(values.pop("scheduler_form")),
            weights=values.pop("scheduler_weights"),
            max_load_ratio=values.pop("scheduler_max_load"),
            max_latency_s=values.pop("scheduler_max_latency"),
            log_decisions=values.pop("event_level") == "debug",
        )
        return function(scheduling=scheduling, **values)

    return wrapper  # type: ignore[return-value]


def scheduler_arguments(scheduling: SchedulerSettings) -> list[str]:
    """The same flags as a command line, for a child process."""
    return [
        f"--scheduler={scheduling.scheduler}",
        f"--scheduler-form={scheduling.form}",
        "--scheduler-weights=" + ",".join(repr(weight) for weight in scheduling.weights),
        f"--scheduler-max-load={scheduling.max_load_ratio!r}",
        f"--scheduler-max-latency={scheduling.max_latency_s!r}s",
        f"--event-level={'debug' if scheduling.log_decisions else 'info'}",
    ]

"""The numbers that the dispatcher goes by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from orchestrator.core.scheduler_settings import SchedulerSettings
from shared.errors import ConfigurationError

MIB = 1024 * 1024


def default_window(num_stages: int) -> int:
    """Credits of a pipeline: two items per stage keep each one busy, two more cover the way.

    FACTS.md, "Bus": throughput is flat from 4 to 32 in flight while latency grows in proportion, so the
    smallest window that saturates is the best.
    """
    return max(4, 2 * num_stages + 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """Numbers are all positive; raises `ConfigurationError` naming the field otherwise."""

    scheduling: SchedulerSettings = field(default_factory=SchedulerSettings)
    """Which pipeline takes an item."""
    max_queued_items: int = 1_000
    """Per model, waiting (what is in flight is bounded by the windows)."""
    max_queued_bytes: int = 64 * MIB
    """Per model, waiting."""
    max_item_bytes: int = 32 * MIB
    """Of one input; more is `too_large`."""
    max_attempts: int = 3
    """Attempts of an item that may fail or time out."""
    max_losses: int = 5
    """Attempts of an item that may be lost with their pipeline. Separate from `max_attempts`: a lost
    node is not the item's fault, yet an item that kills each node it meets must come to an end."""
    unserved_limit_s: float = 60.0
    """How long an item waits while no pipeline is active; then it is `unavailable`."""
    repeat_window_s: float = 600.0
    """How long a repeated job gets its first answer again (DESIGN.md section 2: 10 minutes)."""
    max_remembered_answers: int = 10_000
    max_remembered_bytes: int = 64 * MIB
    max_held_repeats: int = 64
    """Of one job in work; further repeats are acknowledged at once, not with the answer."""
    min_retry_s: float = 3.0
    """No result in this time: the item is dispatched again. More for slow pipelines, see next."""
    retry_factor: float = 10.0
    """No result in this many expected flights: the item is dispatched again."""
    reconnect_grace_s: float = 0.05
    """What was dispatched this shortly before a reconnection of the bus is not suspected of loss."""
    min_reconnect_retry_s: float = 1.0
    """How long after a reconnection a suspected item is dispatched again (at least two usual
    flights of its pipeline, so that slow ones do not do everything twice)."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, SchedulerSettings):
                continue  # it has looked at itself
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(
                    f"dispatch setting {each.name}", expected="a number > 0", got=repr(value)
                )


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    """An event of the dispatcher: from now on these are what a job has to keep, and the rule in force.

    How answers are remembered stays as it was.
    """

    now: float
    settings: DispatchSettings

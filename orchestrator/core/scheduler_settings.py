"""Which rule gives a job to a pipeline, and the numbers that the paper's rule goes by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from shared.errors import ConfigurationError

NUM_WEIGHTS = 4


class Scheduler(StrEnum):
    """The rules to choose from; `tests.benchmarks scheduling` compares them."""

    SHORTEST_COMPLETION = "shortest-completion"
    """Where the job should be done first, by plan and measurement; the default."""
    LEAST_OUTSTANDING = "least-outstanding"
    """Where the fewest jobs are under way."""
    NSA = "nsa"
    """The paper's node selection."""


class Form(StrEnum):
    """How the paper's node selection adds up its terms."""

    NORMALISED = "normalised"
    """Each term from 0, the worst candidate's, to 1, the best one's, in every decision."""
    LITERAL = "literal"
    """As printed: the terms as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """All but `scheduler` and `log_decisions` are for `nsa`. Raises `ConfigurationError` naming the field.

    `weights` are those of resources, load, performance and balance: finite, none below 0, not all 0. The
    order of candidates depends on their ratios only, so they need not sum to 1.
    """

    scheduler: Scheduler = Scheduler.SHORTEST_COMPLETION
    form: Form = Form.NORMALISED
    weights: tuple[float, float, float, float] = (0.2, 0.2, 0.1, 0.5)
    """The paper's."""
    max_load_ratio: float = 0.8
    """The paper's: a node whose CPU is busier than this is passed over."""
    max_latency_s: float = 0.2
    """A node with a longer round trip to the broker is passed over. The paper names no figure; this is
    above what radio links take and well below what a broken one does."""
    log_decisions: bool = False
    """Whether each decision is put on `event`, with each candidate's terms."""

    @property
    def goes_by_telemetry(self) -> bool:
        """Whether the rule looks at nodes; the others go by the pipelines' own figures."""
        return self.scheduler is Scheduler.NSA

    def __post_init__(self) -> None:
        weights = self.weights
        if (
            len(weights) != NUM_WEIGHTS
            or not all(math.isfinite(weight) and weight >= 0.0 for weight in weights)
            or not any(weights)
        ):
            raise ConfigurationError(
                "scheduler weights",
                expected="four numbers, none below 0 and not all 0, for resources, load, "
                "performance and balance, as in 0.2,0.2,0.1,0.5",
                got=",".join(f"{weight:g}" for weight in weights) or "none",
            )
        if not 0.0 < self.max_load_ratio <= 1.0:
            raise ConfigurationError(
                "scheduler load threshold",
                expected="a ratio above 0, at most 1",
                got=f"{self.max_load_ratio:g}",
            )
        if not (math.isfinite(self.max_latency_s) and self.max_latency_s > 0.0):
            raise ConfigurationError(
                "scheduler latency threshold",
                expected="seconds above 0",
                got=f"{self.max_latency_s:g}",
            )


def weights_of(text: str) -> tuple[float, float, float, float]:
    """The weights in `0.2,0.2,0.1,0.5`.

    Raises:
        ConfigurationError: not four numbers with commas between, or none that makes sense.
    """
    try:
        resources, load, performance, balance = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(
            "scheduler weights",
            expected="four numbers with commas between, as in 0.2,0.2,0.1,0.5",
            got=text,
        ) from None
    return SchedulerSettings(weights=(resources, load, performance, balance)).weights

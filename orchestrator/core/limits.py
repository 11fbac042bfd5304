"""What a plan must keep to, whatever it is best at: limits on its figures, the zone of its input."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from orchestrator.core.figures import Objective, Predicted, figure, in_words
from shared.errors import ConfigurationError
from shared.profile import ModelProfile

LIMIT_OF = {
    Objective.THROUGHPUT: "min_throughput_per_s",
    Objective.LATENCY: "max_latency_s",
    Objective.ENERGY: "max_energy_j",
    Objective.COST: "max_cost_per_1000",
    Objective.EXPOSURE: "max_exposure_ratio",
}
"""The field of `Limits` that looks at an objective's figure."""

GRAIN = 1e-9
"""A figure that breaks a limit by no more than this, relative, keeps it: sums are rounded."""


_ABOVE_ZERO = "a finite number above 0"
_NOT_NEGATIVE = "a finite number, 0 or more"
_RATIO = "a ratio in 0..1"
_EXPECTED = {
    "max_latency_s": _ABOVE_ZERO,
    "min_throughput_per_s": _ABOVE_ZERO,
    "max_energy_j": _NOT_NEGATIVE,
    "max_cost_per_1000": _NOT_NEGATIVE,
    "max_exposure_ratio": _RATIO,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Hard limits on a plan's figures; None: no limit.

    Raises ConfigurationError for a value that no plan or every plan keeps: latency and throughput must be
    above 0, energy and cost 0 or more, the exposure a ratio in 0..1.
    """

    max_latency_s: float | None = None
    min_throughput_per_s: float | None = None
    max_energy_j: float | None = None
    max_cost_per_1000: float | None = None
    max_exposure_ratio: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            expected = _EXPECTED[field.name]
            good = (
                not isinstance(value, bool)
                and isinstance(value, int | float)
                and math.isfinite(value)
                and value >= 0
                and (value > 0 or expected is not _ABOVE_ZERO)
                and (value <= 1 or expected is not _RATIO)
            )
            if not good:
                raise ConfigurationError(field.name, expected=expected, got=repr(value))

    def of(self, objective: Objective) -> float | None:
        """The limit on an objective's figure."""
        value: float | None = getattr(self, LIMIT_OF[objective])
        return value

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives whose figure has a limit."""
        return tuple(objective for objective in Objective if self.of(objective) is not None)

    def broken(self, predicted: Predicted) -> tuple[Objective, ...]:
        """The objectives whose limit a plan breaks; empty where it keeps them all."""
        return tuple(
            objective
            for objective in self.objectives
            if not keeps(objective, figure(predicted, objective), self.of(objective))
        )

    def breach(self, predicted: Predicted) -> str:
        """What a plan breaks, in words: `breaks the limit: 231 ms against 200 ms`; empty where nothing."""
        parts = [
            f"{in_words(objective, figure(predicted, objective))} against "
            f"{in_words(objective, self.of(objective) or 0.0)}"
            for objective in self.broken(predicted)
        ]
        return f"breaks the limit: {', '.join(parts)}" if parts else ""


NO_LIMITS = Limits()


def keeps(objective: Objective, value: float, limit: float | None) -> bool:
    """Whether a figure keeps a limit."""
    if limit is None:
        return True
    if objective is Objective.THROUGHPUT:
        return value >= limit * (1 - GRAIN)
    return value <= limit * (1 + GRAIN)


@dataclass(frozen=True, slots=True)
class KeepInput:
    """The raw input, and activations before a depth, never leave a zone.

    The first `min_blocks` blocks run in the zone, and as many more as do `min_macs_ratio` of the model's
    multiply-adds. The default keeps the raw input only: the first block runs in the zone, and what it makes
    may leave.
    """

    zone: str
    min_blocks: int = 1
    min_macs_ratio: float = 0.0

    def __post_init__(self) -> None:
        if not self.zone:
            raise ConfigurationError("keep_input: zone", expected="some text", got=repr(self.zone))
        if isinstance(self.min_blocks, bool) or self.min_blocks < 1:
            raise ConfigurationError(
                "keep_input: min_blocks", expected="1 or more", got=repr(self.min_blocks)
            )
        if not 0.0 <= self.min_macs_ratio <= 1.0:
            raise ConfigurationError(
                "keep_input: min_macs_ratio",
                expected="a ratio in 0..1",
                got=repr(self.min_macs_ratio),
            )

    def depth(self, profile: ModelProfile) -> int:
        """The number of first blocks that must run in the zone.

        Raises:
            ConfigurationError: the model has fewer blocks than were asked for.
        """
        if self.min_blocks > len(profile.blocks):
            raise ConfigurationError(
                "keep_input: min_blocks",
                expected=f"at most the {len(profile.blocks)} blocks of {profile.model}",
                got=str(self.min_blocks),
            )
        done = done_ratios(profile)
        # Rounded sums must not ask for a block more than the share that was written down
        by_macs = next(j for j, ratio in enumerate(done) if ratio >= self.min_macs_ratio - GRAIN)
        return max(self.min_blocks, by_macs)


def parse_keep_input(text: str) -> KeepInput:
    """Read `ZONE`, `ZONE:BLOCKS` or `ZONE:SHARE%` (of the multiply-adds), as in `home`, `home:4`, `home:25%`.

    Raises:
        ConfigurationError: no zone, or a depth that is neither.
    """
    zone, colon, depth = text.partition(":")
    try:
        if not colon:
            return KeepInput(zone)
        if depth.endswith("%"):
            return KeepInput(zone, min_macs_ratio=float(depth[:-1]) / 100)
        return KeepInput(zone, min_blocks=int(depth))
    except ValueError:
        raise ConfigurationError(
            "keep_input",
            expected="ZONE, ZONE:BLOCKS or ZONE:SHARE%, as in home, home:4, home:25%",
            got=repr(text),
        ) from None


def done_ratios(profile: ModelProfile) -> list[float]:
    """The share of multiply-adds that blocks `[0, j)` do, for j in 0..L; of a model with none, 0 up to L."""
    total = sum(block.macs for block in profile.blocks)
    done, ratios = 0, [0.0]
    for block in profile.blocks:
        done += block.macs
        ratios.append(done / total if total else 0.0)
    ratios[-1] = 1.0
    return ratios

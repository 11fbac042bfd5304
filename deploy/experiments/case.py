"""What an experiment is: cases, each of which is measured once in every round.

A case has its raw data with one experiment and may be read in several: a baseline is measured once, and so
is a plan that two pages look at from two sides.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from deploy.experiments.records import Parameter
from shared.errors import ConfigurationError

Say: TypeAlias = Callable[[str], None]
WARM_UP_S: Final = 30.0
"""The paper's, before 5 minutes; shorter ones are in proportion."""
_WARM_UP_SHARE: Final = 0.1


class Engine(StrEnum):
    """What a cluster's nodes are."""

    LOCAL = "local"
    """Processes, each with its CPU share by cgroup."""
    DOCKER = "docker"
    """Containers, with the paper's memory limits as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How long and how large.

    `scale` multiplies the CPUs of the paper's profiles, one round measures `minutes`, and there are `repeat`.

    Raises:
        ConfigurationError: a number out of range.
    """

    minutes: float = 1.0
    repeat: int = 3
    scale: float = 0.5
    seed: int = 0
    engine: Engine = Engine.LOCAL

    def __post_init__(self) -> None:
        """Refuse what nothing can be measured with."""
        for name, value in (("minutes", self.minutes), ("scale", self.scale)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"--{name}", expected="a number above 0", got=f"{value:g}")
        if self.repeat < 1:
            raise ConfigurationError("--repeat", expected="1 or more", got=str(self.repeat))

    @property
    def seconds(self) -> float:
        """Of one measurement."""
        return 60.0 * self.minutes

    @property
    def warm_up_s(self) -> float:
        """Before one measurement."""
        return min(WARM_UP_S, self.seconds * _WARM_UP_SHARE)

    @property
    def alone_s(self) -> float:
        """Of the part with one request under way, which only latency is read from."""
        return max(self.seconds * _WARM_UP_SHARE, 1.0)

    def cpus(self, shares: Sequence[float]) -> list[float]:
        """CPU shares of the paper's profile, as they are here."""
        return [round(share * self.scale, 4) for share in shares]

    def parameters(self) -> dict[str, Parameter]:
        """What tells records of other settings apart."""
        return {
            "minutes": self.minutes,
            "scale": self.scale,
            "seed": self.seed,
            "engine": str(self.engine),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one round of a case gave: see `records.Record`."""

    figures: Mapping[str, float | None]
    notes: Mapping[str, str] = field(default_factory=dict)
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)


class Bench(Protocol):
    """What stays set up from one case to the next, as long as that one needs the same."""

    async def close(self) -> None:
        """Take it down."""


@dataclass(slots=True)
class Lab:
    """Where a round runs: folders, who is told about steps, and what is still set up.

    `directory` is the round's own; `kept` has what later rounds of the same run need again.
    """

    settings: Settings
    directory: Path
    kept: Path
    say: Say
    bench: Bench | None = None

    async def clear(self) -> None:
        """Take down what is still set up."""
        bench, self.bench = self.bench, None
        if bench is not None:
            await bench.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing that is measured. `seconds` is how long a round of it takes, start and end included.

    `home` is the experiment that has its raw data, where that is another one than it is read in, and `shown`
    what it is called there. `paper` and `strict` are its baselines.
    """

    name: str
    seconds: float
    measure: Callable[[Lab], Awaitable[Measured]]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    home: str = ""
    shown: str = ""
    paper: Case | None = None
    strict: Case | None = None

    @property
    def label(self) -> str:
        """Its name in a table."""
        return self.shown or self.name


Cases: TypeAlias = Callable[[Settings], Sequence[Case]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Cases that are read side by side.

    `figures` are those worth a column, each with what it means, in order; `draw` is the one that bars are
    drawn of, or (`over_time`) the series that is drawn.
    """

    name: str
    title: str
    text: str
    cases: Cases
    figures: Mapping[str, str]
    draw: str | None = None
    over_time: str | None = None

    def every(self, settings: Settings) -> list[Case]:
        """The cases, each after its baselines, and each once."""
        return list(
            {(case.home, case.name): case for case in self._with_baselines(settings)}.values()
        )

    def _with_baselines(self, settings: Settings) -> Iterator[Case]:
        for case in self.cases(settings):
            yield from (one for one in (case.paper, case.strict) if one is not None)
            yield case

    def lent(self, settings: Settings, name: str, shown: str = "") -> Case:
        """The case of that name, to be read in another experiment as `shown`."""
        (case,) = (case for case in self.cases(settings) if case.name == name)
        return replace(case, home=case.home or self.name, shown=shown or case.label)

    def only(self, parts: Sequence[str]) -> Experiment:
        """The same with the cases of which `parts` has the name, or a part of it; all when there are none.

        Raises:
            ConfigurationError: no case is left (when the cases are asked for).
        """
        if not parts:
            return self

        def cases(settings: Settings) -> Sequence[Case]:
            every = self.every(settings)
            names = {case.label for case in every}
            kept = [
                case
                for case in every
                if any(
                    part == case.label or (part not in names and part in case.label)
                    for part in parts
                )
            ]
            if not kept:
                raise ConfigurationError(
                    f"--case: {self.name} has no such case",
                    expected=", ".join(case.label for case in every),
                    got=", ".join(parts),
                )
            # Those that were asked for, and no baseline that was not.
            return [replace(case, paper=None, strict=None) for case in kept]

        return replace(self, cases=cases)

"""Records read together: of each case the median of its rounds, with the least and the largest."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deploy.experiments.records import Parameter, Record

SETTINGS = ("minutes", "scale", "seed", "engine")
"""Parameters of a run, not of a case."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure over the rounds; None where no round had it."""

    median: float
    least: float
    largest: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The records of one experiment that belong together: those of one setting."""

    experiment: str
    records: tuple[Record, ...]
    left_out: int
    """Records of other settings in the same file."""

    @property
    def cases(self) -> list[str]:
        """Their names, as they were first measured."""
        return list(dict.fromkeys(record.case for record in self.records))

    @property
    def rounds(self) -> int:
        """The most that any case has."""
        return max(record.round for record in self.records)

    @property
    def settings(self) -> dict[str, Parameter]:
        """What all of them have in common."""
        first = self.records[0].parameters
        return {name: first[name] for name in SETTINGS if name in first}

    def of(self, case: str) -> list[Record]:
        """The rounds of a case."""
        return [record for record in self.records if record.case == case]

    def figure(self, case: str, name: str) -> Figure | None:
        """A figure of a case; None where there is none."""
        values = [
            value for record in self.of(case) if (value := record.figures.get(name)) is not None
        ]
        if not values:
            return None
        return Figure(statistics.median(values), min(values), max(values), len(values))

    def median(self, case: str, name: str) -> float | None:
        """Its median."""
        found = self.figure(case, name)
        return None if found is None else found.median

    def names(self) -> list[str]:
        """All figures that any record has."""
        return list(dict.fromkeys(name for record in self.records for name in record.figures))


def summarise(records: Iterable[Record]) -> Summary | None:
    """The records of the longest rounds, and of these the latest setting; None of nothing."""
    every = list(records)
    if not every:
        return None

    def setting(record: Record) -> tuple[Parameter, ...]:
        return tuple(record.parameters.get(name) for name in SETTINGS)

    def weight(record: Record) -> tuple[float, str]:
        minutes = record.parameters.get("minutes")
        return (float(minutes) if isinstance(minutes, int | float) else 0.0, record.machine.at)

    wanted = setting(max(every, key=weight))
    kept = [record for record in every if setting(record) == wanted]
    return Summary(every[0].experiment, tuple(kept), len(every) - len(kept))


def number(value: float | None) -> str:
    """For people: three digits, and none behind the point where there are as many before."""
    if value is None:
        return "-"
    if value == 0.0 or abs(value) >= 100.0:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(figure: Figure | None) -> str:
    """Median, and least to largest where there were several rounds."""
    if figure is None:
        return "-"
    text = number(figure.median)
    if figure.rounds > 1:
        text += f" ({number(figure.least)}..{number(figure.largest)})"
    return text


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table, its first column to the left and the others to the right."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return [*lines, *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)]

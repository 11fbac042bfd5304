"""What a benchmark says: rows of figures, under the machine they were measured on.

Nothing here fails when a bar is not reached: a time depends on the machine, and the reader decides.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from deploy.machine import Machine
from tests.benchmarks.stats import Summary, summarise

_LEAST_WIDTH = 170
"""Columns of the table where nobody reads it on a terminal."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What was aimed at: `of` (mean, median, high end or largest) at most or at least `limit`."""

    limit: float
    of: Literal["mean", "median", "high", "largest"] = "median"
    sense: Literal["at most", "at least"] = "at most"

    def reached(self, values: Summary) -> bool:
        """Whether `values` are on the right side of the limit."""
        value = {
            "mean": values.mean,
            "median": values.median,
            "high": values.high,
            "largest": values.largest,
        }[self.of]
        return value <= self.limit if self.sense == "at most" else value >= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure. `against` is what it is compared with, measured in the same run."""

    benchmark: str
    figure: str
    unit: str
    method: str
    values: Summary
    against: str = ""
    bar: Bar | None = None
    bar_reached: bool | None = None

    @classmethod
    def of(
        cls,
        benchmark: str,
        figure: str,
        unit: str,
        values: Sequence[float],
        *,
        method: str,
        against: str = "",
        bar: Bar | None = None,
    ) -> Row:
        """A row made of raw values.

        Raises:
            ConfigurationError: there are no values.
        """
        summary = summarise(values)
        return cls(
            benchmark=benchmark,
            figure=figure,
            unit=unit,
            method=method,
            values=summary,
            against=against,
            bar=bar,
            bar_reached=None if bar is None else bar.reached(summary),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run of the command."""

    machine: Machine
    command: str
    quick: bool
    rows: list[Row] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Benchmarks that ended in an error, with the error."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each benchmark took."""


def print_report(report: Report) -> None:
    """The report for people: with rich where it is installed, else as plain lines."""
    machine = report.machine
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    print(f"{machine.at}  {report.command}  commit {machine.commit}")
    print(
        f"{machine.cpu_model}, {machine.cores} cores, {machine.memory_bytes / 1e9:.1f} GB, "
        f"{machine.system}, load average {machine.load_average}"
    )
    print(versions)
    methods = {
        method: n for n, method in enumerate(dict.fromkeys(r.method for r in report.rows), 1)
    }
    lines = [_cells(row, methods[row.method]) for row in report.rows]
    try:
        _print_rich(lines)
    except ImportError:  # an extra; columns of text serve as well
        _print_plain(lines)
    for method, number in methods.items():
        print(f"{number:>3}  {method}")
    for name, why in report.failed.items():
        print(f"{name} FAILED: {why}")


_HEAD = ("benchmark", "figure", "median", "spread", "n", "compared with", "bar", "method")


def _cells(row: Row, method: int) -> tuple[str, ...]:
    values = row.values
    return (
        row.benchmark,
        row.figure,
        f"{_number(values.median)} {row.unit}",
        f"{_number(values.low)}..{_number(values.high)} ({values.spread})" if values.n > 1 else "",
        str(values.n),
        row.against,
        _bar(row),
        str(method),
    )


def _bar(row: Row) -> str:
    bar = row.bar
    if bar is None:
        return ""
    of = {
        "mean": "mean",
        "median": "median",
        "high": row.values.spread.rpartition("..")[2],
        "largest": "max",
    }
    verdict = "reached" if row.bar_reached else "not reached"
    return f"{of[bar.of]} {bar.sense} {_number(bar.limit)} {row.unit}: {verdict}"


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def _print_rich(lines: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(Console().width, _LEAST_WIDTH))
    table = Table()
    for name in _HEAD:
        table.add_column(name, justify="right" if name in ("median", "n", "method") else "left")
    before = ""
    for line in lines:
        if before and line[0] != before:
            table.add_section()
        before = line[0]
        table.add_row(*line)
    console.print(table)


def _print_plain(lines: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(line[index]) for line in (_HEAD, *lines)) for index in range(len(_HEAD))]
    for line in (_HEAD, *lines):
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def say(text: str) -> None:
    """A line of progress, on standard error: standard output is the report's."""
    sys.stderr.write(f"[{datetime.now(UTC):%H:%M:%S}] {text}\n")
    sys.stderr.flush()

"""Tables for people: as wide as the terminal, and with fewer columns where it is narrow."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 100
"""Columns where standard output is no terminal and COLUMNS does not say."""
_GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """`drop`: columns of the highest number go first where the room does not suffice; 0 stays.

    `cut` may be cut short, `wrap` broken into lines, down to `least` characters; any other column keeps its
    width.
    """

    title: str
    right: bool = False
    drop: int = 0
    cut: bool = False
    wrap: bool = False
    least: int = 12

    @property
    def flexible(self) -> bool:
        """Whether it may be narrower than its content."""
        return self.cut or self.wrap


def console() -> Console:
    """Standard output, without markup or highlighting; off a terminal `PLAIN_WIDTH` columns wide."""
    width = None
    if not sys.stdout.isatty():
        told = os.environ.get("COLUMNS", "")
        width = int(told) if told.isdecimal() and int(told) > 0 else PLAIN_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


def show(out: Console, made: Table) -> None:
    """Print a table without the blanks that fill its lines up."""
    with out.capture() as captured:
        out.print(made)
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def table(columns: Sequence[Column], rows: Sequence[Sequence[str | Text]], width: int) -> Table:
    """A table that fits `width` where its columns can; columns without a cell are left out."""
    kept = [index for index in range(len(columns)) if any(_length(row[index]) for row in rows)]
    widths = [
        max([_length(column.title), *(_length(row[index]) for row in rows)])
        for index, column in enumerate(columns)
    ]
    while _needed(columns, widths, kept) > width and any(columns[index].drop for index in kept):
        kept.remove(max(kept, key=lambda index: columns[index].drop))
    _narrow(columns, widths, kept, width)
    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for index in kept:
        column = columns[index]
        made.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.wrap,
            overflow="fold" if column.wrap else "ellipsis",
            width=widths[index],
        )
    for row in rows:
        made.add_row(*(row[index] for index in kept))
    return made


def _needed(columns: Sequence[Column], widths: Sequence[int], kept: Sequence[int]) -> int:
    """The least width of the columns that are kept."""
    return _GAP * max(len(kept) - 1, 0) + sum(
        min(widths[index], columns[index].least) if columns[index].flexible else widths[index]
        for index in kept
    )


def _narrow(columns: Sequence[Column], widths: list[int], kept: Sequence[int], width: int) -> None:
    """Take from the widest of the columns that give way until the table fits, or none gives more."""
    excess = sum(widths[index] for index in kept) + _GAP * max(len(kept) - 1, 0) - width
    for _ in range(excess):
        giving = [i for i in kept if columns[i].flexible and widths[i] > columns[i].least]
        if not giving:
            return
        widths[max(giving, key=lambda index: widths[index])] -= 1


def _length(cell: str | Text) -> int:
    return cell.cell_len if isinstance(cell, Text) else cell_len(cell)

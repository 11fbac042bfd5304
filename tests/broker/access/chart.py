"""The matrix as a heat map: a column per role and verb, a row per topic, what is wrong in red."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from deploy.drawing import BLUE, FAINT, GREEN, INK, PAPER, RED, figure, label, save
from tests.broker.access.matrix import VERBS, WRITES, Cell

_DENIED, _WRITES, _READS, _WRONG = range(4)
_COLOURS = ("#edf0f2", BLUE, GREEN, RED)
_WORDS = ("denied", "may write", "may read", "not as it should be")


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Write the picture to `path` (.png, .svg or .pdf).

    Raises:
        OSError: it cannot be written.
    """
    roles = list(dict.fromkeys(_role(cell) for cell in cells))
    rows = list(dict.fromkeys(cell.target for cell in cells))
    columns = [(role, verb) for role in roles for verb in VERBS]
    grid = np.zeros((len(rows), len(columns)), np.int8)
    for cell in cells:
        at = rows.index(cell.target), columns.index((_role(cell), cell.verb))
        grid[at] = max(grid[at], _value(cell))  # of several who are nobody the worst is shown
    picture = figure(3.5 + 0.17 * len(columns), 1.8 + 0.17 * len(rows))
    axes = picture.add_subplot()
    axes.pcolormesh(
        grid, cmap=ListedColormap(_COLOURS), vmin=0, vmax=3, edgecolors=PAPER, linewidth=0.6
    )
    axes.invert_yaxis()
    axes.set_frame_on(False)
    axes.set_yticks(np.arange(len(rows)) + 0.5, [label(row) for row in rows], fontsize=7)
    axes.set_xticks(
        np.arange(len(columns)) + 0.5, [verb for _, verb in columns], rotation=90, fontsize=6
    )
    axes.tick_params(length=0, labelcolor=INK)
    for index, role in enumerate(roles):
        begin = index * len(VERBS)
        axes.text(begin + len(VERBS) / 2, -0.7, role, ha="center", fontsize=9, color=INK)
        if index:
            axes.axvline(begin, color=FAINT, linewidth=1.0)
    axes.legend(
        handles=[Patch(color=c, label=w) for c, w in zip(_COLOURS, _WORDS, strict=True)],
        loc="upper left", bbox_to_anchor=(0.0, 1.09), ncols=4, fontsize=8, frameon=False,
    )  # fmt: skip
    save(picture, path)


def _role(cell: Cell) -> str:
    return cell.role.partition(": ")[0]


def _value(cell: Cell) -> int:
    if not cell.right:
        return _WRONG
    if not cell.allowed:
        return _DENIED
    return _WRITES if cell.verb in WRITES else _READS

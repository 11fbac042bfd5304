"""`python -m tests.broker.access [--json FILE] [--draw FILE]`: who may do what on a closed broker.

As observed, not as configured. Takes seconds. The exit status is 1 when any cell is not as `rules` say.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from shared.codec import encode_json
from tests.broker.access.matrix import READS, VERBS, WRITES, Cell, measure


def main() -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.broker.access", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="every cell, as JSON")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="a heat map (.png, .svg, .pdf)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="amp4ec-access-") as scratch:
        cells = asyncio.run(measure(Path(scratch) / "closed"))
    _print(cells)
    if options.json is not None:
        options.json.write_bytes(encode_json(cells) + b"\n")
    if options.draw is not None:
        from tests.broker.access.chart import draw

        draw(cells, options.draw)
    wrong = [cell for cell in cells if not cell.right]
    for cell in wrong:
        print(
            f"WRONG: {cell.role} {'can' if cell.allowed else 'cannot'} {cell.verb}: {cell.topic}",
        )
    print(
        f"{len(cells)} tries, {sum(cell.allowed for cell in cells)} let through, {len(wrong)} wrong"
    )
    return 1 if wrong else 0


def _print(cells: Sequence[Cell]) -> None:
    """A line per topic; per role w and r, in capitals where only some of the ways are open."""
    roles = list(dict.fromkeys(cell.role for cell in cells))
    topics = list(dict.fromkeys(cell.target for cell in cells))
    allowed = {(cell.role, cell.target, cell.verb): cell.allowed for cell in cells}
    wide = max(len(topic) for topic in topics)
    print(" " * wide, *(f"{role.removeprefix('nobody: '):>12}" for role in roles))
    for topic in topics:
        marks = []
        for role in roles:
            ways = [verb for verb in VERBS if allowed[role, topic, verb]]
            marks.append(_mark(ways, WRITES, "w") + _mark(ways, READS, "r"))
        print(f"{topic:<{wide}}", *(f"{mark:>12}" for mark in marks))


def _mark(ways: Sequence[str], of: Sequence[str], letter: str) -> str:
    open_ways = [verb for verb in of if verb in ways]
    if not open_ways:
        return "-"
    return letter if len(open_ways) == len(of) else letter.upper()


if __name__ == "__main__":
    sys.exit(main())

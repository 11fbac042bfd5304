"""A cell's figures: medians of its rounds with their extremes, each beside what it is compared with."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.bench.cells import EAGER, KINDS, MAIN_LEVEL, Cell, Kind, PlanKind
from deploy.bench.raw import Line, Measured


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the least and the greatest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Figures:
    """What tables and drawings show of a cell."""

    cell: Cell
    measured: Measured
    per_s: Spread
    ratio: Spread
    """The rate as a share of the whole model's."""
    latency_ms: Spread
    latency_ratio: Spread
    """The latency of a job alone as a multiple of an inference in the whole model's process."""
    cpu_ratio: Spread
    """The CPU of all nodes per inference as a multiple of the whole model's."""

    @property
    def resident_most_bytes(self) -> int:
        """Of the node that needs most."""
        return max(self.measured.resident_bytes.values())


@dataclass(frozen=True, slots=True)
class Aim:
    """What was aimed at, and the model's figure."""

    text: str
    model: str
    value: Spread
    limit: float
    at_least: bool = True

    @property
    def reached(self) -> bool:
        """Whether the median is on the right side."""
        return self.value.median >= self.limit if self.at_least else self.value.median <= self.limit


class Table:
    """All figures of a file, by cell."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._by_cell = {
            line.cell: _figures(line.cell, line.measured)
            for line in lines
            if line.measured is not None
        }

    @property
    def all(self) -> list[Figures]:
        """In the order of the lines."""
        return list(self._by_cell.values())

    def models(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(cell.model for cell in self._by_cell))

    def kinds(self) -> list[Kind]:
        """Each once, in the order of `KINDS`."""
        return [kind for kind in KINDS if any(cell.kind == kind for cell in self._by_cell)]

    def nodes(self) -> list[int]:
        """Each number once, in order."""
        return sorted({cell.nodes for cell in self._by_cell})

    def get(self, model: str, kind: Kind, nodes: int, plan: PlanKind) -> Figures | None:
        """The figures of a cell, if it was measured."""
        return self._by_cell.get(Cell(model, kind.runtime, kind.level, nodes, plan))

    def of(self, model: str, kind: Kind) -> list[Figures]:
        """All of a model with a runtime and level."""
        return [
            each for cell, each in self._by_cell.items() if (cell.model, cell.kind) == (model, kind)
        ]

    def aims(self) -> list[Aim]:
        """What was aimed at on three nodes of 0.5, 0.3 and 0.2 CPU, model by model."""
        found: list[Aim] = []
        for kind in self.kinds():
            for model in self.models():
                if kind.level == MAIN_LEVEL:
                    found += self._aims_of(model, kind)
        return found

    def _aims_of(self, model: str, kind: Kind) -> list[Aim]:
        stages, free = (self.get(model, kind, 3, plan) for plan in ("stages", "free"))
        eager = self.get(model, EAGER, 3, "stages")
        found: list[Aim] = []
        if stages is not None:
            found.append(
                Aim(f"{kind}: three stages, of the whole's rate", model, stages.ratio, 0.85)
            )
            found.append(
                Aim(
                    f"{kind}: a job alone, of the whole's time", model, stages.latency_ratio, 1.35,
                    at_least=False,
                )
            )  # fmt: skip
        if stages is not None and free is not None:
            best = max(stages, free, key=lambda each: each.ratio.median)
            found.append(Aim(f"{kind}: best plan, of the whole's rate", model, best.ratio, 0.92))
        if stages is not None and eager is not None and kind.runtime == "onnxruntime":
            rates = Spread(
                stages.per_s.median / eager.per_s.median,
                stages.per_s.low / eager.per_s.high,
                stages.per_s.high / eager.per_s.low,
            )
            found.append(Aim(f"{kind}: three stages, of eager's rate", model, rates, 2.4))
        return found


def _figures(cell: Cell, measured: Measured) -> Figures:
    rounds = measured.rounds
    return Figures(
        cell=cell,
        measured=measured,
        per_s=Spread.of([each.per_s for each in rounds]),
        ratio=Spread.of([each.ratio for each in rounds]),
        latency_ms=Spread.of([statistics.median(each.latency_ms) for each in rounds]),
        latency_ratio=Spread.of(
            [statistics.median(each.latency_ms) / each.whole_ms for each in rounds]
        ),
        cpu_ratio=Spread.of([each.cpu_ms / each.whole_cpu_ms for each in rounds]),
    )

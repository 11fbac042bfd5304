"""What is measured: a table of models, runtimes with levels, numbers of nodes and ways of planning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.errors import ConfigurationError

PlanKind = Literal["stages", "free"]
"""`stages`: one pipeline with a stage on each node, as asked for; `free`: what the planner thinks best."""

SHARES: Mapping[int, tuple[float, ...]] = {
    1: (1.0,),
    2: (0.6, 0.4),
    3: (0.5, 0.3, 0.2),
    4: (0.4, 0.3, 0.2, 0.1),
}
"""CPUs of each node: one CPU in all, so that each cell is compared with one process at 1.0 CPU."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A runtime and how far it may optimise; level O0 with torch is the original's own operators (eager)."""

    runtime: str
    level: str

    @property
    def plain(self) -> bool:
        """Whether the model is computed as its author wrote it."""
        return self == EAGER

    def __str__(self) -> str:
        return f"{self.runtime} {'eager' if self.plain else self.level}"


EAGER = Kind("torch", "O0")
KINDS = (Kind("onnxruntime", "O1"), Kind("onnxruntime", "O2"), Kind("torch", "O1"), EAGER)
"""A runtime's together, for its nodes have only that one in memory. ONNX Runtime folds at O0 as well."""
MAIN_LEVEL = "O1"


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement. `nodes` have the CPUs of `SHARES`."""

    model: str
    runtime: str
    level: str
    nodes: int
    plan: PlanKind

    @property
    def kind(self) -> Kind:
        """Its runtime and level."""
        return Kind(self.runtime, self.level)

    def __str__(self) -> str:
        plan = "planned freely" if self.plan == "free" else f"{self.nodes} stages"
        nodes = f"{self.nodes} node{'s' * (self.nodes > 1)}"
        return f"{self.model}, {self.kind}, {nodes}" + (f", {plan}" if self.nodes > 1 else "")


def cells_of(models: Sequence[str], kinds: Sequence[Kind], nodes: Sequence[int]) -> Iterator[Cell]:
    """All cells, in the order in which they are measured.

    Level O1 is measured with each number of nodes in both ways of planning, other levels with three nodes
    (or the most there are, when fewer) in stages: what a level does it does on any number of nodes.

    Raises:
        ConfigurationError: a number of nodes without shares.
    """
    for count in nodes:
        if count not in SHARES:
            raise ConfigurationError(
                "number of nodes", expected=f"{min(SHARES)} to {max(SHARES)}", got=str(count)
            )
    usual = 3 if 3 in nodes else max(nodes)
    for kind in kinds:
        for model in models:
            for count in nodes:
                if kind.level == MAIN_LEVEL or count == usual:
                    yield Cell(model, kind.runtime, kind.level, count, "stages")
                if kind.level == MAIN_LEVEL and count > 1:
                    yield Cell(model, kind.runtime, kind.level, count, "free")

"""What was measured, a JSON line each, written as it comes: a run that was cut off goes on where it ended.

A line counts for the code and the machine that it was measured with. After a change of either its cell is
measured anew, and the newer line is the one that is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from deploy.bench.cells import Cell
from deploy.machine import Machine
from shared.codec import decode_json, encode_json
from shared.errors import ConfigurationError, ProtocolError

RAW = "raw.jsonl"
"""The file's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One turn: the whole model's process, the cluster, the whole model's process again.

    Rates are answers per second; CPU is of all agents, or of the whole model's process, in milliseconds per
    answer; `latency_ms` are of jobs sent one at a time.
    """

    per_s: float
    cpu_ms: float
    latency_ms: list[float]
    whole_per_s: float
    whole_cpu_ms: float
    whole_ms: float
    """An inference in the whole model's process, one at a time as it always is there: the median."""

    @property
    def ratio(self) -> float:
        """The cluster's rate as a share of the whole model's."""
        return self.per_s / self.whole_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What the plan of a cell made the nodes fetch: weights and graphs, of which they kept what they had.

    `before` is the plan that ran until then, none for a model that was new to these nodes.
    """

    fetched_bytes: int
    seconds: float
    before: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was found.

    Memory is resident, by node, while it serves. `job_bytes` are the payloads of all messages of one job: its
    input, what stages send each other, result and answer. `weight_bytes` are of all stages of the plan.
    """

    plan: str
    rounds: list[Round]
    delivered: Delivered
    job_bytes: int
    weight_bytes: int
    resident_bytes: dict[str, int]
    whole_resident_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of the file: a cell as it was measured, or why it could not be."""

    machine: Machine
    cell: Cell
    measured: Measured | None = None
    failed: str = ""
    took_s: float = 0.0


@dataclass(slots=True)
class RawFile:
    """The lines so far. `append` writes through."""

    path: Path
    lines: list[Line] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> RawFile:
        """Read what is there; a last line that was cut off is left out.

        Raises:
            ConfigurationError: it is no such file.
        """
        if not path.exists():
            return cls(path)
        lines: list[Line] = []
        texts = path.read_bytes().split(b"\n")
        for number, text in enumerate(texts, 1):
            try:
                if text:
                    lines.append(decode_json(text, Line))
            except ProtocolError as error:
                if number == len(texts):
                    break  # somebody pulled the plug while it was written
                raise ConfigurationError(
                    f"{path}, line {number} is none of ours: {error.message}; move the file away",
                    expected="what an earlier run wrote",
                    got=text[:60].decode(errors="replace"),
                ) from error
        if texts[-1]:
            path.write_bytes(b"".join(encode_json(line) + b"\n" for line in lines))
        return cls(path, lines)

    def append(self, line: Line) -> None:
        """Keep one more."""
        self.lines.append(line)
        with self.path.open("ab") as file:
            file.write(encode_json(line) + b"\n")

    def done(self, machine: Machine) -> dict[Cell, Measured]:
        """Cells measured with this code on this machine."""
        return {
            line.cell: line.measured
            for line in self.lines
            if line.measured is not None and same(line.machine, machine)
        }

    def latest(self, cells: Iterable[Cell]) -> list[Line]:
        """The latest line of each of these cells, those without one left out."""
        newest = {line.cell: line for line in self.lines}
        return [newest[cell] for cell in cells if cell in newest]

    def cells(self) -> list[Cell]:
        """All cells that have a line, in the order of their first ones."""
        return list(dict.fromkeys(line.cell for line in self.lines))


def same(one: Machine, other: Machine) -> bool:
    """Whether figures of both may stand in one table.

    Changes that are not committed are not told apart: the file of figures itself may be one of them.
    """
    return _circumstances(one) == _circumstances(other)


def _circumstances(machine: Machine) -> tuple[object, ...]:
    commit = machine.commit.removesuffix("-dirty")
    return (machine.cpu_model, machine.cores, commit, machine.versions)

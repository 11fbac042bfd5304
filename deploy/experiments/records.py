"""Raw data of the experiments: a JSON line for each measured case and round, appended as it is measured.

What is in the file need not be measured again, so a run that was ended goes on where it stopped. A line that
a power cut tore is measured anew.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from deploy.machine import Machine
from shared.codec import decode_json, encode_json
from shared.errors import ProtocolError

Parameter: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One round of one case.

    `figures` have their unit in the name; None stands for what did not happen (no recovery, say). Two records
    with the same experiment, case, round and parameters say the same thing twice.
    """

    experiment: str
    case: str
    round: int
    parameters: dict[str, Parameter]
    figures: dict[str, float | None]
    notes: dict[str, str] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)
    """What changed over the round: a figure per second, say."""
    seconds: float = 0.0
    """How long the round took, with all that was started for it."""
    machine: Machine


@dataclass(frozen=True, slots=True)
class RecordFile:
    """A file of records."""

    path: Path

    def read(self) -> tuple[Record, ...]:
        """All of them, in the order in which they were measured; none where there is no file.

        Raises:
            ProtocolError: a line other than the last is no record.
        """
        whole, rest = self._split()
        lines = [*whole.split(b"\n"), rest]
        return tuple(decode_json(line, Record) for line in lines if line)

    def append(self, record: Record) -> None:
        """Add a line, safe on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole, rest = self._split()
        with self.path.open("ab") as file:
            file.truncate(len(whole) + len(rest))
            file.write((b"\n" if rest else b"") + encode_json(record) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _split(self) -> tuple[bytes, bytes]:
        """The lines that have an end, and a last one that lacks nothing else."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return b"", b""
        end = data.rfind(b"\n") + 1
        try:
            decode_json(data[end:], Record)
        except ProtocolError:
            return data[:end], b""
        return data[:end], data[end:]

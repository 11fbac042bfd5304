"""Records of experiments: what was measured is read back, also after a run that was ended in mid-line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.experiments.records import Record, RecordFile
from deploy.machine import Machine
from shared.errors import ProtocolError

MACHINE = Machine(
    at="2026-01-01T00:00:00+00:00",
    cpu_model="none",
    cores=2,
    memory_bytes=1,
    system="Linux",
    load_average=0.0,
    commit="abc",
    versions={"python": "3.11"},
)
FIRST = Record(
    experiment="peers",
    case="gloo",
    round=0,
    parameters={"window": 8, "scale": 0.5},
    figures={"throughput_per_s": 70.25, "recovery_s": None},
    notes={"torch": "2.13.0"},
    machine=MACHINE,
)
SECOND = replace(FIRST, round=1, figures={"throughput_per_s": 71.0, "recovery_s": 0.5})


def test_what_was_appended_is_read_in_order(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "deep" / "records.jsonl")
    assert file.read() == ()
    file.append(FIRST)
    file.append(SECOND)
    assert file.read() == (FIRST, SECOND)


@pytest.mark.parametrize("lost", [1, 2, 40])
def test_a_torn_last_line_is_measured_again(tmp_path: Path, lost: int) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.append(FIRST)
    file.append(SECOND)
    file.path.write_bytes(file.path.read_bytes()[:-lost])
    whole = (FIRST, SECOND) if lost == 1 else (FIRST,)
    assert file.read() == whole
    third = replace(SECOND, round=2)
    file.append(third)
    assert file.read() == (*whole, third)


def test_a_damaged_line_in_the_middle_is_no_silent_gap(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.append(FIRST)
    file.path.write_bytes(b"{}\n" + file.path.read_bytes())
    with pytest.raises(ProtocolError):
        file.read()

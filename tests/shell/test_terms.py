"""The term that an agent remembers over its restarts, on a disk that may hold anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.terms import TermFile


def test_the_greatest_survives(tmp_path: Path) -> None:
    file = TermFile(tmp_path)
    assert file.read() == 0
    for term in (3, 7, 5):
        file.keep(term)
    assert TermFile(tmp_path).read() == 7


@pytest.mark.parametrize(
    "content", [b"", b"x", b"-3", b"\xff\xfe", b"9" * 16, b"9" * 5000, "٣".encode()]
)
def test_what_is_no_term_obeys_any_leader(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "term").write_bytes(content)
    file = TermFile(tmp_path)
    assert file.read() == 0
    file.keep(2)
    assert TermFile(tmp_path).read() == 2


def test_a_disk_that_takes_nothing_is_survived(tmp_path: Path) -> None:
    file = TermFile(tmp_path / "missing")
    file.keep(4)
    assert file.read() == 0

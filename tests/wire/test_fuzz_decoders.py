"""Every decoder under some thousand hostile inputs, and under all that was ever found."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz import decoders
from tests.fuzz.mutate import mutations
from tests.fuzz.registry import NOT_DECODERS, SLOW_MODULES, targets
from tests.fuzz.target import Target
from tests.fuzz.worker import HAVE_ATHERIS

INPUTS = int(os.environ.get("AMP4EC_FUZZ_INPUTS", "1000"))
"""For each target."""
TARGETS = targets()
TOP = Path(__file__).parents[2]
PRODUCT = ("shared", "orchestrator", "edge_agent", "broker", "deploy")


def findings(target: Target) -> list[Path]:
    folder = decoders.CORPUS / target.name
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_nothing_but_the_declared_error_comes_out(target: Target) -> None:
    for path in findings(target):
        assert target.try_one(path.read_bytes()) is None, f"found before: {path}"
    inputs = max(20, int(INPUTS * min(target.share, 2)))
    for data in islice(mutations(target.seeds(1), 1), inputs):
        error = target.try_one(data)
        assert error is None, f"{error!r} for {data[:200]!r}"


def public_decoders() -> Iterator[str]:
    """Public functions of modules that are named as what turns bytes or text into values."""
    for top in PRODUCT:
        for path in sorted((TOP / top).rglob("*.py")):
            module = ".".join(path.relative_to(TOP).with_suffix("").parts)
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef) and (
                    node.name in ("parse", "load", "from_wire", "unpack")
                    or node.name.startswith(("decode_", "read_", "parse_", "load_"))
                ):
                    yield f"{module}.{node.name}"


def test_every_decoder_is_registered() -> None:
    covered = {name for target in TARGETS.values() for name in target.covers}
    there = set(public_decoders())
    assert len(there) > 20
    missing = there - covered - NOT_DECODERS.keys()
    assert not missing, f"add a Target to tests/fuzz/*_targets.py for: {', '.join(sorted(missing))}"
    assert covered | NOT_DECODERS.keys() <= there, "these are gone"


def test_every_finding_is_of_a_target() -> None:
    assert {path.name for path in decoders.CORPUS.iterdir()} <= TARGETS.keys()


def test_a_fault_is_found_and_kept(tmp_path: Path) -> None:
    """The instrument itself: a decoder that raises KeyError for one first byte does not go unnoticed."""

    def faulty(data: bytes) -> object:
        return {0: data}[data[0] == 0xFF] if data else None

    target = Target(
        name="faulty", decode=faulty, allowed=(), covers=(), seeds=lambda _: [b"abc"], guided=False
    )
    row = decoders.fork(target, 5000, seed=1)
    assert not row.good
    (finding,) = row.outcome.findings
    assert "KeyError" in finding.error
    assert finding.data.startswith("ff")


@pytest.mark.skipif(not HAVE_ATHERIS, reason="atheris is not installed: pip install '.[dev]'")
def test_coverage_guides_the_fuzzer() -> None:
    report = decoders.run(4000, 1, ["mqtt-publish"])
    (row,) = report.rows
    assert row.good, row.outcome.findings
    assert row.outcome.inputs == 4000
    assert row.outcome.guided


def test_slow_targets_are_those_that_import_torch() -> None:
    assert all("file" in name or "archive" in name for name in targets(SLOW_MODULES))

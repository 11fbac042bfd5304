"""The short form of `python -m tests.cluster.chaos`: everything breaks once, and every promise holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.link import network_missing
from tests.cluster.chaos.faults import missing
from tests.cluster.chaos.run import Options, run
from tests.cluster.chaos.schedule import FaultKind

pytestmark = pytest.mark.skipif(bool(network_missing()), reason=network_missing())


@pytest.mark.timeout(600)
async def test_each_fault_once(tmp_path: Path) -> None:
    kinds = tuple(kind for kind in FaultKind if not missing(kind))
    options = Options(
        seed=7, minutes=0.0, kinds=kinds, runtime="onnxruntime", per_s=15.0, quick=True
    )
    outcomes = await run(tmp_path, options)
    assert [check for check in outcomes.checks if not check.held] == []
    assert {each.fault.kind for each in outcomes.struck} == set(kinds)

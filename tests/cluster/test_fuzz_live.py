"""The short form of `python -m tests.fuzz live`: some thousand hostile messages, good jobs among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.live import Live, serving

pytestmark = pytest.mark.timeout(240)


async def test_hostile_messages_cost_no_good_job_anything(tmp_path: Path) -> None:
    async with serving(tmp_path, print) as cluster:
        report = await Live(cluster, seed=7, say=print).run(2000)
    assert {promise: broken for promise, broken in report.verdicts.items() if broken} == {}
    assert report.jobs > 20
    assert report.messages == 2000

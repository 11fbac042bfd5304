"""Two of the peers for real, for a moment: gloo and one process alone, whose environment is this one.

Ray and Aiko Services are too heavy for CI; this makes their environments and runs them:
`python -m deploy.experiments peers --repeat 1 --minutes 0.1 --case ray --case aiko`.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.experiments.peers.driver import Ask, Driver
from deploy.experiments.peers.drivers import export
from deploy.experiments.peers.outcome import Counts, count
from deploy.experiments.peers.systems import MODEL, SYSTEMS, Bench
from shared.errors import ModelError


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The model, exported as a run exports it."""
    bench = Bench(directory=tmp_path_factory.mktemp("peers"), shares=(0.5, 0.3, 0.2), window=4)
    export.weigh(MODEL, bench.files)
    cuts, shares = export.balance(MODEL, bench.files, bench.shares)
    assert 0 < cuts[0] < cuts[1]
    assert sorted(shares) == sorted(bench.shares)
    with pytest.raises(ModelError, match="cannot cut there"):
        export.cut(MODEL, bench.files, cuts[::-1])
    export.cut(MODEL, bench.files, cuts)
    return bench


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["gloo", "alone"])
async def test_it_answers_right_and_not_at_all_without_its_middle(bench: Bench, name: str) -> None:
    before, after = await _robbed(bench, name)
    assert before.sent == before.answered > 0
    assert after.sent > 0
    assert after.answered == 0
    assert after.wrong == 0


async def _robbed(bench: Bench, name: str) -> tuple[Counts, Counts]:
    """What became of items with all stages, and of those sent after the middle one was killed."""
    system = next(each for each in SYSTEMS if each.name == name)
    options: dict[str, Any] = system.options(bench)
    driver = await Driver.start(
        Path(sys.executable),
        system.module,
        files=bench.files,
        limits=[],  # as fast as it can
        options=options,
        environment=system.variables,
        log=bench.directory / f"{name}.log",
    )
    async with driver:
        load = await driver.load(Ask(seconds=1.0, window=bench.window))
        before = count(await load.finish())
        middle = driver.stages[len(driver.stages) // 2]
        process = os.pidfd_open(middle)
        os.kill(middle, signal.SIGKILL)
        await asyncio.to_thread(_gone, process)
        load = await driver.load(Ask(seconds=1.0, rate_per_s=5.0, item_timeout_s=2.0))
        return before, count(await load.finish())


def _gone(process: int) -> None:
    """Wait for the end of a process that is no child of ours: a pidfd can be read then, zombie or not."""
    select.select([process], [], [])
    os.close(process)

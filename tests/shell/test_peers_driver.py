"""Both ends of a driver's pipe, with a peer that answers from memory."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from deploy.experiments.peers.driver import Ask, Driver, DriverEndedError
from deploy.experiments.peers.outcome import count
from deploy.experiments.peers.usage import read_usage

WARM_UP = 3 * 8


@pytest.fixture
def files(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    np.save(tmp_path / "inputs.npy", random.normal(size=(8, 3, 4, 4)).astype(np.float32))
    np.save(tmp_path / "answers.npy", random.normal(size=(8, 1, 10)).astype(np.float32))
    return tmp_path


@asynccontextmanager
async def running(
    files: Path, *, good: int = 10**9, bad: str = "", tidy: bool = False
) -> AsyncIterator[Driver]:
    driver = await Driver.start(
        Path(sys.executable),
        "tests.fakes.peer",
        files=files,
        limits=[],
        options={"good": good, "bad": bad, "tidy": tidy},
        environment={},
        log=files / "peer.log",
    )
    async with driver:
        yield driver


async def test_a_foreign_environment_sees_the_drivers_and_nothing_else_of_ours(files: Path) -> None:
    python = files / "python"
    # `shared` lies beside `deploy`; without site-packages (-S) only what is handed over can be found.
    code = (
        "import deploy, sys; from importlib.util import find_spec;"
        " sys.exit('shared: ' + str(find_spec('shared')))"
    )
    python.write_text(f'#!/bin/sh\ncd / && exec {sys.executable} -S -c "{code}"\n')
    python.chmod(0o755)
    with pytest.raises(DriverEndedError, match="shared: None"):
        await Driver.start(
            python, "any", files=files, limits=[], options={}, environment={},
            log=files / "logs" / "peer.log",
        )  # fmt: skip


async def test_a_window_is_kept_full_until_it_is_enough(files: Path) -> None:
    async with running(files) as driver:
        assert driver.facts == {"kind": "fake"}
        load = await driver.load(Ask(seconds=60.0, window=4))
        while len(load.items) < 50:
            await load.advance()
        load.enough()
        items = await load.finish()
    counts = count(items)
    assert counts.sent == counts.answered >= 50
    assert all(item.sent_at <= item.ended_at for item in items)


async def test_a_second_load_follows_the_first(files: Path) -> None:
    async with running(files) as driver:
        for _ in range(2):
            load = await driver.load(Ask(seconds=0.01, window=1))
            assert count(await load.finish()).answered > 0


async def test_a_rate_sends_by_the_clock_whatever_became_of_the_items(files: Path) -> None:
    async with running(files, good=WARM_UP, bad="never") as driver:
        load = await driver.load(Ask(seconds=0.3, rate_per_s=100.0, item_timeout_s=0.5))
        counts = count(await load.finish())
    assert counts.sent == counts.lost
    assert counts.sent > 1


@pytest.mark.parametrize("bad", ["wrong", "refused"])
async def test_what_is_not_the_models_answer_is_told_apart(files: Path, bad: str) -> None:
    async with running(files, good=WARM_UP + 5, bad=bad) as driver:
        load = await driver.load(Ask(seconds=0.3, window=1))
        counts = count(await load.finish())
    assert counts.answered == 5
    assert {"wrong": counts.wrong, "refused": counts.refused}[bad] == counts.sent - 5 > 0


async def test_a_system_that_answers_wrong_from_the_start_is_not_measured(files: Path) -> None:
    with pytest.raises(DriverEndedError, match="answers wrong before anything was measured"):
        async with running(files, good=0, bad="wrong"):
            pass


async def test_a_driver_that_ends_is_an_error_with_its_log(files: Path) -> None:
    async with running(files, good=WARM_UP, bad="end") as driver:
        load = await driver.load(Ask(seconds=60.0, window=1))
        with pytest.raises(DriverEndedError, match="ended with status"):
            await load.finish()


async def test_a_driver_takes_its_system_down_when_it_is_terminated(files: Path) -> None:
    async with running(files, tidy=True) as driver:
        (stage,) = driver.stages
        left = psutil.Process(stage)
        driver.process.terminate()  # what it gets when this process dies
        await driver.process.wait()
        assert not left.is_running()


async def test_all_that_it_started_counts_and_ends_with_it(files: Path) -> None:
    async with running(files) as driver:
        (stage,) = driver.stages
        usage = read_usage(driver.pid)
        assert list(usage.cpu_s) == [stage]
        assert 0 < usage.pss_bytes <= usage.rss_bytes
        left = psutil.Process(stage)
    assert not left.is_running()

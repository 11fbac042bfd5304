"""What neighbours leave of a node's CPU."""

from __future__ import annotations

import math

import pytest

from orchestrator.core.contention import (
    IDLE_SAMPLES,
    LEAST_LEFT,
    TOLERANCE_RATIO,
    UNSEEN_S,
    WINDOWS,
    Contention,
)


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("left", [1.0, 0.7, 0.5])
def test_what_is_left_is_read_from_how_long_a_stage_takes(share: float, left: float) -> None:
    contention = Contention()
    for second in range(WINDOWS):
        contention.measured(float(second), 0.01, 0.01 / share / left, share)
    assert left <= contention.left_ratio <= min(left * TOLERANCE_RATIO, 1.0) + 1e-9


def test_a_stage_that_does_not_use_up_its_share_is_not_kept_from_it() -> None:
    contention = Contention()
    for second in range(WINDOWS):
        contention.measured(float(second), 0.01, 0.01, 0.2)
    assert contention.left_ratio == 1.0


@pytest.mark.parametrize(("cpu_s", "wall_s"), [(0.0, 1.0), (0.01, 0.0), (1e-9, 1e9)])
def test_strange_windows_stay_within_bounds(cpu_s: float, wall_s: float) -> None:
    contention = Contention()
    for second in range(WINDOWS):
        contention.measured(float(second), cpu_s, wall_s, 1.0)
    assert LEAST_LEFT <= contention.left_ratio <= 1.0


def test_bursts_of_a_few_windows_do_not_count() -> None:
    contention = Contention()
    for second in range(100):
        contention.measured(
            float(second), 0.01, 0.05 if second % WINDOWS < WINDOWS // 2 else 0.01, 1.0
        )
        if second >= WINDOWS:
            assert contention.left_ratio == 1.0


def taken() -> Contention:
    contention = Contention()
    for second in range(WINDOWS):
        contention.measured(float(second), 0.01, 0.02, 1.0)
    return contention


def test_an_idle_machine_takes_nothing() -> None:
    contention = taken()
    for second in range(int(UNSEEN_S) + WINDOWS):
        contention.heard(float(second), 0.1)
        assert contention.left_ratio < 1.0
    contention.heard(UNSEEN_S + WINDOWS, 0.1)
    assert contention.left_ratio == 1.0
    assert UNSEEN_S > IDLE_SAMPLES


@pytest.mark.parametrize("others", [None, 0.5, math.inf])
def test_a_machine_that_is_busy_or_says_nothing_is_believed(others: float | None) -> None:
    contention = taken()
    before = contention.left_ratio
    for second in range(1000):
        contention.heard(float(second), others)
    assert contention.left_ratio == before

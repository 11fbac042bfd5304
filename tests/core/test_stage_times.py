"""Windows of stage times, and the published error of predictions, by hand."""

from __future__ import annotations

import pytest

from orchestrator.core.stage_times import StageTimes, Window, prediction_error


def measured(*walls_s: float, first_sight_s: float = 0.1, expected_s: float = 0.1) -> StageTimes:
    times = StageTimes()
    for wall_s in walls_s:
        times.add(Window(5, 0.01, wall_s), 1.0, first_sight_s, expected_s)
    return times


def test_a_window_has_items_enough() -> None:
    times = StageTimes()
    assert times.gather(2, 0.01, 0.02) is None
    assert times.gather(2, 0.03, 0.04) is None
    full = times.gather(4, 0.02, 0.05)
    assert full is not None
    assert full.items == 8
    assert full.cpu_s == pytest.approx((2 * 0.01 + 2 * 0.03 + 4 * 0.02) / 8)
    assert full.wall_s == pytest.approx((2 * 0.02 + 2 * 0.04 + 4 * 0.05) / 8)
    assert times.gather(1, 9.0, 9.0) is None, "the next begins anew"
    assert times.gather(9, 0.01, 0.01) is not None


@pytest.mark.parametrize("strange", [0.0, -1.0, float("nan"), float("inf")])
def test_what_cannot_be_a_time_is_left_out(strange: float) -> None:
    times = StageTimes()
    assert times.gather(9, strange, 0.1) is None
    assert times.gather(9, 0.1, strange) is None
    assert times.gather(0, 0.1, 0.1) is None
    assert times.gather(5, 0.1, 0.2) == Window(5, 0.1, 0.2)


def test_nothing_measured() -> None:
    times = StageTimes()
    assert times.measured_s is times.first_sight_error is times.error is None
    assert prediction_error([]) is None
    assert prediction_error([times]) is None


@pytest.mark.parametrize(
    ("cpu_s", "wall_s", "share", "expected"),
    [
        (0.01, 0.012, 0.2, 0.05),  # it was not stopped by its quota, but will be under load
        (0.01, 0.06, 0.2, 0.06),  # a neighbour kept it from its share
        (0.01, 0.012, 1.0, 0.012),
    ],
)
def test_what_an_item_costs_a_node(
    cpu_s: float, wall_s: float, share: float, expected: float
) -> None:
    times = StageTimes()
    times.add(Window(5, cpu_s, wall_s), share, 0.1, 0.1)
    assert times.measured_s == pytest.approx(expected)


def test_one_strange_window_changes_nothing() -> None:
    assert measured(0.1, 0.1, 5.0, 0.1).measured_s == pytest.approx(0.1)
    assert measured(0.1, 0.1, 0.1, 0.3, 0.3, 0.3).measured_s == pytest.approx(0.3), "but three do"


def test_errors_by_hand() -> None:
    """One stage took 200 ms where 100 were predicted, at last 190; the other what was predicted."""
    late = measured(0.2, 0.2)
    late.add(Window(5, 0.01, 0.2), 1.0, 0.1, 0.19)
    found = prediction_error([late, measured(0.1), StageTimes()])
    assert found is not None
    assert found.first_sight_ratio == pytest.approx((0.5 + 0.0) / 2)
    assert found.now_ratio == pytest.approx(((0.5 + 0.5 + 0.05) / 3 + 0.0) / 2)
    assert (found.stages, found.items) == (2, 5)


def test_now_is_of_the_last_windows() -> None:
    times = measured(*[0.2] * 9)
    for _ in range(5):
        times.add(Window(5, 0.01, 0.2), 1.0, 0.1, 0.2)
    assert times.error == 0.0
    assert times.first_sight_error == pytest.approx(0.5)
    assert times.items == 14 * 5

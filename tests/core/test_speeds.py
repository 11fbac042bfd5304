"""A node's speed at a model: calibrated, and corrected by what its stages took."""

from __future__ import annotations

import pytest

from orchestrator.core.speeds import SPEED_BOUNDS, Corrections, calibrated_speed
from tests.core.cluster_world import birth, entry


@pytest.mark.parametrize(
    ("speed", "thought"), [(0.5, 0.5), (1e9, SPEED_BOUNDS[1]), (1e-9, SPEED_BOUNDS[0])]
)
def test_calibrated_speed(speed: float, thought: float) -> None:
    assert calibrated_speed(birth("a", speed=speed), entry()) == pytest.approx(thought)


def test_speed_of_a_node_or_model_without_a_reference_is_one() -> None:
    one = entry()
    state = birth("a", speed=0.5)
    for reference in ({}, {"torch": {"other": 1.0}}, {"torch": {"conv": 0.0}}):
        one.reference.clear()
        one.reference.update(reference)
        assert calibrated_speed(state, one) == 1.0
    assert calibrated_speed(birth("b"), entry()) == 1.0


def test_class_shares_weigh_the_classes() -> None:
    one = entry()
    one.reference["torch"]["matmul"] = 0.1
    state = birth("a", speed=0.5)
    state.calibration["torch"].seconds["matmul"] = 0.1
    assert calibrated_speed(state, one) == pytest.approx(1 / 1.5)
    one.class_shares.update(conv=0.0, matmul=1.0)
    assert calibrated_speed(state, one) == pytest.approx(1.0)


def test_corrections_are_bounded_smoothed_and_want_enough_items() -> None:
    corrections = Corrections()
    corrections.take("m", 0.1, 0.01, items=4)
    corrections.take("m", 0.1, 0.0, items=9)
    corrections.take("m", 0.0, 0.1, items=9)
    assert corrections.by_model == {}
    corrections.take("m", 1.0, 0.01, items=5)
    assert corrections.by_model == {"m": 5.0}
    corrections.take("m", 0.01, 0.01, items=5)
    assert corrections.ratio("m") == pytest.approx(5.0 - 0.3 * 4.0)

"""What measured stages teach about a node: quickly, boundedly, and about what they consist of."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.corrections import MOST_MODELS, MULTIPLIER_BOUNDS, RATIO_BOUNDS, Corrections
from orchestrator.core.speeds import COMPONENTS, FloatArray
from tests.core.plan_cases import several

WINDOWS_OF_50_JOBS = 10


def stage(**seconds: float) -> FloatArray:
    return np.array([seconds.get(name, 0.0) for name in COMPONENTS])


MIXED = stage(conv_dense=0.02, conv_depthwise=0.005, memory=0.003, overhead=0.001, messages=0.001)


def expected_s(corrections: Corrections, model: str, components: FloatArray) -> float:
    return float(components @ corrections.multipliers(model))


def test_nothing_measured_changes_nothing() -> None:
    corrections = Corrections()
    assert (corrections.multipliers("m") == 1.0).all()
    corrections.take("m", MIXED, 0.0)
    corrections.take("m", stage(), 0.1)
    corrections.take("m", MIXED, float("nan"))
    assert (corrections.multipliers("m") == 1.0).all()


@several
@given(
    st.lists(st.floats(0.0, 0.1), min_size=len(COMPONENTS), max_size=len(COMPONENTS)),
    st.lists(st.floats(0.3, 4.0), min_size=len(COMPONENTS), max_size=len(COMPONENTS)),
    st.randoms(use_true_random=False),
)
def test_a_stage_is_known_within_50_jobs_whatever_the_truth(
    seconds: list[float], truth: list[float], noise: Random
) -> None:
    components = np.array(seconds) + 1e-3
    measured_s = float(components @ np.array(truth))
    corrections = Corrections()
    for _ in range(WINDOWS_OF_50_JOBS):
        corrections.take("m", components, measured_s * noise.uniform(0.95, 1.05))
    assert expected_s(corrections, "m", components) == pytest.approx(measured_s, rel=0.15)


@pytest.mark.parametrize("truth", [0.5, 0.9, 1.3, 4.0])
def test_a_stage_is_approached_from_one_side(truth: float) -> None:
    """What overshoots would make the next plan regret the one before."""
    corrections, before = Corrections(), 1.0
    for _ in range(30):
        corrections.take("m", MIXED, truth * MIXED.sum())
        ratio = expected_s(corrections, "m", MIXED) / MIXED.sum()
        assert min(before, truth) - 1e-9 <= ratio <= max(before, truth) + 1e-9
        before = ratio
    assert before == pytest.approx(truth, rel=0.01)


def test_two_unlike_stages_tell_the_classes_apart() -> None:
    dense, depthwise = stage(conv_dense=0.02, overhead=0.001), stage(conv_depthwise=0.02)
    corrections = Corrections()
    for _ in range(20):
        corrections.take("m", dense, dense.sum())
        corrections.take("m", depthwise, 2.0 * depthwise.sum())
    assert expected_s(corrections, "m", dense) == pytest.approx(dense.sum(), rel=0.05)
    assert expected_s(corrections, "m", depthwise) == pytest.approx(2 * depthwise.sum(), rel=0.05)
    half = stage(conv_dense=0.01, conv_depthwise=0.01)
    assert expected_s(corrections, "m", half) == pytest.approx(1.5 * half.sum(), rel=0.05)
    # Another model's depthwise stage is known before it was ever seen; a part stays this model's own.
    assert 1.6 < expected_s(corrections, "other", depthwise) / depthwise.sum() <= 2.01


def test_clients_that_send_tensors_do_not_make_a_node_look_fast() -> None:
    """The first stage takes half as long since nothing is decoded: that says little of convolutions."""
    first = stage(conv_dense=0.01, input=0.01)
    corrections = Corrections()
    for _ in range(20):
        corrections.take("m", first, 0.0105)
    assert expected_s(corrections, "m", first) == pytest.approx(0.0105, rel=0.05)
    multipliers = dict(zip(COMPONENTS, corrections.multipliers("m"), strict=True))
    assert multipliers["input"] < 0.35
    assert multipliers["conv_dense"] > 0.7


def test_what_was_never_seen_is_corrected_less() -> None:
    corrections = Corrections()
    for _ in range(20):
        corrections.take("m", stage(conv_dense=0.02), 0.04)
    unseen = stage(matmul=0.02)
    assert 1.3 < expected_s(corrections, "m", unseen) / unseen.sum() < 2.0


def test_the_present_counts_more_than_the_past() -> None:
    corrections = Corrections()
    for _ in range(500):
        corrections.take("m", MIXED, MIXED.sum())
    for _ in range(WINDOWS_OF_50_JOBS):
        corrections.take("m", MIXED, 2.0 * MIXED.sum())
    assert expected_s(corrections, "m", MIXED) == pytest.approx(2.0 * MIXED.sum(), rel=0.05)


@pytest.mark.parametrize("measured_s", [1e-9, 1e9])
def test_nonsense_is_bounded(measured_s: float) -> None:
    corrections = Corrections()
    for _ in range(1000):
        corrections.take("m", MIXED, measured_s)
    low, high = RATIO_BOUNDS
    ratio = expected_s(corrections, "m", MIXED) / MIXED.sum()
    assert low * 0.9 <= ratio <= high * 1.1
    multipliers = corrections.multipliers("m")
    assert (multipliers >= MULTIPLIER_BOUNDS[0]).all()
    assert (multipliers <= MULTIPLIER_BOUNDS[1]).all()


def test_a_model_that_is_forgotten_leaves_what_it_taught() -> None:
    corrections = Corrections()
    names = [f"m{index}" for index in range(MOST_MODELS)]
    for name in names:
        for _ in range(3):
            corrections.take(name, MIXED, 2.0 * MIXED.sum())
    corrections.take("m0", MIXED, 2.0 * MIXED.sum())
    assert corrections.models == (*names[1:], "m0")
    kept = corrections.multipliers("m9").copy()
    # Nothing new about the node: as much as is expected already.
    corrections.take("new", MIXED, expected_s(corrections, "new", MIXED))
    assert corrections.models == (*names[2:], "m0", "new"), "m1 was measured longest ago"
    assert corrections.multipliers("m9") == pytest.approx(kept)
    assert corrections.multipliers("m1") == pytest.approx(corrections.multipliers("never seen"))
    assert (corrections.multipliers("m1") > 1.5).all()
    corrections.take("m1", MIXED, 2.0 * MIXED.sum())
    assert expected_s(corrections, "m1", MIXED) == pytest.approx(2.0 * MIXED.sum(), rel=0.05)

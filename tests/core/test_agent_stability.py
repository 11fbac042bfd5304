"""The stability score."""

from __future__ import annotations

import pytest

from edge_agent.core.stability import SAMPLES, Stability


def test_first_sample_has_not_changed() -> None:
    assert Stability().add(0.7, 0.3) == 1.0


def test_steady_node_is_stable() -> None:
    stability = Stability()
    assert [stability.add(0.5, 0.5) for _ in range(10)] == [1.0] * 10


def test_mean_absolute_change_by_hand() -> None:
    stability = Stability()
    stability.add(0.0, 0.5)
    stability.add(0.4, 0.5)  # changes: 0.4, 0
    assert stability.add(0.2, 0.7) == pytest.approx(1 - (0.4 + 0.0 + 0.2 + 0.2) / 4)


def test_stays_within_bounds() -> None:
    stability = Stability()
    stability.add(0.0, 0.0)
    assert stability.add(5.0, 1.0) == 0.0  # a burst above the quota


def test_forgets_what_is_long_ago() -> None:
    stability = Stability()
    stability.add(1.0, 0.0)
    assert [stability.add(0.0, 0.0) for _ in range(SAMPLES)][-1] == 1.0

"""Fronts of points against a comparison of each with each, and what thinning promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.pareto import non_dominated, thinned
from tests.core.plan_cases import several

points = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.tuples(st.integers(0, 2), *[st.integers(0, 5) for _ in range(width)]),
        min_size=1,
        max_size=30,
    )
)


@several
@given(points)
def test_the_front_is_what_nothing_beats(rows: list[tuple[int, ...]]) -> None:
    group = np.array([row[0] for row in rows])
    figures = np.array([[float(x) for x in row[1:]] for row in rows])
    kept = [int(index) for index in non_dominated(group, figures)]
    unbeaten = {
        row
        for row in rows
        if not any(
            other[0] == row[0]
            and other != row
            and all(a <= b for a, b in zip(other[1:], row[1:], strict=True))
            for other in rows
        )
    }
    assert {rows[index] for index in kept} == unbeaten
    assert len(kept) == len(unbeaten), "of equal rows one"


@pytest.mark.parametrize("width", [2, 3])
def test_thinning_keeps_a_neighbour_of_what_goes(width: int) -> None:
    # A front: as one figure rises, another falls
    steps = np.linspace(0.0, 1.0, 400)
    figures = np.column_stack([1 + steps, 2 - steps, 1 + steps**2][:width])
    group = np.arange(400) % 2
    kept, ratio = thinned(group, figures, 20)
    assert np.unique(group[kept], return_counts=True)[1].max() <= 24
    assert 0 < ratio < 0.5
    for one, row in zip(group.tolist(), figures, strict=True):
        near = figures[kept][group[kept] == one]
        assert (near <= row * (1 + ratio) * (1 + 1e-9)).all(axis=1).any()
    for column in range(width):
        for one in (0, 1):
            assert figures[kept][group[kept] == one][:, column].min() == (
                figures[group == one][:, column].min()
            )


def test_few_points_stay_as_they_are() -> None:
    kept, ratio = thinned(np.array([0, 0, 1]), np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0]]), 2)
    assert (kept.tolist(), ratio) == ([0, 1, 2], 0.0)

"""Which measurement of a link counts: what traffic shows, or a probe."""

from __future__ import annotations

import pytest

from edge_agent.core.links import FRESH_S, Estimate, counts, is_fresh
from shared.link_rates import Rate

TRAFFIC = Rate(5.0, 100.0)


@pytest.mark.parametrize(
    ("traffic", "probed", "now", "counted"),
    [
        (None, None, 0.0, None),
        (TRAFFIC, None, 1e6, 5.0),
        (None, Rate(9.0, 0.0), 1e6, 9.0),
        (TRAFFIC, Rate(9.0, 120.0), 130.0, 5.0),  # fresh: whatever a probe says
        (TRAFFIC, Rate(9.0, 50.0), 1e6, 5.0),  # measured after the probe
        (TRAFFIC, Rate(9.0, 120.0), 100.0 + FRESH_S + 1.0, 9.0),
    ],
)
def test_fresh_traffic_counts_else_what_was_measured_last(
    traffic: Rate | None, probed: Rate | None, now: float, counted: float | None
) -> None:
    assert counts(traffic, probed, now) == counted


def test_traffic_shows_for_a_minute() -> None:
    assert is_fresh(TRAFFIC, 100.0 + FRESH_S)
    assert not is_fresh(TRAFFIC, 100.1 + FRESH_S)
    assert not is_fresh(None, 0.0)


def test_a_probe_that_could_not_tell_leaves_what_is_known_and_when() -> None:
    estimate = Estimate()
    estimate.take(7.0, 10.0)
    assert not estimate.take(None, 20.0)
    assert estimate.rate == Rate(7.0, 10.0)

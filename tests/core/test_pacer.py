"""The pacer against a simulated CPU quota."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.pacer import BURST, SHARE, Pacer


def test_without_a_quota_it_never_pauses() -> None:
    pacer = Pacer(None)
    assert pacer.charge(0.0, 1.0, 100.0) == 0.0


def test_pause_pays_for_the_item() -> None:
    pacer = Pacer(0.2)
    pacer.charge(0.0, 0.0, 0.0)
    # 15 ms used in 15 ms of wall time: 15 ms / (0.97 * 0.2) after its start the next may begin.
    pause = pacer.charge(0.0, 0.015, 0.015)
    assert pause == pytest.approx(0.015 / (SHARE * 0.2) - 0.015)


def test_idleness_saves_a_quarter_of_a_period_and_no_more() -> None:
    pacer = Pacer(0.2)
    pacer.charge(0.0, 0.0, 0.0)
    pause = pacer.charge(3600.0, 3600.0, 0.015)
    assert pause == pytest.approx((0.015 - BURST * 0.02) / (SHARE * 0.2))


def test_work_that_the_kernel_stopped_owes_nothing_more() -> None:
    pacer = Pacer(0.2)
    pacer.charge(0.0, 0.0, 0.0)
    # 60 ms of CPU took 220 ms of wall time, three budgets in three periods: nearly paid already.
    assert pacer.charge(0.0, 0.220, 0.060) < 0.1


def test_never_pauses_longer_than_a_period() -> None:
    pacer = Pacer(0.1)
    pacer.charge(0.0, 0.0, 0.0)
    assert pacer.charge(0.0, 0.001, 10.0) <= 0.1 / SHARE + 1e-9


@given(
    quota=st.floats(0.05, 2.0),
    items=st.lists(st.floats(0.0005, 0.5), min_size=20, max_size=120),
)
@settings(max_examples=60, deadline=None)
def test_long_run_use_keeps_below_the_quota(quota: float, items: list[float]) -> None:
    """Items that each use a fraction of a period's budget, back to back: the rate stays at the share."""
    pacer = Pacer(quota)
    now = 0.0
    used = 0.0
    for fraction in items:
        cpu_s = fraction * quota * 0.1
        began, now = now, now + cpu_s  # one thread at full speed
        used += cpu_s
        now += pacer.charge(began, now, cpu_s)
    budget = quota * 0.1
    assert used <= SHARE * quota * now + BURST * budget + 1e-9


def simulate(quota: float, cpu_s: float, *, paced: bool, items: int = 2000) -> tuple[float, float]:
    """Wall seconds of `items` back to back under CFS with a period of 100 ms, and the longest stop."""
    pacer = Pacer(quota if paced else None)
    period, budget = 0.1, quota * 0.1
    now, used, period_end, longest = 0.0, 0.0, 0.1, 0.0
    for _ in range(items):
        began, left = now, cpu_s
        while left > 1e-12:
            while now >= period_end:
                period_end, used = period_end + period, 0.0
            room = min(left, budget - used, period_end - now)
            if room <= 1e-12:
                longest = max(longest, period_end - now)
                now = period_end
                continue
            now, used, left = now + room, used + room, left - room
        now += pacer.charge(began, now, cpu_s)
    return now, longest


@pytest.mark.parametrize("cpu_ms", [1.0, 3.0, 5.0])
def test_paced_items_are_not_stopped_and_lose_no_throughput(cpu_ms: float) -> None:
    free, stopped = simulate(0.2, cpu_ms / 1000, paced=False)
    paced, stopped_paced = simulate(0.2, cpu_ms / 1000, paced=True)
    assert stopped > 0.075
    assert stopped_paced < 0.015
    assert paced <= free * 1.05


@pytest.mark.parametrize("cpu_ms", [10.0, 15.0, 30.0])
def test_items_as_large_as_the_budget_still_lose_no_throughput(cpu_ms: float) -> None:
    free, _ = simulate(0.2, cpu_ms / 1000, paced=False)
    paced, _ = simulate(0.2, cpu_ms / 1000, paced=True)
    assert paced <= free * 1.06

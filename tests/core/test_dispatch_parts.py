"""The dispatcher's small parts: timers, recent answers, settings."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.dispatch_settings import DispatchSettings, default_window
from orchestrator.core.nsa import NodeFigures, standing
from orchestrator.core.recent_answers import RecentAnswers
from orchestrator.core.timers import Timers
from shared.errors import ConfigurationError


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["set", "by", "cancel", "pop"]), st.integers(0, 4), st.integers(0, 20)
        ),
        max_size=300,
    )
)
def test_timers_behave_like_a_dictionary(steps: list[tuple[str, int, int]]) -> None:
    timers: Timers[int] = Timers()
    expected: dict[int, float] = {}
    for step, key, at in steps:
        if step == "set":
            timers.schedule(key, at)
            expected[key] = at
        elif step == "by":
            timers.schedule_by(key, at)
            expected[key] = min(at, expected.get(key, at))
        elif step == "cancel":
            timers.cancel(key)
            expected.pop(key, None)
        else:
            due = timers.pop_due(at)
            assert sorted(due) == sorted(k for k, when in expected.items() if when <= at)
            assert [expected[k] for k in due] == sorted(expected[k] for k in due)
            expected = {k: when for k, when in expected.items() if when > at}
        assert timers.next_at() == min(expected.values(), default=None)
        assert len(timers) == len(expected)


def test_dead_timers_leave_no_memory_behind() -> None:
    timers: Timers[int] = Timers()
    timers.schedule(-1, 1e9)
    for key in range(1_000):
        timers.schedule(key, 100.0 + key)
        timers.cancel(key)
    for _ in range(1_000):
        timers.schedule(-1, 1e9)
    assert len(timers._heap) < 100


def test_recent_answers_are_bounded_by_age_number_and_bytes() -> None:
    recent: RecentAnswers[str] = RecentAnswers(keep_s=10.0, max_entries=3, max_bytes=100)
    recent.remember("a", "A", 10, now=0.0)
    assert recent.get("a", 9.9) == "A"
    assert recent.get("a", 10.0) is None
    recent.expire(10.0)
    assert (len(recent), recent.size_bytes) == (0, 0)
    for number, key in enumerate("abcd"):
        recent.remember(key, key.upper(), 10, now=20.0 + number)
    assert [recent.get(key, 24.0) for key in "abcd"] == [None, "B", "C", "D"]
    recent.remember("e", "E", 85, now=24.0)
    assert [recent.get(key, 24.0) for key in "bcde"] == [None, None, "D", "E"]
    assert recent.size_bytes == 95
    recent.remember("e", "E2", 5, now=25.0)
    assert (recent.get("e", 25.0), recent.size_bytes) == ("E2", 15)
    recent.remember("huge", "H", 101, now=25.0)
    assert recent.get("huge", 25.0) is None
    assert recent.size_bytes == 0


def test_settings_say_which_field_makes_no_sense() -> None:
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match=r"max_item_bytes.*expected.*got"):
            DispatchSettings(max_item_bytes=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(("num_stages", "window"), [(1, 4), (2, 6), (3, 8)])
def test_default_window(num_stages: int, window: int) -> None:
    assert default_window(num_stages) == window


def test_a_need_next_to_nothing_leaves_the_ratio_finite() -> None:
    node = NodeFigures(
        node="n",
        cpu_available=1.0,
        cpu_needed=2e-309,
        memory_available_bytes=1e9,
        memory_needed_bytes=0.0,
        load_ratio=0.0,
        round_trip_s=0.0,
    )
    assert math.isfinite(standing([node]).cpu_ratio)

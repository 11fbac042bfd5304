"""When a node that comes and goes is left out, and for how long."""

from __future__ import annotations

from orchestrator.core.visits import FIRST_S, LONGEST_S, MANY, SHORT_S, WINDOW_S, Visits


def visit(visits: Visits, at: float, stays_s: float) -> float | None:
    visits.joined(at)
    return visits.left(at + stays_s)


def test_one_that_crashes_now_and_then_is_not_left_out() -> None:
    visits = Visits()
    assert [visit(visits, at * (1.0 + WINDOW_S / (MANY - 1)), 2.0) for at in range(20)] == [
        None
    ] * 20
    assert [visit(visits, 10_000.0 + at * SHORT_S, SHORT_S) for at in range(20)] == [None] * 20


def test_the_third_short_visit_within_a_minute_is_one_too_many() -> None:
    visits = Visits()
    assert [visit(visits, at, 2.0) for at in (0.0, 4.0, 8.0)] == [None, None, FIRST_S]
    assert visits.left_out_until == 10.0 + FIRST_S


def test_who_dies_while_it_loads_counts_however_long_that_took() -> None:
    visits = Visits()
    ends = []
    for at in (0.0, 20.0, 40.0):
        visits.joined(at)
        ends.append(visits.left(at + 15.0, loading=True))
    assert ends == [None, None, FIRST_S]


def test_it_doubles_up_to_the_longest_and_what_happens_meanwhile_does_not_count() -> None:
    visits, now, times = Visits(), 0.0, []
    while now < 3600.0:
        left_out_s = visit(visits, now, 2.0)
        if left_out_s is not None:
            times.append(left_out_s)
        now += 4.0
    assert times[:6] == [10.0, 20.0, 40.0, 80.0, 160.0, 300.0]
    assert set(times[6:]) == {LONGEST_S}
    assert len(times) <= 6 + 3600.0 / LONGEST_S


def test_one_that_crashes_under_its_load_after_each_return_is_left_out_longer_each_time() -> None:
    """It sits there idle while it is left out; its visit counts from when it is used again."""
    visits = Visits()
    for at in (0.0, 4.0, 8.0):
        visit(visits, at, 2.0)
    visits.joined(11.0)
    assert visits.left(visits.left_out_until + 3.0) == 2 * FIRST_S


def test_one_that_has_stayed_is_as_any_other_again() -> None:
    visits = Visits()
    for at in (0.0, 4.0, 8.0):
        visit(visits, at, 2.0)
    assert visit(visits, 100.0, LONGEST_S) is None
    assert [visit(visits, at, 2.0) for at in (1000.0, 1004.0, 1008.0)] == [None, None, FIRST_S]


def test_a_century_of_flapping_overflows_nothing() -> None:
    visits, now = Visits(), 0.0
    for _ in range(3000):
        visits.joined(now)
        now += 2.0
        visits.left(now)
        now = max(now, visits.left_out_until)
    assert visits.left_out_until <= now

"""The token buckets of control messages: what is let in, over any time, and who pays for whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.rates import NEWCOMERS, RATES, Admission, RateLimits
from shared.topics import SPECS

KIND = "telemetry"


def taken(limits: RateLimits, times: list[float], sender: str = "n1") -> int:
    return sum(limits.admit(now, KIND, sender) is Admission.TAKEN for now in times)


def test_rates_are_of_rows_of_the_table() -> None:
    assert RATES.keys() <= SPECS.keys()


@given(st.lists(st.floats(0, 5), min_size=1, max_size=400))
def test_no_span_of_time_takes_more_than_its_rate_and_one_burst(gaps: list[float]) -> None:
    limits, now, times = RateLimits(), 100.0, []
    for gap in gaps:
        now += gap / len(gaps)
        times.append(now)
    rate = RATES[KIND]
    allowed = rate.burst + (times[-1] - times[0]) * rate.per_s
    assert taken(limits, times) == min(len(times), int(allowed)) or taken(limits, times) <= allowed


def test_who_keeps_the_rate_never_loses_one() -> None:
    times = [index / RATES[KIND].per_s for index in range(5000)]
    assert taken(RateLimits(), times) == 5000


def test_one_flood_leaves_the_others_alone_and_is_said_once() -> None:
    limits = RateLimits()
    assert limits.admit(0.0, KIND, "quiet") is Admission.TAKEN
    said = [limits.admit(0.0, KIND, "loud") for _ in range(10_000)]
    assert said.count(Admission.TAKEN) == RATES[KIND].burst
    assert said.count(Admission.FIRST_DROPPED) == 1
    assert limits.admit(0.1, KIND, "quiet") is Admission.TAKEN
    assert limits.admit(0.1, "report", "loud") is Admission.TAKEN, "each kind has its own"


def test_a_sender_that_came_back_to_its_rate_is_told_of_again() -> None:
    limits = RateLimits()

    def told(now: float) -> int:
        return [limits.admit(now, KIND, "n1") for _ in range(1000)].count(Admission.FIRST_DROPPED)

    assert [told(0.0), told(1.0), told(100.0)] == [1, 0, 1]


def test_invented_names_share_one_bucket_and_little_memory() -> None:
    limits = RateLimits(most_buckets=500)
    known = [f"n{index}" for index in range(100)]
    assert all(limits.admit(0.0, KIND, name) is Admission.TAKEN for name in known)
    flood = [limits.admit(1.0, KIND, f"invented-{index}") for index in range(100_000)]
    assert flood.count(Admission.TAKEN) <= NEWCOMERS.burst
    assert flood.count(Admission.FIRST_DROPPED) == 1
    assert len(limits) <= 500


def test_lines_about_it_are_few_even_if_all_send_too_fast() -> None:
    limits = RateLimits()
    told = 0
    for sender in range(1000):
        told += [limits.admit(0.0, KIND, str(sender)) for _ in range(250)].count(
            Admission.FIRST_DROPPED
        )
    assert 1 <= told <= 20


def test_what_has_no_rate_is_taken() -> None:
    limits = RateLimits()
    assert all(limits.admit(0.0, "model_state", "m") is Admission.TAKEN for _ in range(10_000))

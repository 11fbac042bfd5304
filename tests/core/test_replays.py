"""Requests hold once, and for a few minutes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.replays import WINDOW_MS, Freshness, Replays

NOW = 1_700_000_000_000


def test_once() -> None:
    replays = Replays()
    assert replays.judge(NOW, "ann", "t", NOW - 5) is Freshness.NEW
    assert replays.judge(NOW + 1, "ann", "t", NOW - 5) is Freshness.REPEATED
    assert replays.judge(NOW + 1, "ann", "t", NOW - 6) is Freshness.REPEATED


def test_who_asks_again_signs_later() -> None:
    replays = Replays()
    assert replays.judge(NOW, "ann", "t", NOW) is Freshness.NEW
    assert replays.judge(NOW, "ann", "t", NOW + 1) is Freshness.NEW
    assert replays.judge(NOW, "ann", "t", NOW) is Freshness.REPEATED


def test_transactions_and_signers_are_apart() -> None:
    replays = Replays()
    for signer, transaction in (("ann", "t"), ("ann", "u"), ("bob", "t")):
        assert replays.judge(NOW, signer, transaction, NOW) is Freshness.NEW


def test_the_window_and_no_time_at_all() -> None:
    replays = Replays()
    for at_ms in (None, NOW - WINDOW_MS - 1, NOW + WINDOW_MS + 1, -1):
        assert replays.judge(NOW, "ann", "t", at_ms) is Freshness.STALE
    assert replays.judge(NOW, "ann", "a", NOW - WINDOW_MS) is Freshness.NEW
    assert replays.judge(NOW, "ann", "b", NOW + WINDOW_MS) is Freshness.NEW


@given(
    requests=st.lists(
        st.tuples(
            st.integers(0, 2 * WINDOW_MS),
            st.sampled_from("ab"),
            st.sampled_from("tu"),
            st.integers(-WINDOW_MS, 3 * WINDOW_MS),
        )
    )
)
def test_nothing_is_new_twice_and_memory_is_bounded_by_the_window(
    requests: list[tuple[int, str, str, int]],
) -> None:
    """Over any history in which our clock goes forward."""
    replays, taken, now = Replays(), set(), NOW
    for wait_ms, signer, transaction, offset_ms in requests:
        now += wait_ms // 10
        request = (signer, transaction, NOW + offset_ms)
        if replays.judge(now, *request) is Freshness.NEW:
            assert request not in taken
            taken.add(request)
        assert all(now - at_ms <= WINDOW_MS for at_ms in replays.seen.values())

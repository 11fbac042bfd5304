"""What the fates of items say: throughput in its interval, recovery only by what was sent after the kill."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deploy.experiments.peers.outcome import Item, count, recovery_s, silence_s, steady

KILLED_AT = 10.0
FATES = st.sampled_from(["ok", "wrong", "lost", "error: ConnectionError: gone"])
ITEMS = st.lists(
    st.builds(
        lambda sent, took, fate: Item(sent, sent + took, fate),
        st.floats(0, 30),
        st.floats(0.001, 20),
        FATES,
    )
)


def test_every_end_is_counted_once() -> None:
    fates = ["ok", "ok", "wrong", "lost", "error: RuntimeError: x"]
    counts = count([Item(0.0, 1.0, fate) for fate in fates])
    assert (counts.sent, counts.answered, counts.wrong, counts.refused, counts.lost) == (
        5, 2, 1, 1, 1,
    )  # fmt: skip


@given(ITEMS)
def test_no_item_is_lost_from_the_counts(items: list[Item]) -> None:
    counts = count(items)
    assert counts.sent == counts.answered + counts.wrong + counts.refused + counts.lost


def test_throughput_is_of_right_answers_within_the_interval() -> None:
    items = [
        Item(0.0, 0.9, "ok"),  # before
        Item(0.5, 1.0, "ok"),
        Item(0.5, 1.5, "wrong"),
        Item(1.9, 2.9, "ok"),
        Item(2.0, 3.0, "ok"),  # after
    ]
    found = steady(items, 1.0, 3.0)
    assert found.per_s == 1.0
    assert found.p50_ms == 750.0
    assert steady(items, 5.0, 6.0).p50_ms is None


def test_answers_to_what_was_sent_before_the_kill_are_no_recovery() -> None:
    before = Item(9.5, 12.0, "ok")
    assert recovery_s([before], KILLED_AT) is None
    assert recovery_s([before, Item(10.5, 13.5, "wrong")], KILLED_AT) is None
    later = [Item(11.0, 14.0, "ok"), Item(10.5, 15.0, "ok")]
    assert recovery_s([before, *later], KILLED_AT) == 4.0


def test_silence_is_the_longest_gap_from_the_kill_on() -> None:
    items = [Item(9.0, 9.9, "ok"), Item(9.8, 10.5, "ok"), Item(11.0, 13.0, "ok")]
    assert silence_s(items, KILLED_AT) == 2.5
    assert silence_s(items[:2], KILLED_AT) is None


@given(ITEMS)
def test_silence_and_recovery_agree_on_whether_it_came_back(items: list[Item]) -> None:
    back, silent = recovery_s(items, KILLED_AT), silence_s(items, KILLED_AT)
    assert (back is None) == (silent is None)
    if back is not None and silent is not None:
        ended = max(item.ended_at for item in items if item.ok)
        assert back > 0
        assert 0 < silent <= ended - KILLED_AT

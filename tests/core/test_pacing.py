"""The pace of blobs: no faster than allowed over any stretch, and no limit where there is none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.messages.artifact import PIECE_BYTES
from shared.pacing import LEAST_PIECE_BYTES, Pacer


def test_without_a_limit_nothing_waits() -> None:
    pacer = Pacer()
    assert Pacer.piece_bytes(None) == PIECE_BYTES
    assert pacer.pause_s(1.0, 10**9, None) == 0.0
    assert pacer.pause_s(1.0, 1000, 1000.0) == 1.0  # and none of it is owed later


@given(st.floats(1.0, 1e12))
def test_pieces_are_whole_and_bounded(rate: float) -> None:
    size = Pacer.piece_bytes(rate)
    assert LEAST_PIECE_BYTES <= size <= PIECE_BYTES
    assert size % LEAST_PIECE_BYTES == 0


@given(
    st.lists(st.tuples(st.integers(1, 300_000), st.floats(0.0, 0.2)), min_size=2, max_size=30),
    st.floats(1e4, 1e7),
)
def test_no_stretch_is_faster_than_allowed(moved: list[tuple[int, float]], rate: float) -> None:
    """Whoever waits as told never has more in `t` seconds than `rate * t` and the one that began it."""
    pacer, now = Pacer(), 0.0
    arrivals: list[tuple[float, int]] = []
    for size, idle_s in moved:
        now += idle_s
        arrivals.append((now, size))
        now += pacer.pause_s(now, size, rate)
    for first, (began, _) in enumerate(arrivals):
        for last in range(first + 1, len(arrivals)):
            between = sum(size for _, size in arrivals[first:last])
            assert between <= rate * (arrivals[last][0] - began) * (1 + 1e-9) + 1

"""How much of a TLS record has come, however the stream was cut."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.bus.tls_link import RecordCounter


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 300) | st.integers(250, 2_000), max_size=6),
    st.lists(st.integers(1, 20) | st.integers(1, 3_000), min_size=1, max_size=20),
)
def test_what_has_come_of_the_last_record(lengths: list[int], pieces: list[int]) -> None:
    stream = b"".join(b"\x17\x03\x03" + n.to_bytes(2) + bytes(n) for n in lengths)
    ends = {0}
    for length in lengths:
        ends.add(max(ends) + 5 + length)
    counter = RecordCounter()
    at = 0
    while at < len(stream):
        for piece in pieces:
            counter.take(memoryview(stream)[at : at + piece])
            at = min(at + piece, len(stream))
            assert counter.begun_bytes == at - max(end for end in ends if end <= at)

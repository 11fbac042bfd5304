"""Pieces in fewer bytes: they come back bit for bit, or are refused; and when it is worth it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ProtocolError
from shared.packing import break_even_ratio, pack, unpack

WEIGHTS = np.random.default_rng(1).normal(size=60_000).astype("<f4").tobytes()
JSON = b'{"name":"features.1","op":"conv2d","args":["x","w"]},' * 2000
NOISE = random.Random(1).randbytes(100_000)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400))
def test_what_is_packed_comes_back(unit: bytes, times: int) -> None:
    data = unit * times
    packed = pack(data, 1.0)
    if packed is not None:
        assert len(packed.data) <= len(data)
        assert bytes(unpack(packed.data, packed.width, len(data))) == data


@pytest.mark.parametrize(("data", "width"), [(WEIGHTS, 4), (JSON, 1)])
def test_the_form_is_chosen_by_a_sample(data: bytes, width: int) -> None:
    packed = pack(data, 0.95)
    assert packed is not None
    assert packed.width == width
    assert bytes(unpack(packed.data, width, len(data))) == data


def test_what_saves_too_little_travels_as_it_is() -> None:
    assert pack(NOISE, 1.0) is None
    assert pack(WEIGHTS, 0.5) is None
    assert pack(JSON, 0.5) is not None
    assert pack(JSON, 0.0) is None
    assert pack(b"", 1.0) is None


def test_weights_are_packed_on_thin_links_and_graphs_on_all() -> None:
    for link, weights_too in ((1.25e6, True), (10e6, True), (100e6, False), (None, False)):
        ratio = break_even_ratio(link, 1.5e-9)
        assert (pack(WEIGHTS, ratio) is not None) == weights_too
        assert pack(JSON, ratio) is not None


def test_a_slow_device_unpacks_less() -> None:
    """At a tenth of a CPU the same link is not worth it."""
    assert break_even_ratio(10e6, 1.5e-8) < break_even_ratio(10e6, 1.5e-9)


def test_a_frame_that_claims_more_than_it_may_is_refused_unread() -> None:
    bomb = zstandard.compress(bytes(50_000_000))
    with pytest.raises(ProtocolError, match="claims another size") as refused:
        unpack(bomb, 1, 4_000_000)
    assert refused.value.got == "50000000 bytes"


@pytest.mark.parametrize("width", [0, 2, 3, 10**9])
def test_unknown_form(width: int) -> None:
    with pytest.raises(ProtocolError, match="unknown form"):
        unpack(zstandard.compress(b"abcd"), width, 100)


def test_damaged_frames_and_odd_sizes() -> None:
    frame = bytearray(zstandard.compress(WEIGHTS))
    frame[len(frame) // 2] ^= 0xFF
    for data, width in ((b"", 1), (b"nothing of zstd", 1), (bytes(frame[:100]), 4)):
        with pytest.raises(ProtocolError):
            unpack(data, width, len(WEIGHTS))
    with pytest.raises(ProtocolError, match="claims another size"):
        unpack(zstandard.compress(b"abcde"), 4, 100)

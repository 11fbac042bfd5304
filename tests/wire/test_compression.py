"""Activations in fewer bytes: exact where promised, within half a step where not, and never fooled."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.codec import decode_msgpack, encode_msgpack
from shared.compression import (
    COMPRESSIONS,
    PLAIN,
    Compression,
    PackedTensor,
    Rounding,
    pack,
    unpack,
)
from shared.errors import ConfigurationError, ProtocolError
from shared.tensor import DTYPES, WireTensor, from_wire

MOST = 1 << 20
ZSTD = Compression(zstd=True)
arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=0, max_dims=5, max_side=6))
)
floats = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=4, max_side=7),
    elements=st.floats(-1e4, 1e4, width=32),
)


def travel(array: np.ndarray, how: Compression) -> np.ndarray:
    sent = pack(array, how)
    if isinstance(sent, WireTensor):
        return from_wire(decode_msgpack(encode_msgpack(sent), WireTensor))
    return unpack(decode_msgpack(encode_msgpack(sent), PackedTensor), most_bytes=MOST)


@given(array=arrays, last=st.booleans())
def test_what_is_lossless_comes_back_bit_for_bit(array: np.ndarray, last: bool) -> None:
    if last and array.ndim == 4:
        array = np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for how in (PLAIN, ZSTD):
        back = travel(array, how)
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.tobytes() == array.tobytes()


@given(
    array=floats, last=st.booleans(), how=st.sampled_from([c for c in COMPRESSIONS if not c.exact])
)
def test_what_is_rounded_is_off_by_half_a_step(
    array: np.ndarray, last: bool, how: Compression
) -> None:
    if last and array.ndim == 4:
        array = np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    back = travel(array, how)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    if how.rounding is Rounding.FP16:
        step = np.maximum(np.abs(array) * 2**-10, 2**-24)
    elif how.rounding is Rounding.UINT8 or array.ndim < 2:
        step = np.full_like(array, (array.max() - array.min()) / 255)
    else:
        axes = tuple(axis for axis in range(array.ndim) if axis != 1)
        step = np.broadcast_to(np.ptp(array, axis=axes, keepdims=True) / 255, array.shape)
    # Half a step, and what float32 rounds on the way there and back.
    room = 0.5 * step + 1e-6 * (1 + np.abs(array).max())
    assert (np.abs(back.astype(np.float64) - array) <= room).all()


@pytest.mark.parametrize("how", COMPRESSIONS, ids=str)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38])
def test_values_without_a_code_travel_as_they_are(how: Compression, odd: float) -> None:
    array = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 4, 4, 4)
    array[0, 1, 2, 3] = odd
    if odd == 3e38:
        array[0, 1, 0, 0] = -3e38  # the range overflows
    assert travel(array, how).tobytes() == array.tobytes()


@pytest.mark.parametrize("how", COMPRESSIONS, ids=str)
def test_nothing_but_infinities_travels_as_it_is(how: Compression) -> None:
    array = np.full((1, 2, 3, 3), np.inf, np.float32)
    assert travel(array, how).tobytes() == array.tobytes()


def test_fewer_bytes_and_no_more_than_before() -> None:
    random = np.random.default_rng(0)
    relu = np.maximum(random.normal(size=(1, 32, 28, 28)), 0).astype(np.float32)
    plain = relu.nbytes
    size = {str(how): pack(relu, how).data.nbytes / plain for how in COMPRESSIONS}
    assert size["none"] == 1
    assert size["zstd"] < 0.7
    assert size["fp16"] == 0.5
    assert size["uint8"] == size["uint8-channel"] == 0.25
    assert size["uint8+zstd"] < 0.2
    noise = random.integers(0, 2**32, 4096, dtype=np.uint32).view(np.int32)
    assert isinstance(pack(noise, ZSTD), WireTensor), "zstd that gains nothing is left out"


def test_names() -> None:
    assert [Compression.parse(str(how)) for how in COMPRESSIONS] == list(COMPRESSIONS)
    assert [str(how) for how in COMPRESSIONS] == [
        "none", "zstd", "fp16", "fp16+zstd",
        "uint8", "uint8+zstd", "uint8-channel", "uint8-channel+zstd",
    ]  # fmt: skip
    with pytest.raises(ConfigurationError, match="'lz4'") as caught:
        Compression.parse("lz4")
    assert "uint8+zstd" in str(caught.value.expected)


def packed(how: Compression, **changes: Any) -> PackedTensor:
    array = np.zeros((1, 8, 16, 16), np.float32)
    array[0, 0] = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    made = pack(array, how)
    assert isinstance(made, PackedTensor)
    return dataclasses.replace(made, **changes)


UINT8 = Compression(Rounding.UINT8)
PER_CHANNEL = Compression(Rounding.UINT8_CHANNEL)
BOMB = zstandard.ZstdCompressor().compress(bytes(1 << 24))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (packed(ZSTD, shape=(1, 8, 1 << 20, 16)), "too large"),
        (packed(ZSTD, shape=(2**40, 2**40)), "too large"),
        (packed(ZSTD, shape=(1, 8, 16, 8)), "zstd frame does not fit"),
        (packed(ZSTD, data=memoryview(BOMB)), "zstd frame does not fit"),
        (packed(ZSTD, data=memoryview(b"no zstd frame at all")), "damaged"),
        (packed(ZSTD, data=memoryview(b"")), "damaged"),
        (packed(UINT8, shape=(1, 8, 16, 15)), "does not fit its shape"),
        (packed(UINT8, shape=(1, 8, 16, -16)), "impossible"),
        (packed(UINT8, shape=(1,) * 9), "impossible"),
        (packed(UINT8, dtype="float8"), "unknown tensor dtype"),
        (packed(UINT8, dtype="int32"), "only float32"),
        (packed(UINT8, scale=b""), "scale"),
        (packed(UINT8, zero=b"\0" * 8), "zero"),
        (packed(UINT8, zero=np.array([np.nan], np.float32).tobytes()), "makes no sense"),
        (packed(PER_CHANNEL, scale=b"\0" * 28), "scale"),
        (packed(PER_CHANNEL, shape=(2048,)), "without channels"),
        (packed(UINT8, shape=(8, 16, 16), layout="channels_last"), "4 dimensions"),
    ],
)
def test_what_contradicts_itself_is_refused(tensor: PackedTensor, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        unpack(tensor, most_bytes=MOST)


def test_a_truncated_frame_is_refused() -> None:
    tensor = packed(ZSTD)
    with pytest.raises(ProtocolError, match="damaged"):
        unpack(dataclasses.replace(tensor, data=tensor.data[:-3]), most_bytes=MOST)

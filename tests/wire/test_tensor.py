"""Tensors to bytes and back: every dtype and layout, and shapes that lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.codec import decode_msgpack, encode_msgpack
from shared.errors import ProtocolError
from shared.tensor import DTYPES, WireTensor, from_wire, to_wire

arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=0, max_dims=5, max_side=5))
)


def round_trip(array: np.ndarray) -> np.ndarray:
    return from_wire(decode_msgpack(encode_msgpack(to_wire(array)), WireTensor))


@given(array=arrays)
def test_any_array_comes_back_bit_for_bit(array: np.ndarray) -> None:
    back = round_trip(array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(array=arrays, data=st.data())
def test_any_view_comes_back_in_its_own_order(array: np.ndarray, data: st.DataObject) -> None:
    axes = data.draw(st.permutations(range(array.ndim)))
    view = array.transpose(axes)[..., ::-1] if array.ndim else array
    np.testing.assert_array_equal(round_trip(view), view)


def test_channels_last_travels_as_it_lies_and_comes_back_strided_alike() -> None:
    last = np.arange(2 * 4 * 5 * 3, dtype=np.float32).reshape(2, 4, 5, 3).transpose(0, 3, 1, 2)
    wire = to_wire(last)
    assert wire.layout == "channels_last"
    assert np.shares_memory(np.frombuffer(wire.data, np.float32), last)
    back = round_trip(last)
    np.testing.assert_array_equal(back, last)
    assert back.strides == last.strides


def test_a_contiguous_array_is_not_copied() -> None:
    array = np.zeros((3, 4), np.float32)
    assert np.shares_memory(np.frombuffer(to_wire(array).data, np.float32), array)


def test_big_endian_is_turned_round() -> None:
    array = np.array([1.5, -2.0], dtype=">f4")
    np.testing.assert_array_equal(round_trip(array), array)


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "layout", "message"),
    [
        ("complex64", (1,), 8, "contiguous", "dtype"),
        ("object", (1,), 8, "contiguous", "dtype"),
        ("float32", (2,), 4, "contiguous", "8 bytes"),
        ("float32", (-1,), 4, "contiguous", "shape"),
        ("float32", (1,) * 9, 4, "contiguous", "shape"),
        ("float32", (2**62, 2**62), 4, "contiguous", "impossible"),
        ("float32", (2**30, 2**20), 4, "contiguous", "bytes"),
        ("float32", (1, 1), 4, "channels_last", "4-D"),
    ],
)
def test_a_tensor_that_lies_is_refused(
    dtype: str, shape: tuple[int, ...], size: int, layout: str, message: str
) -> None:
    tensor = WireTensor(dtype=dtype, shape=shape, data=memoryview(bytes(size)), layout=layout)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match=message) as caught:
        from_wire(tensor)
    assert caught.value.expected
    assert caught.value.got


def test_an_element_type_that_cannot_travel_is_refused() -> None:
    with pytest.raises(ProtocolError, match="complex"):
        to_wire(np.zeros(2, np.complex64))


def test_what_came_from_the_wire_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        round_trip(np.zeros(3, np.float32))[0] = 1.0


@pytest.mark.parametrize("shape", [(0, 2**62, 2**62), (2**62, 0), (0, 2**80), (1,) * 9, (-1, -4)])
def test_a_shape_that_no_array_can_have_is_refused(shape: tuple[int, ...]) -> None:
    """NumPy counts the bytes of an empty array without its zeros, and gives up at 2**63."""
    with pytest.raises(ProtocolError, match="impossible"):
        from_wire(WireTensor(dtype="float32", shape=shape, data=memoryview(b"")))

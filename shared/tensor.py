"""Tensors on the wire: dtype, shape and bytes, taken from and given to NumPy without a copy.

`data` is little-endian, in C order of the stated shape. Between our own stages a 4-D tensor may also
travel `channels_last` (the bytes in N, H, W, C order while `shape` stays N, C, H, W): convolutions prefer
that order, and converting it twice per hop would cost two copies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from shared.errors import ProtocolError

DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool",
    )
}  # fmt: skip
"""The element types that may travel."""
_NAMES: Mapping[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items()}
"""A dtype's own `name` is put together by Python code whenever it is asked for: 8 us, for each activation."""
MAX_RANK = 8
_MOST_ELEMENTS = 2**56
Shape = Annotated[tuple[int, ...], Meta(max_length=MAX_RANK)]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WireTensor:
    """One tensor; `data` holds `prod(shape)` elements of `dtype`."""

    dtype: str
    shape: Shape
    data: memoryview
    layout: Literal["contiguous", "channels_last"] = "contiguous"


def to_wire(array: Array) -> WireTensor:
    """`array` for the wire; a view of its memory when it is C-contiguous or channels-last.

    Raises:
        ProtocolError: the dtype is not in `DTYPES`.
    """
    shape = array.shape
    layout: Literal["contiguous", "channels_last"] = "contiguous"
    contiguous = array.flags.c_contiguous
    if not contiguous and len(shape) == 4:
        last = array.transpose(0, 2, 3, 1)
        if last.flags.c_contiguous:
            array, layout, contiguous = last, "channels_last", True
    name = _NAMES.get(array.dtype)
    if name is None or not contiguous:
        name = array.dtype.name
        if name not in DTYPES:
            raise ProtocolError(
                "a tensor of this type cannot travel", expected=_DTYPE_LIST, got=str(array.dtype)
            )
        array = np.ascontiguousarray(array, DTYPES[name])
    data = array.reshape(-1).view(np.uint8).data
    return WireTensor(dtype=name, shape=shape, data=data, layout=layout)


def from_wire(tensor: WireTensor) -> Array:
    """The array that a `WireTensor` describes: a read-only view of the message's bytes.

    Raises:
        ProtocolError: unknown dtype, negative or absurd shape, or a byte count that does not fit.
    """
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ProtocolError("unknown tensor dtype", expected=_DTYPE_LIST, got=repr(tensor.dtype))
    shape = tensor.shape
    if not is_possible(shape):
        raise ProtocolError(
            "impossible tensor shape",
            expected=f"at most {MAX_RANK} dimensions, none negative or absurd",
            got=str(list(shape)),
        )
    # Python integers do not overflow, so an absurd shape is caught here and not by an allocation.
    expected = math.prod(shape) * dtype.itemsize
    got = tensor.data.nbytes
    if expected != got:
        raise ProtocolError(
            "tensor data does not fit its shape",
            expected=f"{expected} bytes for {tensor.dtype} {list(shape)}",
            got=f"{got} bytes",
        )
    array = np.frombuffer(tensor.data, dtype)
    if tensor.layout == "channels_last":
        if len(shape) != 4:
            raise ProtocolError(
                "only a 4-D tensor can be channels_last", expected="4 dimensions", got=str(shape)
            )
        n, c, h, w = shape
        return array.reshape(n, h, w, c).transpose(0, 3, 1, 2)
    return array.reshape(shape)


def is_possible(shape: tuple[int, ...]) -> bool:
    """Whether an array may have this shape. NumPy counts an empty one's bytes without its zeros."""
    return (
        len(shape) <= MAX_RANK
        and all(size >= 0 for size in shape)
        and math.prod(size or 1 for size in shape) < _MOST_ELEMENTS
    )


def describe(array: Array) -> str:
    """Dtype and shape in words, for messages."""
    return f"{array.dtype.name} {list(array.shape)}"


_DTYPE_LIST = "one of " + ", ".join(DTYPES)

"""What a caller may hand in as an image, and the bytes it becomes on the wire.

A photograph goes as a file (as it is, or written losslessly as PNG), because the file is smaller than the
tensor and the model's own transform runs where the model does. A tensor goes as a tensor and is taken as
it is.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from shared.codec import encode_msgpack
from shared.errors import ConfigurationError, ErrorCode, JobError
from shared.messages.job import BatchInput, TensorInput, TensorsInput
from shared.tensor import Array, to_wire

MSGPACK = "application/msgpack"
NPY = "application/x-npy"
_EXPECTED = (
    "a path, the bytes of a file, a PIL image, a NumPy array, or named arrays ({name: array})"
)


@runtime_checkable
class PilImage(Protocol):
    """As much of `PIL.Image.Image` as is needed here; Pillow itself is not imported."""

    @property
    def mode(self) -> str:
        """How its pixels are stored, such as `RGB`."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:  # noqa: A002
        """Write the image to `fp`."""

    def convert(self, mode: str) -> Any:
        """The image in another mode."""


@runtime_checkable
class ArrayLike(Protocol):
    """What NumPy makes an array of, such as a tensor of PyTorch on the CPU."""

    def __array__(self) -> Array:
        """The array."""


Image: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | PilImage | Array | ArrayLike
)
"""A path, a file's bytes, a PIL image, or a NumPy array."""
Input: TypeAlias = Image | Mapping[str, Array]
"""What `Client.infer` takes: an image or a tensor, or several tensors by name."""


@dataclass(frozen=True, slots=True)
class Payload:
    """A job's payload; an empty `content_type` leaves the decision to the first bytes."""

    data: bytes
    content_type: str = ""

    @property
    def is_file(self) -> bool:
        """Whether it may stand in a batch of image files."""
        return self.content_type not in (MSGPACK, NPY)


def encode_input(image: Input) -> Payload:
    """`image` as a job's payload. Reads a file or compresses an array: call it off the event loop.

    - path or bytes: the file as it is;
    - PIL image: PNG, lossless;
    - uint8 array [height, width], or [height, width, 1, 3 or 4]: a photograph, PNG, lossless;
    - any other array: a tensor, msgpack, taken by the model as it is; a mapping: several, by name;
    - what NumPy makes an array of: that.

    Raises:
        ConfigurationError: a path that cannot be read.
        JobError: `bad_input`, for a type or dtype that cannot travel.
    """
    if isinstance(image, str | os.PathLike):
        try:
            return _file(Path(image).read_bytes())
        except OSError as error:
            raise ConfigurationError(
                f"{os.fspath(image)} cannot be read: {error.strerror or error}",
                expected="an image file",
            ) from error
    if isinstance(image, bytes | bytearray | memoryview):
        return _file(bytes(image))
    if isinstance(image, np.ndarray):
        if _is_photograph(image):
            return Payload(write_png(image), "image/png")
        return Payload(bytes(_pack(_tensor(image))), MSGPACK)
    if isinstance(image, Mapping):
        tensors = {str(name): _tensor(np.asarray(array)) for name, array in image.items()}
        return Payload(bytes(_pack(TensorsInput(tensors=tensors))), MSGPACK)
    if isinstance(image, PilImage):
        return Payload(_png_of(image), "image/png")
    if isinstance(image, ArrayLike):
        return encode_input(np.asarray(image))
    raise JobError(
        ErrorCode.BAD_INPUT,
        "this cannot be sent as an image",
        expected=_EXPECTED,
        got=type(image).__name__,
    )


def encode_batch(inputs: Sequence[Input]) -> Payload:
    """Several inputs as one job: photographs as `encode_input` makes them, or tensors of one item each.

    Raises:
        ConfigurationError: a path that cannot be read.
        JobError: `bad_input`: both kinds, tensors of unlike shapes, or what cannot travel.
    """
    tensors = [_by_name(one) for one in inputs]
    given = [one for one in tensors if one is not None]
    if len(given) == len(inputs):
        return encode_input(_joined(given))
    payloads = [encode_input(one) for one in inputs]
    if given or not all(payload.is_file for payload in payloads):
        raise JobError(
            ErrorCode.BAD_INPUT,
            "a batch takes photographs or tensors, not both",
            expected="image files, PIL images or uint8 arrays [height, width, 3]; or other arrays",
            got="both, or .npy files",
        )
    body = encode_msgpack(
        BatchInput(images=[memoryview(payload.data) for payload in payloads]),
        size_hint=1024 + sum(len(payload.data) + 8 for payload in payloads),
    )
    return Payload(bytes(body), MSGPACK)


def _by_name(given: Input) -> dict[str, Array] | None:
    """Tensors by name, one without a name by an empty one; None for a photograph."""
    if isinstance(given, Mapping):
        return {str(name): np.asarray(array) for name, array in given.items()}
    if isinstance(given, ArrayLike) and not isinstance(given, PilImage):
        array = np.asarray(given)
        return None if _is_photograph(array) else {"": array}
    return None


def _joined(items: Sequence[dict[str, Array]]) -> Array | dict[str, Array]:
    first = items[0]
    for one in items:
        forms = {name: (array.dtype, array.shape) for name, array in one.items()}
        if forms != {name: (array.dtype, array.shape) for name, array in first.items()} or any(
            shape[:1] != (1,) for _, shape in forms.values()
        ):
            raise JobError(
                ErrorCode.BAD_INPUT,
                "a batch takes tensors of one item each, all alike",
                expected=", ".join(f"{name} [1, ...]".strip() for name in first),
                got=str({name: f"{dtype}{list(shape)}" for name, (dtype, shape) in forms.items()}),
            )
    joined = {name: np.concatenate([one[name] for one in items]) for name in first}
    return joined[""] if joined.keys() == {""} else joined


def write_png(image: Array) -> bytes:
    """A uint8 array [height, width] or [height, width, 1, 3 or 4] as a PNG file (RFC 2083).

    Written here, so that sending an array needs no Pillow.
    """
    planes = image.reshape(*image.shape[:2], -1)
    height, width, channels = planes.shape
    # Each row begins with the number of its filter; 0 is none.
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = planes.reshape(height, width * channels)
    colour_type = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    parts = (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(rows.tobytes(), 1)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def _png_of(image: PilImage) -> bytes:
    # CMYK and the like have no PNG; models want RGB anyway.
    drawn = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")
    buffer = io.BytesIO()
    # Level 1: a third of the time of the default for a few per cent of the size.
    drawn.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _file(data: bytes) -> Payload:
    if data[:3] == b"\xff\xd8\xff":
        return Payload(data, "image/jpeg")
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return Payload(data, "image/png")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Payload(data, "image/webp")
    if data[:6] == b"\x93NUMPY":
        return Payload(data, NPY)
    return Payload(data)


def _is_photograph(array: Array) -> bool:
    return (
        array.dtype == np.uint8
        and array.size > 0
        and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4)))
    )


def _tensor(array: Array) -> TensorInput:
    # Clients send C order only; the layout field is for our own stages.
    try:
        wire = to_wire(np.ascontiguousarray(array))
    except Exception as error:
        raise JobError(
            ErrorCode.BAD_INPUT,
            "an array of this type cannot be sent",
            expected="a numeric array of up to 64 bits",
            got=str(array.dtype),
        ) from error
    # A scalar has no dimensions, and ascontiguousarray would give it one.
    return TensorInput(dtype=wire.dtype, shape=array.shape, data=wire.data)


def _pack(value: TensorInput | TensorsInput) -> bytes | bytearray:
    tensors = [value] if isinstance(value, TensorInput) else list(value.tensors.values())
    return encode_msgpack(value, size_hint=1024 + sum(tensor.data.nbytes for tensor in tensors))

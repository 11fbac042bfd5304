"""What a client sent, told apart: image files, `.npy`, msgpack tensors or a batch, JSON.

Nothing heavy happens here: images and `.npy` travel on as they came, and the first stage decodes them. The
content type says what came; without one the first bytes decide.
"""

from __future__ import annotations

import binascii
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.codec import Raw, decode_json, decode_msgpack
from shared.errors import ErrorCode, JobError, ProtocolError
from shared.messages.job import MAX_BATCH, Images, InputTensors, TensorInput
from shared.tensor import DTYPES, Shape, WireTensor, from_wire, to_wire

ACCEPTED = (
    "an image (JPEG, PNG, WebP; also as base64 text), .npy, a msgpack tensor "
    '{"dtype", "shape", "data"}, {"tensors": {name: tensor}} or {"images": [...]}, or a JSON tensor'
)
NPY, MSGPACK, JSON = "application/x-npy", "application/msgpack", "application/json"
MAX_JSON_BYTES = 8 * 1024 * 1024
"""Reading numbers as text takes 6 ms a megabyte, in which every other job waits, and up to four times the
memory; a photograph's worth of them is 3 MB."""


@dataclass(frozen=True, slots=True)
class Input:
    """One item for stage 0: a file's bytes with their content type, or tensors by name.

    `exact`: nothing of it may be rounded between stages.
    """

    body: memoryview | None = None
    content_type: str = ""
    tensors: dict[str, WireTensor] | None = None
    size_bytes: int = 0
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Parsed:
    """A request's items; `batch` when it is to be answered by a list."""

    items: tuple[Input, ...]
    batch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _MsgpackInput:
    """Any of the three forms; which one is told by the fields that are there."""

    dtype: str | None = None
    shape: Shape | None = None
    data: memoryview | None = None
    tensors: InputTensors | None = None
    images: Images | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _JsonInput:
    """A `JsonTensorInput` whose numbers are not read before it is known how many lists they stand in."""

    dtype: str
    shape: Shape
    data: Raw


def parse_input(
    payload: bytes | bytearray, content_type: str | None, input_names: tuple[str, ...]
) -> Parsed:
    """Tell what `payload` is.

    Args:
        payload: the request's bytes.
        content_type: as the client declared it, or None.
        input_names: the model's inputs, in order; a tensor without a name is the only one.

    Raises:
        JobError: `bad_input`, with what was expected and what came.
    """
    if not payload:
        raise _bad(
            "the payload is empty (mosquitto_rr 2.0.11, that of Debian 12, sends empty messages for -f "
            'and -s; there, send an image as -m "$(base64 -w0 FILE)")',
            expected=ACCEPTED,
            got="0 bytes",
        )
    kind = (content_type or "").split(";")[0].strip().lower()
    if not kind or kind.startswith("text/"):
        payload = _from_base64(payload)
        kind = sniff(payload) or kind
    if kind.startswith("image/"):
        return Parsed((Input(memoryview(payload), kind, None, len(payload)),))
    match kind:
        case "application/x-npy":
            return Parsed((Input(memoryview(payload), NPY, None, len(payload)),))
        case "application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack":
            return _msgpack(payload, input_names)
        case "application/json":
            return _json(payload, input_names)
        case _:
            raise _bad(
                "what came is none of the forms a job may have",
                expected=ACCEPTED,
                got=content_type or f"{len(payload)} bytes beginning {bytes(payload[:8])!r}",
            )


_BASE64_IMAGES = (b"/9j/", b"iVBORw0KGgo", b"UklGR")
"""How the base64 text of a JPEG, PNG and WebP file begins; none of the other forms begins so."""


def _from_base64(payload: bytes | bytearray) -> bytes | bytearray:
    """The image in a base64 text or `data:` URL, or `payload` as it is.

    Not only for senders that know nothing but text: Debian 12's mosquitto_rr sends files as empty messages,
    and takes an image as `-m "$(base64 -w0 FILE)"`.
    """
    text = payload
    if text[:11] == b"data:image/":
        text = text.partition(b";base64,")[2]
    if not text.startswith(_BASE64_IMAGES):
        return payload
    try:
        return binascii.a2b_base64(text)
    except binascii.Error as error:
        raise _bad(
            "the base64 text cannot be read", expected="base64 of an image file", got=str(error)
        ) from error


def sniff(payload: bytes | bytearray) -> str:
    """The content type by the first bytes, or an empty string."""
    if payload[:3] == b"\xff\xd8\xff":
        return "image/jpeg"
    if payload[:8] == b"\x89PNG\r\n\x1a\n":
        return "image/png"
    if payload[:4] == b"RIFF" and payload[8:12] == b"WEBP":
        return "image/webp"
    if payload[:6] == b"\x93NUMPY":
        return NPY
    if payload[:64].lstrip()[:1] == b"{":
        return JSON
    if payload[0] & 0xF0 == 0x80 or payload[0] in (0xDE, 0xDF):  # a msgpack map
        return MSGPACK
    return ""


def _msgpack(payload: bytes | bytearray, input_names: tuple[str, ...]) -> Parsed:
    try:
        given = decode_msgpack(payload, _MsgpackInput)
    except ProtocolError as error:
        raise _bad(
            f"the msgpack cannot be read: {error.message}", expected=ACCEPTED, got=error.got
        ) from error
    if given.images is not None:
        if not given.images:
            raise _bad(
                "a batch of this size is not taken",
                expected=f"1 to {MAX_BATCH} images",
                got="none",
            )
        items = tuple(
            Input(image, sniff(bytes(image[:64]) or b"\0"), None, image.nbytes)
            for image in given.images
        )
        return Parsed(items, batch=True)
    if given.tensors is not None:
        tensors = {name: _checked(name, tensor) for name, tensor in given.tensors.items()}
        return Parsed((_tensor_item(tensors),))
    if given.dtype is None or given.shape is None or given.data is None:
        raise _bad(
            "the msgpack map has none of the fields that make an input",
            expected='"dtype", "shape" and "data", or "tensors", or "images"',
            got="other fields",
        )
    tensor = TensorInput(dtype=given.dtype, shape=given.shape, data=given.data)
    name = _only(input_names)
    return Parsed((_tensor_item({name: _checked(name, tensor)}),))


def _json(payload: bytes | bytearray, input_names: tuple[str, ...]) -> Parsed:
    if len(payload) > MAX_JSON_BYTES:
        raise JobError(
            ErrorCode.TOO_LARGE,
            "a tensor in JSON is larger than one may be; msgpack and .npy take more",
            expected=f"at most {MAX_JSON_BYTES} bytes",
            got=f"{len(payload)} bytes",
        )
    try:
        given = decode_json(payload, _JsonInput)
        _check_lists(given.shape, given.data)
        numbers = decode_json(bytes(given.data), _numbers(len(given.shape)))
    except ProtocolError as error:
        raise _bad(
            f"the JSON cannot be read: {error.message}",
            expected='{"dtype", "shape", "data": nested lists}',
            got=error.got,
        ) from error
    dtype = DTYPES.get(given.dtype)
    if dtype is None:
        raise _bad("unknown dtype", expected=f"one of {', '.join(DTYPES)}", got=given.dtype)
    try:
        array = np.array(numbers, dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise _bad(
            "the nested lists are no array", expected=f"numbers of {given.dtype}", got=str(error)
        ) from error
    if array.shape != given.shape:
        raise _bad(
            "the nested lists have another shape than stated",
            expected=str(list(given.shape)),
            got=str(list(array.shape)),
        )
    return Parsed((_tensor_item({_only(input_names): to_wire(array)}),))


def _numbers(rank: int) -> Any:
    """The type of lists of numbers, `rank` deep."""
    type_: Any = int | float | bool
    for _ in range(rank):
        type_ = list[type_]
    return type_


def _check_lists(shape: tuple[int, ...], data: Raw) -> None:
    """Count the lists before they are made: an empty one has two bytes as text, and 60 in memory."""
    expected, lists = 0, 1
    for size in shape:
        expected += lists
        lists *= size
    got = bytes(data).count(b"[")
    if got != expected:
        raise _bad(
            "the nested lists have another shape than stated",
            expected=f"{expected} lists for {list(shape)}",
            got=str(got),
        )


def _only(input_names: tuple[str, ...]) -> str:
    if len(input_names) != 1:
        raise _bad(
            "the model takes several tensors",
            expected='{"tensors": {name: tensor}} with ' + ", ".join(input_names),
            got="one tensor without a name",
        )
    return input_names[0]


def _checked(name: str, tensor: TensorInput) -> WireTensor:
    wire = WireTensor(dtype=tensor.dtype, shape=tensor.shape, data=tensor.data)
    try:
        from_wire(wire)
    except ProtocolError as error:
        raise _bad(
            f"tensor {name!r}: {error.message}", expected=error.expected, got=error.got
        ) from error
    return wire


def _tensor_item(tensors: dict[str, WireTensor]) -> Input:
    return Input(
        None,
        "",
        tensors,
        sum(math.prod(t.shape) * DTYPES[t.dtype].itemsize for t in tensors.values()),
    )


def _bad(message: str, *, expected: str | None, got: str | None) -> JobError:
    return JobError(ErrorCode.BAD_INPUT, message, expected=expected, got=got)

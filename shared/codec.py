"""JSON and msgpack, checked against types: the only module that imports the codec library.

Decoding is typed and strict: bytes either become the frozen dataclass that was asked for, or raise
`ProtocolError` that names the field, what was expected there and what came. Unknown extra fields are
ignored (schemas grow); NaN and infinities are refused where a range is declared. Nothing is ever
unpickled, and no type is chosen by the message.

msgspec rather than msgpack-python, because it decodes a `bin` into a `memoryview` of the message (no copy
of an activation) and validates in the same pass. The bytes are plain msgpack: the tests read them with
msgpack-python.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, TypeVar, cast

import msgspec

from shared.errors import ProtocolError

T = TypeVar("T")
Raw = msgspec.Raw
"""A field that is left as it came; `bytes` of it, and `decode_json` reads it later."""

_json = msgspec.json.Encoder(order="deterministic")
_json_line = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder()


@lru_cache(maxsize=256)
def _json_decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type_)


@lru_cache(maxsize=256)
def _msgpack_decoder(type_: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(type_)


def encode_json(value: object) -> bytes:
    """`value` (dataclasses, dicts, lists, scalars) as compact JSON; equal values give equal bytes.

    Raises:
        ProtocolError: a part of `value` has no JSON form. NaN and infinities become null.
    """
    try:
        return _json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"cannot be written as JSON: {error}") from error


def encode_json_line(value: object) -> bytes:
    """As `encode_json`, with keys in the order that they are given in: a line that somebody may read.

    Raises:
        ProtocolError: a part of `value` has no JSON form.
    """
    try:
        return _json_line.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"cannot be written as JSON: {error}") from error


def encode_json_sparse(value: object) -> bytes:
    """A dataclass as `encode_json` has it, in the order of its fields, without those that are null or empty.

    For messages that people read, whose fields all have defaults.
    """
    told = {
        name: each for name, each in to_builtins(value).items() if each not in (None, "", [], {})
    }
    return encode_json_line(told)


def decode_json(data: bytes | bytearray | memoryview | str, type_: type[T]) -> T:
    """JSON bytes as a `type_`.

    Raises:
        ProtocolError: not JSON, or not a `type_`; the message has the path of the field.
    """
    try:
        if not isinstance(data, str):
            # msgspec passes over fields that `type_` lacks without a look at their bytes.
            str(data, "utf-8")
        decoder: msgspec.json.Decoder[T] = _json_decoder(cast(Hashable, type_))
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _refused(error, data, type_, "JSON") from error


def encode_msgpack(value: object, size_hint: int = 0) -> bytes | bytearray:
    """`value` as msgpack.

    Args:
        value: dataclasses, dicts, lists, scalars; byte-like objects become `bin`.
        size_hint: the expected size in bytes. With it the result is written once into a buffer of
            that size instead of into one that grows (half as much memory again, at 1 MB).
    """
    try:
        if size_hint:
            buffer = bytearray(size_hint)
            _msgpack.encode_into(value, buffer)
            return buffer
        return _msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"cannot be written as msgpack: {error}") from error


def decode_msgpack(data: bytes | bytearray | memoryview, type_: type[T]) -> T:
    """msgpack bytes as a `type_`; fields typed `memoryview` are views into `data`.

    Raises:
        ProtocolError: not msgpack, or not a `type_`; the message has the path of the field.
    """
    try:
        decoder: msgspec.msgpack.Decoder[T] = _msgpack_decoder(cast(Hashable, type_))
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _refused(error, data, type_, "msgpack") from error


def to_builtins(value: object) -> Any:
    """Dataclasses as dicts, for code that prints or merges them."""
    return msgspec.to_builtins(value)


def convert(value: object, type_: type[T]) -> T:
    """Dicts and lists (say, from a TOML file) as a `type_`.

    Raises:
        ProtocolError: `value` is not a `type_`; the message has the path of the field.
    """
    try:
        return msgspec.convert(value, type_)
    except msgspec.MsgspecError as error:
        raise ProtocolError(str(error), expected=_name(type_), got=type(value).__name__) from error


def json_schema(type_: type) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a dataclass whose fields are plain values."""
    document = msgspec.json.schema(type_)
    schema: dict[str, Any] = document["$defs"][type_.__name__]
    return schema


def finite(value: float | None) -> float | None:
    """`value`, or None where JSON has no number for it."""
    return value if value is not None and math.isfinite(value) else None


def _refused(
    error: Exception, data: bytes | bytearray | memoryview | str, type_: Any, form: str
) -> ProtocolError:
    size = len(data) if isinstance(data, str) else memoryview(data).nbytes
    return ProtocolError(
        str(error), expected=f"{_name(type_)} as {form}", got=f"{size} bytes that are not one"
    )


def _name(type_: Any) -> str:
    return getattr(type_, "__name__", None) or str(type_)

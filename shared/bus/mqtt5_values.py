"""The values that MQTT 5 packets are made of (1.5), and their properties (2.2.2).

`Fields` walks over received bytes and never past them. Properties that nobody here reads are skipped
by their type; one that the standard does not know ends the connection, since its length is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import Final, TypeAlias, cast

from shared.errors import Amp4ecError

MALFORMED_PACKET: Final = 0x81
MAX_VARIABLE_INTEGER: Final = 268_435_455
_MAX_STRING_BYTES: Final = 65_535

Value: TypeAlias = int | str | bytes | tuple[str, str]


class BadPacketError(Amp4ecError):
    """What came is not MQTT 5 as a broker speaks it; `reason` is the code to hang up with (2.4).

    Never leaves `shared.bus`: the connection ends, and is made again.
    """

    def __init__(
        self,
        message: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        reason: int = MALFORMED_PACKET,
    ) -> None:
        super().__init__(message, expected=expected, got=got)
        self.reason = reason


class _Kind(Enum):
    BYTE = auto()
    TWO = auto()
    FOUR = auto()
    VARIABLE = auto()
    STRING = auto()
    BINARY = auto()
    PAIR = auto()


# 2.2.2.2
_KINDS: Final = {
    **dict.fromkeys((0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A), _Kind.BYTE),
    **dict.fromkeys((0x13, 0x21, 0x22, 0x23), _Kind.TWO),
    **dict.fromkeys((0x02, 0x11, 0x18, 0x27), _Kind.FOUR),
    0x0B: _Kind.VARIABLE,
    **dict.fromkeys((0x03, 0x08, 0x12, 0x15, 0x1A, 0x1C, 0x1F), _Kind.STRING),
    **dict.fromkeys((0x09, 0x16), _Kind.BINARY),
    0x26: _Kind.PAIR,
}
# These may come more than once; subscription identifiers and user properties.
_REPEATED: Final = frozenset({0x0B, 0x26})


class Values(dict[int, list[Value]]):
    """The properties of one packet, by identifier."""

    def number(self, identifier: int, default: int | None = None) -> int | None:
        """A property of one of the integer types."""
        found = self.get(identifier)
        return default if found is None else cast("int", found[0])

    def text(self, identifier: int) -> str:
        """A string; empty when it did not come."""
        return self.optional_text(identifier) or ""

    def optional_text(self, identifier: int) -> str | None:
        """A string."""
        found = self.get(identifier)
        return None if found is None else cast("str", found[0])

    def binary(self, identifier: int) -> bytes | None:
        """Bytes."""
        found = self.get(identifier)
        return None if found is None else cast("bytes", found[0])

    def pairs(self, identifier: int) -> tuple[tuple[str, str], ...]:
        """Pairs of strings, in their order."""
        return tuple(cast("list[tuple[str, str]]", self.get(identifier, [])))


class Fields:
    """The fields of a packet in their order.

    Every method raises `BadPacketError` where the bytes end too early or are no such value.
    """

    __slots__ = ("_at", "_data", "_stop")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self._at = at
        self._stop = len(data)

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return self._stop - self._at

    def byte(self) -> int:
        """One byte."""
        return self.take(1)[0]

    def two(self) -> int:
        """A two-byte integer (1.5.2)."""
        return int.from_bytes(self.take(2), "big")

    def four(self) -> int:
        """A four-byte integer (1.5.3)."""
        return int.from_bytes(self.take(4), "big")

    def variable(self) -> int:
        """A variable byte integer (1.5.5)."""
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise BadPacketError("a variable byte integer is longer than four bytes")

    def binary(self) -> bytes:
        """Binary data with its length (1.5.6)."""
        return self.take(self.two())

    def string(self) -> str:
        """A UTF-8 string with its length (1.5.4)."""
        try:
            text = self.binary().decode()
        except UnicodeDecodeError as error:
            raise BadPacketError(f"a string is not UTF-8: {error}") from error
        if "\0" in text:
            raise BadPacketError("a string contains U+0000")
        return text

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start, self._at = self._at, self._at + count
        if self._at > self._stop:
            raise BadPacketError(
                "a packet ends in the middle of a field",
                expected=f"{count} bytes",
                got=f"{self._stop - start} bytes",
            )
        return self._data[start : self._at]

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)

    def end(self) -> None:
        """Nothing may be left."""
        if self.left:
            raise BadPacketError(
                "a packet is longer than its fields", got=f"{self.left} bytes more"
            )

    def skip_properties(self) -> None:
        """Properties of which none is read; acknowledgements may leave out even their length."""
        if self.left:
            self.take(self.variable())

    def properties(self) -> Values:
        """Properties with their length in front; none where the packet ends before it."""
        values = Values()
        if not self.left:
            return values
        size = self.variable()
        inner = Fields(self.take(size))
        while inner.left:
            identifier = inner.variable()
            found = values.setdefault(identifier, [])
            if found and identifier not in _REPEATED:
                raise BadPacketError(f"property {identifier:#04x} came twice", reason=0x82)
            found.append(inner._value(identifier))
        return values

    def _value(self, identifier: int) -> Value:
        match _KINDS.get(identifier):
            case _Kind.BYTE:
                return self.byte()
            case _Kind.TWO:
                return self.two()
            case _Kind.FOUR:
                return self.four()
            case _Kind.VARIABLE:
                return self.variable()
            case _Kind.STRING:
                return self.string()
            case _Kind.BINARY:
                return self.binary()
            case _Kind.PAIR:
                return (self.string(), self.string())
            case None:
                raise BadPacketError(
                    "a property that MQTT 5 does not know", got=f"identifier {identifier:#04x}"
                )


def encode_variable_integer(value: int) -> bytes:
    """A variable byte integer (1.5.5).

    Raises:
        ValueError: it has more than 28 bits.
    """
    if value < 0x80:
        return bytes((value,))
    if value > MAX_VARIABLE_INTEGER:
        raise ValueError(f"a packet of {value} bytes is longer than MQTT allows")
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def encode_string(text: str) -> bytes:
    """A UTF-8 string with its length (1.5.4).

    Raises:
        ValueError: it is too long, contains U+0000, or cannot be written in UTF-8.
    """
    data = text.encode()
    if b"\0" in data:
        raise ValueError(f"MQTT takes no U+0000 in a string: {text!r}")
    return encode_binary(data)


def encode_binary(data: bytes) -> bytes:
    """Binary data with its length (1.5.6).

    Raises:
        ValueError: it is too long.
    """
    if len(data) > _MAX_STRING_BYTES:
        raise ValueError(f"MQTT takes at most {_MAX_STRING_BYTES} bytes here, and not {len(data)}")
    return len(data).to_bytes(2, "big") + data


def encode_fields(fields: Iterable[tuple[int, Value]]) -> bytes:
    """Properties with their length in front.

    Raises:
        ValueError: one does not fit its type.
    """
    parts = bytearray()
    for identifier, value in fields:
        parts.append(identifier)
        match value:
            case int():
                size = {_Kind.BYTE: 1, _Kind.TWO: 2, _Kind.FOUR: 4}[_KINDS[identifier]]
                parts += value.to_bytes(size, "big")
            case str():
                parts += encode_string(value)
            case bytes():
                parts += encode_binary(value)
            case (name, text):
                parts += encode_string(name) + encode_string(text)
    return encode_variable_integer(len(parts)) + parts

"""From a stream of bytes to packets, with few calls and few copies, and without I/O.

The owner receives into `space()`, says how much came with `filled`, and takes packets with `next` until
there are no more:

- Many packets come with one call, into one buffer that is used again and again; their payloads are
  copied out of it.
- A payload that has not come completely gets a buffer of its own, of its exact size, and the rest of it
  is received there: it is copied once, by the kernel.

Nothing is allocated for a packet beyond the limit, whatever its length says.
"""

from __future__ import annotations

from typing import Final

from shared.bus.mqtt5 import (
    PACKET_TOO_LARGE,
    PUBLISH,
    Packet,
    Publish,
    check_control,
    decode_control,
    decode_publish,
    publish_header_bytes,
)
from shared.bus.mqtt5_values import BadPacketError

_BUFFER_BYTES: Final = 64 << 10


class PacketReader:
    """One connection's incoming bytes.

    Args:
        limit_bytes: the largest packet that is taken.
        buffer_bytes: of the buffer to begin with; it grows for a header that does not fit, and shrinks again.
    """

    def __init__(self, limit_bytes: int, buffer_bytes: int = _BUFFER_BYTES) -> None:
        self._limit = limit_bytes
        self._least = buffer_bytes
        self._buffer = bytearray(buffer_bytes)
        self._view = memoryview(self._buffer)
        self._start = 0  # what is in the buffer and not taken yet is [start, stop)
        self._stop = 0
        self._rest: memoryview | None = None  # of the payload that is under way
        self._under_way: Publish | None = None

    @property
    def missing_bytes(self) -> int:
        """How much of a payload with a buffer of its own is yet to come."""
        return 0 if self._rest is None else len(self._rest)

    @property
    def in_packet(self) -> bool:
        """Whether something is here of a packet that has not come completely, or was not taken."""
        return self._rest is not None or self._start != self._stop

    def space(self) -> memoryview:
        """Where the next bytes belong; never empty. Take all packets first."""
        if self._rest is not None:
            return self._rest
        start, stop = self._start, self._stop
        if start == stop:
            self._start = self._stop = 0
            if len(self._buffer) > self._least:
                self._buffer = bytearray(self._least)
                self._view = memoryview(self._buffer)
            return self._view
        if start:
            self._buffer[: stop - start] = self._view[start:stop]
            self._start, self._stop = 0, stop - start
        elif stop == len(self._buffer):
            grown = bytearray(2 * stop)
            grown[:stop] = self._buffer
            self._buffer, self._view = grown, memoryview(grown)
        return self._view[self._stop :]

    def filled(self, count: int) -> None:
        """`count` bytes were received into `space()`."""
        if self._rest is None:
            self._stop += count
        else:
            self._rest = self._rest[count:]

    def next(self) -> Packet | None:
        """The next packet; None when more bytes are needed.

        Raises:
            BadPacketError: the stream makes no sense from here on; do not go on with it.
        """
        if self._rest is not None:
            if self._rest:
                return None
            packet, self._rest, self._under_way = self._under_way, None, None
            return packet
        buffer, start, stop = self._buffer, self._start, self._stop
        if stop - start < 2:
            return None
        first, size = buffer[start], buffer[start + 1]
        at = start + 2
        if size >= 0x80:
            length = self._length(start + 1, stop)
            if length is None:
                return None
            size, at = length
            if size > self._limit:
                raise BadPacketError(
                    "a packet is larger than we take",
                    expected=f"at most {self._limit} bytes",
                    got=f"{size} bytes",
                    reason=PACKET_TOO_LARGE,
                )
        end = at + size
        if first & 0xF0 != PUBLISH:
            check_control(first)
            if stop < end:
                return None
            self._start = end
            return decode_control(first, bytes(self._view[at:end]))
        header_bytes = publish_header_bytes(first, buffer, at, min(stop, end), size)
        if header_bytes is None:
            return None
        begin = at + header_bytes
        header = bytes(self._view[at:begin])
        if end <= stop:
            packet = decode_publish(first, header, bytes(self._view[begin:end]))
            self._start = end
            return packet
        payload = bytearray(end - begin)
        self._under_way = decode_publish(first, header, payload)
        have = stop - begin
        payload[:have] = self._view[begin:stop]
        self._rest = memoryview(payload)[have:]
        self._start = self._stop = 0
        return None

    def _length(self, at: int, stop: int) -> tuple[int, int] | None:
        """The remaining length (2.1.4) that begins at `at`, and where it ends."""
        size = 0
        for index, shift in enumerate((0, 7, 14, 21)):
            if at + index >= stop:
                return None
            byte = self._buffer[at + index]
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                return size, at + index + 1
        raise BadPacketError("a packet's length is longer than four bytes")

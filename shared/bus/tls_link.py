"""TLS over a link, with the records in memory: as few system calls as without it.

Over a socket of its own OpenSSL makes one call for each record that it sends and two for each that it takes,
and a record is 16 KB at most. Here the socket's bytes go in and out in large pieces, and OpenSSL works
between two buffers (`ssl.MemoryBIO`).
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from shared.bus.link import CLOSED, Address, Link

_PIECE_BYTES: Final = 64 << 10
"""Of encrypted data taken from the socket, or made for it, at once."""
_RECORD_BYTES: Final = 21
"""The least that TLS adds to a record (1.2 with ChaCha20; 1.3 adds one more)."""
_HEADER_BYTES: Final = 5
"""Of a record: type, version, and the length of the rest in two bytes (RFC 8446, section 5.1)."""


class RecordCounter:
    """Follows the records of a stream, to know how much of the last one has come.

    OpenSSL takes what there is of a record out of the buffer that it reads from, and does not tell.
    """

    def __init__(self) -> None:
        self._rest = 0  # of the record that has begun, its header known
        self._size = 0
        self._header = b""  # of the next one, while it is not whole

    @property
    def begun_bytes(self) -> int:
        """What has come of a record that is not whole; 0 between two."""
        return self._size - self._rest if self._rest else len(self._header)

    def take(self, piece: memoryview) -> None:
        """`piece` has come."""
        at, end = min(self._rest, len(piece)), len(piece)
        self._rest -= at
        while at < end:
            header = self._header + bytes(piece[at : at + _HEADER_BYTES - len(self._header)])
            at += len(header) - len(self._header)
            if len(header) < _HEADER_BYTES:
                self._header = header
                return
            self._header = b""
            length = int.from_bytes(header[3:])
            self._size = _HEADER_BYTES + length
            self._rest = max(0, length - (end - at))
            at += length


class TlsLink(Link):
    """A link whose bytes are encrypted; see `Link` for what its methods promise.

    Args:
        host: the name that the certificate must have.
        address: of `resolve`.
        context: whom to trust.
        options: for setsockopt.
    """

    def __init__(
        self,
        host: str,
        address: Address,
        context: ssl.SSLContext,
        options: Sequence[tuple[int, int, int]],
    ) -> None:
        super().__init__(address, options)
        self._came = ssl.MemoryBIO()
        self._made = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._made, server_hostname=host)
        # With a buffer it returns a count, which its type does not say.
        self._read: Callable[[int, memoryview], int] = self._tls.read  # type: ignore[assignment]
        self._drained = False  # the socket gave less than it was asked for
        self._piece = memoryview(bytearray(_PIECE_BYTES))
        self._unsent = memoryview(b"")
        self._records = RecordCounter()
        self._whole_records = True  # what came and was not read yet may hold a whole record

    def advance(self) -> bool:
        """Go on with connecting and the handshake; True when the stream stands."""
        super().advance()
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.wants_write = not self.flush()
                if not self._fill():
                    return False
            except ssl.SSLError:
                self.flush()  # it says why to the other side
                raise
            else:
                self.flush()  # `send` goes on with what is left
                return True

    def receive(self, space: memoryview) -> int | None:
        """Receive into `space`: as much as is there."""
        total = 0
        self._drained = False
        try:
            while total < len(space):
                try:
                    count = self._read(len(space) - total, space[total:])
                except ssl.SSLWantReadError:
                    self._whole_records = False
                    if self._drained or not self._fill():
                        break
                else:
                    if not count:
                        raise ConnectionResetError(CLOSED)  # said by TLS itself
                    total += count
        except ConnectionError:
            if not total:  # what came before it is taken first; the next call meets it again
                raise
        if self._made.pending:
            self.flush()  # TLS has an answer of its own to give: new keys
        return total or None

    def _fill(self) -> bool:
        """Take what the socket has; whether that was anything.

        Raises:
            ConnectionError: the broker has closed the connection.
        """
        count = super().receive(self._piece)
        if count is None:
            return False
        self._came.write(self._piece[:count])
        self._records.take(self._piece[:count])
        self._whole_records = True
        self._drained = count < _PIECE_BYTES
        return True

    def pending(self) -> bool:
        """Whether records may be here that were not read yet."""
        return self._whole_records

    def send(self, parts: deque[bytes | bytearray | memoryview]) -> int:
        """Encrypt a piece's worth of `parts` and send it; `flush` has to go on with what stays behind."""
        if not self.flush():
            return 0
        total = 0
        for part in parts:
            rest = memoryview(part)[: _PIECE_BYTES - total]
            while len(rest):
                count = self._tls.write(rest)  # a record at a time
                rest = rest[count:]
                total += count
            if total == _PIECE_BYTES:
                break
        self.flush()
        return total

    def flush(self) -> bool:
        """Whether all that was encrypted is with the kernel; what is not is tried again."""
        while True:
            if not len(self._unsent):
                if not self._made.pending:
                    return True
                self._unsent = memoryview(self._made.read())
            try:
                count = self.socket.send(self._unsent)
            except BlockingIOError:
                return False
            self._unsent = self._unsent[count:]

    def wake_from(self, least_bytes: int) -> None:
        """See `Link`; `least_bytes` are of the message, and the kernel counts the records around it."""
        if least_bytes > 1:
            least_bytes = max(1, least_bytes + _RECORD_BYTES - self._records.begun_bytes)
        super().wake_from(least_bytes)


def open_link(
    host: str,
    address: Address,
    context: ssl.SSLContext | None,
    options: Sequence[tuple[int, int, int]],
) -> Link:
    """A link to `address`, encrypted where there is a context.

    Raises:
        OSError: refused at once, or no route.
    """
    if context is None:
        return Link(address, options)
    return TlsLink(host, address, context, options)

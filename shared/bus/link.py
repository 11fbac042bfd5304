"""A byte stream to a broker that never blocks: TCP here, TLS on top of it in `tls_link`.

Only resolving the host's name may take time, which no portable call does otherwise; addresses in figures
need none.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final, TypeAlias

from shared.bus.tcp_info import Sent, sent
from shared.bus.url import BrokerUrl

Address: TypeAlias = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]

CLOSED: Final = "the broker closed the connection"
# sendmsg takes 1,024 parts at most (IOV_MAX); a few dozen already make the call itself cheap.
_MOST_PARTS: Final = 64


def resolve(url: BrokerUrl) -> list[Address]:
    """The addresses to try, in this order.

    Raises:
        OSError: the host has none.
    """
    found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


class Link:
    """One connection, from the first packet of its handshake to its end.

    Call `advance` whenever the socket is ready, as `wants_write` says, until it returns True; only then
    `receive` and `send`. Every method raises OSError when the connection has failed, with the reason.

    Args:
        address: of `resolve`.
        options: for setsockopt.

    Raises:
        OSError: refused at once, or no route.
    """

    def __init__(self, address: Address, options: Sequence[tuple[int, int, int]]) -> None:
        family, where = address
        self._connecting = True
        self._wakes_from = 1
        self.wants_write = True
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.socket.setblocking(False)
            for option in options:
                self.socket.setsockopt(*option)
            self.socket.connect(where)
        except BlockingIOError:
            pass  # under way
        except OSError:
            self.socket.close()
            raise

    def advance(self) -> bool:
        """Go on with connecting; True when the stream stands."""
        if self._connecting:
            error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            self._connecting = False
        self.wants_write = False
        return True

    def receive(self, space: memoryview) -> int | None:
        """Receive into `space`: how many bytes, None when there are none now.

        Raises:
            ConnectionError: the broker has closed the connection.
        """
        try:
            count = self.socket.recv_into(space)
        except BlockingIOError:
            return None
        if not count:
            raise ConnectionResetError(CLOSED)
        return count

    def sent(self) -> Sent | None:
        """What the kernel says of the bytes sent so far, TLS's own included; None where it does not."""
        return sent(self.socket)

    def pending(self) -> bool:
        """Whether there is something to receive that was taken from the socket, where no poll can see it."""
        return False

    def send(self, parts: deque[bytes | bytearray | memoryview]) -> int:
        """Send as much of `parts` as goes without waiting; the number of bytes."""
        try:
            return self.socket.sendmsg(
                parts if len(parts) <= _MOST_PARTS else islice(parts, _MOST_PARTS)
            )
        except BlockingIOError:
            return 0

    def flush(self) -> bool:
        """Whether all that `send` took is with the kernel; what is not is tried again."""
        return True

    def wake_from(self, least_bytes: int) -> None:
        """Have poll return for incoming data only from so many bytes on, or at the connection's end."""
        if least_bytes != self._wakes_from:
            self._wakes_from = least_bytes
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least_bytes)

    def half_close(self) -> None:
        """Nothing more will be sent; what was sent still arrives."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Give the socket back."""
        self.socket.close()

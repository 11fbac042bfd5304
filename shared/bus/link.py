"""A byte stream to a broker, TCP or TLS, that never blocks.

Only resolving the host's name may take time, which no portable call does otherwise; addresses in figures
need none.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final, TypeAlias

from shared.bus.tcp_info import Sent, sent
from shared.bus.url import BrokerUrl

Address: TypeAlias = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]

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
        url: for the name that the certificate must have.
        address: of `resolve`.
        context: of `url`; None without TLS.
        options: for setsockopt.

    Raises:
        OSError: refused at once, or no route.
    """

    def __init__(
        self,
        url: BrokerUrl,
        address: Address,
        context: ssl.SSLContext | None,
        options: Sequence[tuple[int, int, int]],
    ) -> None:
        family, where = address
        self._host = url.host
        self._context = context
        self._tls: ssl.SSLSocket | None = None
        self._connecting = True
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
        """Go on with connecting and the TLS handshake; True when the stream stands."""
        if self._connecting:
            error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            self._connecting = False
            if self._context is not None:
                self._tls = self._context.wrap_socket(
                    self.socket, server_hostname=self._host, do_handshake_on_connect=False
                )
                self.socket = self._tls
        self.wants_write = False
        if self._tls is not None:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                return False
            except ssl.SSLWantWriteError:
                self.wants_write = True
                return False
        return True

    def receive(self, space: memoryview) -> int | None:
        """Receive into `space`: how many bytes, None when there are none now.

        Raises:
            ConnectionError: the broker has closed the connection.
        """
        try:
            count = self.socket.recv_into(space)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        if not count:
            raise ConnectionResetError("the broker closed the connection")
        return count

    @property
    def encrypted(self) -> bool:
        """Whether it is TLS."""
        return self._tls is not None

    def sent(self) -> Sent | None:
        """What the kernel says of the bytes sent so far, TLS's own included; None where it does not."""
        return sent(self.socket)

    def pending(self) -> bool:
        """Whether TLS holds data already taken from the socket, where no poll can see it."""
        return self._tls is not None and self._tls.pending() > 0

    def send(self, parts: deque[bytes | bytearray | memoryview]) -> int:
        """Send as much of `parts` as goes without waiting; the number of bytes."""
        if self._tls is not None:
            return self._send_tls(self._tls, parts)
        try:
            return self.socket.sendmsg(
                parts if len(parts) <= _MOST_PARTS else islice(parts, _MOST_PARTS)
            )
        except BlockingIOError:
            return 0

    def _send_tls(self, tls: ssl.SSLSocket, parts: deque[bytes | bytearray | memoryview]) -> int:
        # One after the other: TLS has no way to gather. What could not be sent must come again as it
        # was, which it does, since it stays the first part.
        total = 0
        for part in parts:
            if not len(part):
                continue
            try:
                count = tls.send(part)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            total += count
            if count < len(part):
                break
        return total

    def wake_from(self, least_bytes: int) -> None:
        """Have poll return for incoming data only from so many bytes on, or at the connection's end.

        Nothing under TLS, where the kernel counts the records around the data.
        """
        if self._tls is None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least_bytes)

    def half_close(self) -> None:
        """Nothing more will be sent; what was sent still arrives."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Give the socket back."""
        self.socket.close()

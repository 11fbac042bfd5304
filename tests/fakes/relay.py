"""A TCP relay with a rate in each direction: a slow link, wherever the tests run.

    async with Relay(port, up_bytes_per_s=1e6) as relay:
        ...  # connect to relay.port instead

Bytes are let through on a schedule, as on a link of that rate, and the sockets in between are kept small so
that the sender feels it. Threads and blocking sockets: an event loop that also runs the test would add its
own delays to the link's.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

_PIECE_BYTES = 16 * 1024
_SLACK_S = 0.0003
"""Sleeping takes a little longer than asked for: so much may be caught up."""


class Relay:
    """Listens on a free port of the loopback and passes connections on to `port`.

    Rates are in bytes/s, infinite unless given, and may be changed while it runs: `up` is towards the server.
    """

    def __init__(
        self,
        port: int,
        *,
        up_bytes_per_s: float = float("inf"),
        down_bytes_per_s: float = float("inf"),
    ) -> None:
        self.up_bytes_per_s = up_bytes_per_s
        self.down_bytes_per_s = down_bytes_per_s
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE_BYTES)
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    async def __aenter__(self) -> Self:
        self._start(self._accept)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):  # ended by its peer already
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5.0)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            server = socket.socket()
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE_BYTES)
            server.connect(("127.0.0.1", self._server_port))
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [client, server]
            self._start(self._pass_on, client, server, "up_bytes_per_s")
            self._start(self._pass_on, server, client, "down_bytes_per_s")

    def _pass_on(self, source: socket.socket, target: socket.socket, rate: str) -> None:
        free_at = time.perf_counter()
        with contextlib.suppress(OSError):  # either side has closed
            while data := source.recv(_PIECE_BYTES):
                free_at = max(free_at, time.perf_counter() - _SLACK_S) + len(data) / getattr(
                    self, rate
                )
                time.sleep(max(0.0, free_at - time.perf_counter()))
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

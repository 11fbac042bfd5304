"""Waiting for one socket and for a word from another thread."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import time
from typing import Final

_READABLE: Final = select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL


class Waiter:
    """One `poll` object over a connection's socket and a wake-up pair.

    Owned by one thread; `wake` may be called from any.
    """

    def __init__(self) -> None:
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._poll = select.poll()
        self._wake_fd = self._wakened.fileno()
        self._poll.register(self._wake_fd, select.POLLIN)
        self._fd = -1
        self._writes = False

    @property
    def watching(self) -> bool:
        """Whether there is a connection's socket to wait for."""
        return self._fd >= 0

    def watch(self, sock: socket.socket) -> None:
        """Wait for this socket from now on."""
        self._fd = sock.fileno()
        self._writes = False
        self._poll.register(self._fd, select.POLLIN)

    def unwatch(self) -> None:
        """Forget the socket. Call it before the socket is closed."""
        if self._fd >= 0:
            self._poll.unregister(self._fd)
            self._fd = -1

    def wait(self, deadline: float, *, writes: bool) -> tuple[bool, bool, bool]:
        """Wait until `deadline` (monotonic seconds) for: readable, writable, woken.

        Readable also means broken: the read then says how. All are False when time is up.
        """
        if writes != self._writes and self._fd >= 0:
            self._writes = writes
            self._poll.modify(self._fd, select.POLLIN | (select.POLLOUT if writes else 0))
        readable = writable = woken = False
        # Rounded up: a wait of half a millisecond must not become a busy loop.
        timeout_ms = math.ceil((deadline - time.monotonic()) * 1000) if deadline else 0
        for fd, event in self._poll.poll(max(0, timeout_ms)):
            if fd == self._wake_fd:
                self._wakened.recv(4096)
                woken = True
            elif fd == self._fd:
                readable = bool(event & _READABLE)
                writable = bool(event & select.POLLOUT)
        return readable, writable, woken

    def wake(self) -> None:
        """From any thread: end the present wait, or else the next one."""
        # A full pair already holds a wake-up, and after `close` nobody waits.
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def close(self) -> None:
        """Give the descriptors back."""
        self.unwatch()
        self._waker.close()
        self._wakened.close()

"""What the kernel is told about a connection, so that it notices a dead one by itself."""

from __future__ import annotations

import socket

import pytest

from shared.bus.limits import LOST_AFTER_S, socket_options


@pytest.mark.parametrize(("keepalive_s", "lost_after_s"), [(30, LOST_AFTER_S), (4, 4)])
def test_a_socket_takes_them(keepalive_s: int, lost_after_s: int) -> None:
    with socket.socket() as sock:
        for option in socket_options(keepalive_s):
            sock.setsockopt(*option)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            limit_ms = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert limit_ms == lost_after_s * 1000


def test_what_the_platform_does_not_have_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
        monkeypatch.delattr(socket, name, raising=False)
    assert len(socket_options(30)) == 2

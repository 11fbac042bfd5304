"""Sizes and socket options that both faces share."""

from __future__ import annotations

import socket
from typing import Final

from shared.errors import BrokerError

MAX_PAYLOAD_BYTES: Final = 127 << 20
"""The largest payload we send: what our own broker takes, less the room for the rest of a packet.

A broker ends the connection of a client that sends more than it takes, the client sends again on the
next one, and so for ever; what is too large is refused before the wire.
"""
MAX_PACKET_BYTES: Final = 128 << 20
"""The largest packet that we take, unless the owner of a connection takes less; the broker is told so, and
keeps larger ones to itself (MQTT 5, 3.1.2.11.4)."""
LOST_AFTER_S: Final = 10
"""TCP that is not acknowledged for so long is lost; no more than the keep-alive."""
PROBE_AFTER_S: Final = 5
PROBE_EVERY_S: Final = 2
LONGEST_EXPIRY_S: Final = 0xFFFF_FFFF
"""MQTT 5, sections 3.1.2.11.2 and 3.3.2.3.3: four bytes of seconds."""
# For topic and properties, whose sizes we choose ourselves.
_HEADER_BYTES: Final = 1024


def payload_limit(maximum_packet_bytes: int | None) -> int:
    """The largest payload in bytes for a broker that takes such packets (MQTT 5, section 3.2.2.3.6)."""
    if maximum_packet_bytes is None:
        return MAX_PAYLOAD_BYTES
    return min(MAX_PAYLOAD_BYTES, max(0, maximum_packet_bytes - _HEADER_BYTES))


def check_size(topic: str, size_bytes: int, limit_bytes: int) -> None:
    """Refuse a payload before the wire.

    Raises:
        BrokerError: it is larger than the broker takes.
    """
    if size_bytes > limit_bytes:
        raise BrokerError(
            f"the message for {topic} is larger than the broker takes",
            expected=f"at most {limit_bytes} bytes",
            got=f"{size_bytes} bytes",
        )


def socket_options(keepalive_s: int) -> tuple[tuple[int, int, int], ...]:
    """Options for a connection's socket, those that the platform has.

    TCP_NODELAY: with Nagle on, QoS 1 messages below 20 KB took 44 ms a hop (FACTS.md).
    TCP_USER_TIMEOUT: sent data that nobody acknowledges for so long ends the connection; a pulled cable is
    noticed by the kernel even while the owner computes.
    SO_KEEPALIVE: the kernel asks where nothing is sent, too. So who is cut off from the broker, or whom the
    broker has given up meanwhile, begins anew seconds after the network is back, not at the next ping.
    """
    lost_after_s = min(keepalive_s, LOST_AFTER_S)
    options = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ]
    for name, value in (
        ("TCP_USER_TIMEOUT", lost_after_s * 1000),
        ("TCP_KEEPIDLE", PROBE_AFTER_S),
        ("TCP_KEEPINTVL", PROBE_EVERY_S),
        ("TCP_KEEPCNT", max(1, (lost_after_s - PROBE_AFTER_S) // PROBE_EVERY_S)),
    ):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return tuple(options)

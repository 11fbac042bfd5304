"""What Linux counts of a TCP connection (`getsockopt(TCP_INFO)`; struct tcp_info of linux/tcp.h)."""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

# Fields are only ever added at the end; a kernel that has fewer returns fewer bytes.
_ACKED: Final = struct.Struct("=120xQ20xI16xQ")
"""tcpi_bytes_acked, tcpi_min_rtt (microseconds), tcpi_busy_time (microseconds): all since Linux 4.10."""
_TCP_INFO: Final[int | None] = (
    getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
)


@dataclass(frozen=True, slots=True)
class Sent:
    """Since the connection stands.

    Args:
        acked_bytes: that the other side has acknowledged.
        busy_s: time during which data was under way or waited for the other side; in steps of a jiffy.
        min_round_trip_s: the shortest of the last minutes.
    """

    acked_bytes: int
    busy_s: float
    min_round_trip_s: float


def parse(info: bytes) -> Sent | None:
    """From the kernel's struct; None where this kernel's has not all of it."""
    if len(info) < _ACKED.size:
        return None
    acked_bytes, min_round_trip_us, busy_us = _ACKED.unpack_from(info)
    return Sent(acked_bytes, busy_us / 1e6, min_round_trip_us / 1e6)


def sent(sock: socket.socket) -> Sent | None:
    """What `sock` has sent; None where the system does not say.

    Raises:
        OSError: the connection is gone.
    """
    if _TCP_INFO is None:
        return None
    return parse(sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _ACKED.size))

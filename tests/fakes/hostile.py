"""A client that says over MQTT what no library would: properties and packets byte by byte."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self

from shared.bus.mqtt5_values import encode_variable_integer


def text(data: bytes) -> bytes:
    """A string or binary data with its length (1.5.4)."""
    return len(data).to_bytes(2, "big") + data


def user_property(name: bytes, value: bytes = b"") -> bytes:
    """A user property (3.3.2.3.7)."""
    return b"\x26" + text(name) + text(value)


def packet(first: int, body: bytes) -> bytes:
    """A packet with its first byte and its length."""
    return bytes((first,)) + encode_variable_integer(len(body)) + body


def connect_packet(client_id: bytes, flags: int = 2, *more: bytes) -> bytes:
    """CONNECT of MQTT 5 with a keep-alive of a minute."""
    return packet(
        0x10, text(b"MQTT") + bytes((5, flags)) + b"\x00\x3c\x00" + text(client_id) + b"".join(more)
    )


def publish_packet(
    topic: str,
    payload: bytes = b"",
    *,
    properties: bytes = b"",
    qos: int = 0,
    retain: bool = False,
    packet_id: int = 7,
) -> bytes:
    """PUBLISH with these bytes for properties, whatever they are."""
    head = text(topic.encode()) + (packet_id.to_bytes(2, "big") if qos else b"")
    body = head + encode_variable_integer(len(properties)) + properties + payload
    return packet(0x30 | qos << 1 | retain, body)


class HostileClient:
    """A TCP connection to a broker. Use with `with`.

    Raises:
        OSError: nobody listens, or the broker has hung up on us.
    """

    def __init__(
        self, port: int, client_id: bytes | None = b"hostile", timeout_s: float = 5.0
    ) -> None:
        self._timeout_s = timeout_s
        self.socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        if client_id is not None:
            self.send(connect_packet(client_id))
            self.socket.recv(256)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """All of `data`, as it is."""
        self.socket.sendall(data)

    def drain(self) -> None:
        """Read what the broker has said so far, and forget it.

        Raises:
            OSError: it has hung up.
        """
        self.socket.setblocking(False)
        try:
            while self.socket.recv(65_536):
                pass
            raise ConnectionResetError("the broker hung up")
        except BlockingIOError:
            return
        finally:
            self.socket.settimeout(self._timeout_s)

    def accepted(self) -> bool:
        """Whether the broker has taken all that was sent, and still talks to us."""
        try:
            self.send(b"\xc0\x00")
            data = b""
            while not data.endswith(b"\xd0\x00"):
                more = self.socket.recv(4096)
                if not more:
                    return False
                data += more
        except OSError:
            return False
        return True

"""What wakes a data bus: a message does, however the network cuts the stream in which it comes.

The broker is a socket of the test's, so that bytes come when and as the test says. The look that the bus
takes once a second is switched off: it would hide that nothing else had woken it.
"""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from shared.bus import BrokerUrl, MqttDataBus
from shared.bus.mqtt5 import encode_puback
from tests.broker.conftest import poll_until
from tests.fakes.hostile import publish_packet

T = TypeVar("T")

_SMALL = b"0123456789" * 5
_LARGE = bytes(range(256)) * 800
_CONNACK = b"\x20\x03\x00\x00\x00"
_CONNACK_ONE_AT_A_TIME = b"\x20\x06\x00\x00\x03\x21\x00\x01"
"""Receive maximum 1 (3.2.2.3.3): what Mosquitto with `max_inflight_messages 1` says."""


@pytest.fixture(autouse=True)
def _never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MqttDataBus, "_upkeep_s", lambda _: 3600.0)


class Peer:
    """The broker's end of the bus's connection, in TLS where there is a context.

    While it waits, the bus polls.
    """

    def __init__(
        self, server: socket.socket, bus: MqttDataBus, context: ssl.SSLContext | None = None
    ) -> None:
        self._bus = bus
        bus.connect()
        server.setblocking(False)
        self._socket = self._soon(server.accept)[0]
        self._socket.setblocking(False)
        self._came, self._made = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        if context is not None:
            self._tls = context.wrap_bio(self._came, self._made, server_side=True)
            self._soon(self._shake_hands)

    def greet(self, connack: bytes = _CONNACK) -> None:
        assert self.take()[0] == 0x10
        self.send(self.wrapped(connack))
        poll_until(self._bus, lambda: self._bus.connected)

    def take(self) -> bytes:
        """What the bus says next."""
        return self._soon(self._read)

    def wrapped(self, data: bytes) -> bytes:
        """As it goes over the wire."""
        if self._tls is None:
            return data
        assert self._tls.write(data) == len(data)
        return self._made.read()

    def send(self, data: bytes) -> None:
        """Bytes of the wire; they have come to the bus on return."""
        while data:
            data = data[self._soon(partial(self._socket.send, data)) :]
        poll_until(self._bus, self._has_arrived)

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> bytes:
        if self._tls is None:
            return self._socket.recv(1 << 16)
        try:
            return self._tls.read(1 << 16)
        except ssl.SSLWantReadError:
            self._came.write(self._socket.recv(1 << 16))
            raise BlockingIOError from None

    def _has_arrived(self) -> bool:
        (bytes_left,) = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))
        return not bytes_left

    def _shake_hands(self) -> None:
        assert self._tls is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._socket.send(self._made.read())
            self._came.write(self._socket.recv(1 << 16))
            raise BlockingIOError from None
        self._socket.send(self._made.read())

    def _soon(self, step: Callable[[], T]) -> T:
        deadline = time.monotonic() + 10
        while True:
            try:
                return step()
            except BlockingIOError:
                assert time.monotonic() < deadline, "the bus does not do its part"
                self._bus.poll(0.01)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def _comes_in_two(peer: Peer, bus: MqttDataBus, payload: bytes, last_bytes: int) -> None:
    packet = peer.wrapped(publish_packet("to/me", payload, qos=1))
    peer.send(packet[:-last_bytes])
    assert not bus.poll(0), "it has not come yet"
    peer.send(packet[-last_bytes:])
    assert bus.poll(5), f"the last {last_bytes} bytes woke nobody"
    message = bus.receive()
    assert message is not None
    assert message.payload == payload


@pytest.mark.parametrize("payload", [_SMALL, _LARGE], ids=["small", "large"])
def test_the_end_of_a_message_wakes_however_short(server: socket.socket, payload: bytes) -> None:
    bus = MqttDataBus(BrokerUrl(host="127.0.0.1", port=server.getsockname()[1]), "one")
    peer = Peer(server, bus)
    peer.greet()
    for last_bytes in (*range(1, 10), len(_SMALL), len(payload) - 1, len(payload) + 5):
        _comes_in_two(peer, bus, payload, last_bytes)
    bus.close()
    peer.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
@pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"]
)
@pytest.mark.parametrize("payload", [_SMALL, _LARGE], ids=["small", "large"])
async def test_the_end_of_a_record_does(
    server: socket.socket, certificate: tuple[Path, Path], version: ssl.TLSVersion, payload: bytes
) -> None:
    """OpenSSL holds the begun record where neither the kernel nor its buffer's owner sees it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    context.maximum_version = version
    port = server.getsockname()[1]
    url = BrokerUrl.parse(f"mqtts://127.0.0.1:{port}?ca={certificate[0]}")

    def scenario() -> None:
        bus = MqttDataBus(url, "one")
        peer = Peer(server, bus, context)
        peer.greet()
        most = len(payload) + 30
        for last_bytes in (1, 16, 24, 29, 50, 9_000, 20_000, 100_000, most):
            _comes_in_two(peer, bus, payload, min(last_bytes, most))
        bus.close()
        peer.close()

    await asyncio.to_thread(scenario)


def test_where_one_publication_may_be_under_way_its_acknowledgement_wakes(
    server: socket.socket,
) -> None:
    bus = MqttDataBus(BrokerUrl(host="127.0.0.1", port=server.getsockname()[1]), "one")
    peer = Peer(server, bus)
    peer.greet(_CONNACK_ONE_AT_A_TIME)
    for number in range(3):
        bus.publish("a", b"%d" % number)
    for packet_id in range(1, 4):
        assert b"%d" % (packet_id - 1) in peer.take()
        peer.send(encode_puback(packet_id))
    assert bus.unacknowledged == 0
    bus.close()
    peer.close()


def test_what_the_look_once_a_second_finds_ends_the_wait(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MqttDataBus, "_upkeep_s", lambda _: 0.2)
    bus = MqttDataBus(BrokerUrl(host="127.0.0.1", port=server.getsockname()[1]), "one")
    peer = Peer(server, bus)
    peer.greet()
    packet = publish_packet("a")
    assert len(packet) < 9, "it would wake by itself"
    for _ in range(3):
        peer.send(packet)
        deadline = time.monotonic() + 10
        assert bus.poll(10)
        assert time.monotonic() < deadline, "it waited for the end of its time, the message at hand"
        assert bus.receive() is not None
    bus.close()
    peer.close()

"""Broken MQTT on a broker's socket: what no client may send, mutated, cut off, or sent in drips."""

from __future__ import annotations

import random
import socket

from tests.fakes.hostile import (
    HostileClient,
    connect_packet,
    packet,
    publish_packet,
    text,
    user_property,
)
from tests.fuzz.mutate import mutations

_TIMEOUT_S = 0.2


def _whole() -> list[bytes]:
    connect = connect_packet(b"evil")
    return [
        connect,
        connect + publish_packet("evil/topic", b"x", properties=user_property(b"a"), qos=1),
        connect + packet(0x82, b"\x00\x01\x00" + text(b"evil/#") + b"\x01"),
        connect + packet(0x82, b"\x00\x01\x00" + text(b"#") + b"\x02" + text(b"+/+/#") + b"\x00"),
        connect + packet(0xA2, b"\x00\x01\x00" + text(b"evil/#")),
        connect + b"\xc0\x00" * 50 + b"\xe0\x00",
        connect + packet(0x40, b"\x00\x07") + packet(0x62, b"\x00\x07"),
        connect + publish_packet("evil/topic", b"x", qos=2),
        connect + connect,
        b"GET / HTTP/1.1\r\nHost: evil\r\n\r\n",
        b"\x30\xff\xff\xff\x7f" + bytes(1000),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ]


def attack_broker(port: int, connections: int, seed: int) -> int:
    """Make so many connections and send something broken on each; how many the broker ended at once.

    A broker may do as it likes with them, but serve all others.
    """
    chance, ended = random.Random(seed), 0
    broken = mutations(_whole(), seed)
    for _ in range(connections):
        try:
            with HostileClient(port, None, _TIMEOUT_S) as client:
                data = next(broken)
                cut = chance.randrange(len(data) + 1) if chance.random() < 0.2 else len(data)
                client.send(data[:cut])
                if chance.random() < 0.3:
                    client.socket.shutdown(socket.SHUT_WR)
                ended += not client.socket.recv(4096)
        except TimeoutError:
            continue
        except OSError:
            ended += 1
    return ended


def leave_wills(port: int, topics: list[tuple[str, bytes]]) -> None:
    """Connect with each of these as a last will, and vanish without a goodbye."""
    for index, (topic, payload) in enumerate(topics):
        will = b"\x00" + text(topic.encode()) + text(payload)
        # Will flag, QoS 1 (3.1.2.5); the will's properties come first, and are none.
        flags = 0x02 | 0x04 | 0x08
        with HostileClient(port, None) as client:
            client.send(connect_packet(b"evil-will-%d" % index, flags, will))
            client.socket.recv(256)

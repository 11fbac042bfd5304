"""A broker that speaks broken MQTT for so many connections, and then hands on to a real one."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from itertools import islice
from types import TracebackType
from typing import Self

from tests.fakes.hostile import packet, publish_packet, text, user_property
from tests.fuzz.mutate import mutations

_TIMEOUT_S = 5.0
_CONNACK = packet(0x20, b"\x00\x00\x00")


def _said() -> list[bytes]:
    """What a broker may say after CONNECT, and some things that it may not."""
    greeting = packet(0x20, b"\x01\x00\x0b" + b"\x21\x00\x0a\x27\x00\x01\x00\x00\x24\x01" + b"\x2a")
    messages = (
        publish_packet("t", b"x", qos=1), publish_packet("t", b"x" * 3000, properties=user_property(b"a")),
        publish_packet("", b"x", properties=b"\x23\x00\x01"), publish_packet("t", b"x", qos=2),
    )  # fmt: skip
    rest = (
        packet(0x90, b"\x00\x01\x00\x01"), packet(0x40, b"\x00\x01"), b"\xd0\x00", packet(0x62, b"\x00\x01"),
        packet(0xE0, b"\x8b\x00"), packet(0xE0, b"\x82\x05\x1f" + text(b"no")), _CONNACK,
        packet(0xF0, b"\x18\x00"), b"\x30\xff\xff\xff\x7f" + bytes(100), b"\xff" * 6,
    )  # fmt: skip
    refusals = [packet(0x20, bytes((0, reason, 0))) for reason in (0x80, 0x87, 0x97, 0xFF)]
    return [
        *refusals, greeting, b"", _CONNACK + b"".join(messages), _CONNACK + b"".join(rest[:3]),
        *(_CONNACK + each for each in (*messages, *rest)),
    ]  # fmt: skip


class HostileBroker:
    """Listens on `port`. Use with `with`.

    Args:
        behind: the port of a real broker, to which connections go from the `hostile`-th on.
        hostile: how many connections get broken answers.
        seed: of all chance.
    """

    def __init__(self, behind: int, hostile: int, seed: int) -> None:
        self._behind = behind
        self._hostile = hostile
        self._chance = random.Random(seed)
        self._answers: Iterator[bytes] = islice(mutations(_said(), seed), hostile)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, name="hostile broker", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._thread.join(_TIMEOUT_S)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            answer = next(self._answers, None)
            if answer is None:
                self._hand_on(client)
                continue
            with client, contextlib.suppress(OSError):
                client.settimeout(_TIMEOUT_S)
                client.recv(4096)
                cut = self._chance.randrange(1, 60) if self._chance.random() < 0.3 else len(answer)
                for at in range(0, len(answer), cut or 1):
                    client.sendall(answer[at : at + cut])

    def _hand_on(self, client: socket.socket) -> None:
        broker = socket.create_connection(("127.0.0.1", self._behind))
        self._open += [client, broker]
        for source, sink in ((client, broker), (broker, client)):
            threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

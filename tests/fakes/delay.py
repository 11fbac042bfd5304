"""A TCP relay that holds back what passes: a far node, wherever the tests run.

    async with DelayRelay("127.0.0.1", port) as relay:
        relay.delay_s = 0.05  # each way; connect to relay.port instead

Unlike a pause per piece this costs no throughput: what follows is under way meanwhile. `cut` ends what is
connected and refuses what connects, until `heal`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from types import TracebackType
from typing import Self

_PIECE_BYTES = 64 * 1024
_UNDER_WAY = 256
"""Pieces that may be held back in one direction; with more the sender waits."""


class DelayRelay:
    """Listens on a free port of `host` and passes connections on to `port` there, `delay_s` later."""

    def __init__(self, host: str, port: int) -> None:
        self.delay_s = 0.0
        self.port = 0
        self._host = host
        self._server_port = port
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._is_cut = False

    def cut(self) -> None:
        self._is_cut = True
        for connection in self._connections:
            connection.cancel()

    def heal(self) -> None:
        self._is_cut = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, self._host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.close()
            return
        task = asyncio.create_task(self._connection(reader, writer), name="delay relay")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            try:
                far_reader, far_writer = await asyncio.open_connection(
                    self._host, self._server_port
                )
            except OSError:  # the server is away: so are we
                return
            with contextlib.closing(far_writer):
                for end in (writer, far_writer):
                    end.get_extra_info("socket").setsockopt(
                        socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
                    )
                await self._both_ways(reader, writer, far_reader, far_writer)

    async def _both_ways(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        ways = [
            asyncio.create_task(self._pass_on(reader, far_writer)),
            asyncio.create_task(self._pass_on(far_reader, writer)),
        ]
        try:
            # Where one side has closed nothing is left to say for the other.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY)

        async def send() -> None:
            while True:
                due, data = await held.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not data:
                    return
                writer.write(data)
                await writer.drain()

        async def receive() -> None:
            data = b"-"
            while data:
                try:
                    data = await reader.read(_PIECE_BYTES)
                except ConnectionError:
                    data = b""
                await held.put((loop.time() + self.delay_s, data))

        sender, receiver = asyncio.create_task(send()), asyncio.create_task(receive())
        try:
            with contextlib.suppress(ConnectionError):
                await sender  # ends when either side has
        finally:
            receiver.cancel()
            sender.cancel()
            await asyncio.gather(receiver, sender, return_exceptions=True)

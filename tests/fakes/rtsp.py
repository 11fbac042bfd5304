"""A camera on the network: an RTSP server (RFC 2326) that sends a transport stream by RTP over TCP."""

from __future__ import annotations

import contextlib
import itertools
import socket
import socketserver
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_TS = 7 * 188
"""Bytes of a packet: as many packets of a transport stream as fit into one of the network."""
_PAYLOAD = 33
"""RTP's number for a transport stream (RFC 3551)."""


class Camera:
    """Shows the transport stream in a file, again and again, to everybody who asks. Use with `with`."""

    def __init__(self, footage: Path, *, status: str = "200 OK") -> None:
        self._data = footage.read_bytes()
        self._status = status
        self._lock = threading.Lock()
        self._viewers: set[socket.socket] = set()
        self.shown = 0
        """How often somebody began to watch."""
        camera = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                try:
                    camera._serve(self)
                except OSError:  # the viewer has gone, or was cut off
                    pass
                finally:
                    with camera._lock:
                        camera._viewers.discard(self.connection)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"rtsp://user:secret@127.0.0.1:{self._server.server_address[1]}/stream"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self.cut()
        self._server.server_close()

    def cut(self) -> None:
        """End every connection, in the middle of a packet."""
        with self._lock:
            for viewer in self._viewers:
                with contextlib.suppress(OSError):  # it has gone by itself
                    viewer.shutdown(socket.SHUT_RDWR)

    def _serve(self, handler: socketserver.StreamRequestHandler) -> None:
        with self._lock:
            self._viewers.add(handler.connection)
        while request := handler.rfile.readline():
            method = request.decode().split()[0]
            headers = {}
            while line := handler.rfile.readline().strip().decode():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body, more = "", ""
            match method:
                case "OPTIONS":
                    more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
                case "DESCRIBE":
                    body = (
                        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\n"
                        f"m=video 0 RTP/AVP {_PAYLOAD}\r\nc=IN IP4 0.0.0.0\r\na=control:track0\r\n"
                    )
                    more = "Content-Type: application/sdp\r\n"
                case "SETUP":
                    more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
                case "PLAY":
                    more = "Session: 1\r\n"
            status = self._status if method == "DESCRIBE" else "200 OK"
            handler.wfile.write(
                f"RTSP/1.0 {status}\r\nCSeq: {headers.get('cseq', '0')}\r\n{more}"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            if method == "PLAY":
                self.shown += 1
                self._send(handler)
                return

    def _send(self, handler: socketserver.StreamRequestHandler) -> None:
        pieces = [self._data[at : at + _TS] for at in range(0, len(self._data), _TS)]
        for sequence, piece in enumerate(itertools.cycle(pieces)):
            # RFC 3550: version 2, payload type, sequence, time in 1/90,000 s, source.
            rtp = struct.pack(
                ">BBHII", 0x80, _PAYLOAD, sequence & 0xFFFF, 900 * sequence & 0xFFFFFFFF, 1
            )
            # RFC 2326, 10.12: `$`, channel, length.
            handler.wfile.write(struct.pack(">cBH", b"$", 0, len(rtp) + len(piece)) + rtp + piece)

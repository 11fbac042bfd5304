"""`/ws`: the documented topics as JSON text, for the page.

The first frame is a snapshot: `{"kind": "snapshot", "root", "broker", "closed", "at_ms", "connected",
"topics": [[topic, payload], ...], "events": [...], "history": [...]}`. Every further one is `{"kind":
"messages", "messages": [[topic, payload], ...]}`, or `{"kind": "connection", "connected"}` when the broker
goes or comes back. Topics are below the root, a payload is the document of PROTOCOL.md, or null where what
was retained is gone. `broker` is its address and `closed` whether it takes a join token; no credential is in
any frame. The browser sends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable

from aiohttp import WSCloseCode, WSMsgType, web

from orchestrator.web.mailbox import Item, Mailbox
from orchestrator.web.server import Site
from shared.codec import encode_json
from shared.logs import get_log

log = get_log(__name__)

MOST_BROWSERS = 64
_EVERY_S = 0.1
"""Between frames: what comes within is one frame, and one piece of work for the browser."""
_HEARTBEAT_S = 20.0
_CLOSE_S = 2.0
_LATEST_ONLY = ("telemetry", "metrics")
_LARGEST_WORD_BYTES = 1024
"""Of what a browser says: it has nothing to say."""


def live(site: Site) -> Iterable[web.RouteDef]:
    """The WebSocket."""
    return [web.get("/ws", _Browsers(site).answer)]


class _Browser:
    """One follower of the watch: fills its mailbox, and wakes who empties it."""

    def __init__(self, *, connected: bool) -> None:
        self.mailbox = Mailbox()
        self.connected = connected
        self.woken = asyncio.Event()
        self.overflowed = asyncio.Event()

    def take(self, name: str, topic: str, payload: bytes) -> None:
        item = Item(topic, payload)
        if name in _LATEST_ONLY:
            self.mailbox.replace(item)
        elif not self.mailbox.keep(item):
            self.overflowed.set()
        self.woken.set()

    def connection(self, *, connected: bool) -> None:
        self.connected = connected
        self.woken.set()


class _Browsers:
    """All that look on."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._watch = site.watch
        self._closing = site.closing
        self._count = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One browser, until it leaves."""
        if self._count >= MOST_BROWSERS:
            raise web.HTTPServiceUnavailable(text=f"{MOST_BROWSERS} pages are open already\n")
        # Uncompressed: a megabyte a minute on loopback is cheaper than the orchestrator's CPU.
        socket = web.WebSocketResponse(
            heartbeat=_HEARTBEAT_S, max_msg_size=_LARGEST_WORD_BYTES, compress=False
        )
        self._count += 1
        try:
            await socket.prepare(request)
            await self._follow(socket)
        finally:
            self._count -= 1
        return socket

    async def _follow(self, socket: web.WebSocketResponse) -> None:
        browser = _Browser(connected=self._watch.connected)
        async with self._watch.followed_by(browser):
            first = _snapshot(self._site)
            ends = {
                asyncio.create_task(_until_left(socket), name="page: read"),
                asyncio.create_task(_send(socket, browser, first), name="page: send"),
                asyncio.create_task(browser.overflowed.wait(), name="page: overflow"),
                asyncio.create_task(self._closing.wait(), name="page: closing"),
            }
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in ends:
                    task.cancel()
                await asyncio.gather(*ends, return_exceptions=True)
        if browser.overflowed.is_set():
            log.info("a page is too slow for what happens, and begins again")
            await _close(socket, WSCloseCode.TRY_AGAIN_LATER, "too slow for what happens")
        elif self._closing.is_set():
            await _close(socket, WSCloseCode.GOING_AWAY, "the orchestrator ends")


async def _until_left(socket: web.WebSocketResponse) -> None:
    """Until it leaves, or is not answered by, or says more than it may."""
    while (await socket.receive()).type in (WSMsgType.TEXT, WSMsgType.BINARY):
        pass


async def _send(socket: web.WebSocketResponse, browser: _Browser, first: bytes) -> None:
    """What comes, in frames; waits while the browser does not read."""
    await socket.send_str(first.decode())
    connected = browser.connected
    while True:
        if browser.connected != connected:
            connected = browser.connected
            said = encode_json({"kind": "connection", "connected": connected})
            await socket.send_str(said.decode())
        elif browser.mailbox:
            await socket.send_str(_frame(browser.mailbox.take()).decode())
            await asyncio.sleep(_EVERY_S)
        else:
            browser.woken.clear()
            await browser.woken.wait()


def _frame(items: Iterable[Item]) -> bytes:
    return b'{"kind":"messages","messages":[' + _pairs(items) + b"]}"


def _pairs(items: Iterable[Item]) -> bytes:
    # Payloads are JSON already, and are not made again for each browser.
    return b",".join(b"[%s,%s]" % (encode_json(item.topic), item.payload) for item in items)


def _snapshot(site: Site) -> bytes:
    watch, broker = site.watch, site.options.broker
    fields: list[tuple[str, bytes]] = [
        ("kind", b'"snapshot"'),
        ("root", encode_json(watch.topics.root)),
        ("broker", encode_json(f"{'mqtts' if broker.tls else 'mqtt'}://{broker.address}")),
        ("closed", encode_json(broker.own_login)),
        ("at_ms", encode_json(time.time_ns() // 1_000_000)),
        ("connected", encode_json(watch.connected)),
        ("topics", b"[" + _pairs(Item(*known) for known in watch.known()) + b"]"),
        ("events", encode_json([*watch.events])),
        ("history", encode_json([*watch.history.moments])),
    ]
    return b"{" + b",".join(encode_json(name) + b":" + value for name, value in fields) + b"}"


async def _close(socket: web.WebSocketResponse, code: WSCloseCode, why: str) -> None:
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(_CLOSE_S):
            await socket.close(code=code, message=why.encode())

"""Who may ask: a page of another site must not read a cluster that happens to be reachable from its reader.

Two attacks are meant. A name of the attacker's that resolves to our address (DNS rebinding) makes the browser
believe that it talks to the attacker's site: so the `Host` has to be one that is ours. And a foreign page may
open a WebSocket here, post a form, or ask for what costs us time, without being let in by any header of ours:
so `Origin`, which browsers send with the first two, and `Sec-Fetch-Site`, neither of which a page can change,
have to be our own. A link that leads here may stand anywhere.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from orchestrator.web.address import HttpAddress

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_READING = ("GET", "HEAD")


def guard(address: HttpAddress, names: Iterable[str]) -> Middleware:
    """A middleware that answers 403 to who comes by a foreign name, or from a foreign page.

    Args:
        address: where the server listens.
        names: further host names by which it is reached, such as a proxy's.
    """
    ours = {name.lower().rstrip(".") for name in (*names, *_own_names(address))}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = _host_name(request.host)
        # A rebound name is a name: an address can only be what the reader typed.
        if host is None or not (host in ours or _is_ip(host)):
            raise web.HTTPForbidden(
                text=f"this server is not known as {request.host!r}; expected an address, or one of "
                f"{', '.join(sorted(ours))}: --http-name adds one\n"
            )
        if not _followed_link(request) and not _same_origin(request):
            raise web.HTTPForbidden(
                text=f"a page of {request.headers.get('Origin', 'another site')} asked; only our own may\n"
            )
        return await handler(request)

    return check


async def harden(_: web.Request, response: web.StreamResponse) -> None:
    """Headers of every response: nothing from elsewhere is loaded, nobody frames the page."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)


def _followed_link(request: web.Request) -> bool:
    """Somebody goes to the page; what a program of ours asks passes as of the same origin."""
    return (
        request.method in _READING
        and "Upgrade" not in request.headers
        and request.headers.get("Sec-Fetch-Mode") == "navigate"
    )


def _same_origin(request: web.Request) -> bool:
    """Programs that are no browser send no `Origin`."""
    origin = request.headers.get("Origin")
    if origin is not None:
        return urlsplit(origin).netloc.lower() == request.host.lower()
    return request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")


def _own_names(address: HttpAddress) -> list[str]:
    names = ["localhost"]
    if not address.is_loopback:
        machine = socket.gethostname()
        names += [machine, f"{machine.partition('.')[0]}.local"]
    return names if _is_ip(address.host) else [*names, address.host]


def _host_name(host: str) -> str | None:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return None
    return None if name is None else name.rstrip(".")


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

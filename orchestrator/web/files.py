"""The page's own files, as they lie in `page/`: read once, and served from memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.resources import files

from aiohttp import web

from orchestrator.web.server import Site

_INDEX = "index.html"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


def page_files(_: Site) -> Iterable[web.RouteDef]:
    """A route per file, and `/` for the page."""
    found = [
        file
        for file in sorted(files("orchestrator.web").joinpath("page").iterdir(), key=_name)
        if _suffix(file.name) in _TYPES
    ]
    routes = [_route(f"/{file.name}", file.name, file.read_bytes()) for file in found]
    index = next(file for file in found if file.name == _INDEX)
    return [*routes, _route("/", _INDEX, index.read_bytes())]


def _route(path: str, name: str, body: bytes) -> web.RouteDef:
    tag = hashlib.sha256(body).hexdigest()[:32]

    async def answer(request: web.Request) -> web.Response:
        # Asked for each time, and sent only when it is another: no file of an older version beside a newer.
        headers = {"Cache-Control": "no-cache", "ETag": f'"{tag}"'}
        known = request.if_none_match or ()
        if any(each.value == tag for each in known):
            return web.Response(status=304, headers=headers)
        return web.Response(
            body=body, content_type=_TYPES[_suffix(name)], charset="utf-8", headers=headers
        )

    return web.get(path, answer)


def _name(file: object) -> str:
    return str(getattr(file, "name", ""))


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]

"""`POST /api/infer/{model}`: a picture from the page as a job, by the way that every client's job takes.

It goes through the broker, on topics of its own, so what the page shows is what a client gets: the same
queue, the same refusals, the same trace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiohttp import web

from orchestrator.web.replies import error_reply, json_reply
from orchestrator.web.server import Site
from shared.client import Client
from shared.errors import Amp4ecError, ErrorCode, JobError

_CONNECT_S = 5.0
_ANSWER_S = 30.0
_MOST_AT_ONCE = 8
"""Pictures are tens of kilobytes to megabytes, held in memory until they are answered."""


def jobs(site: Site) -> Iterable[web.RouteDef]:
    """The route."""
    options = site.options
    room = asyncio.Semaphore(_MOST_AT_ONCE)

    async def infer(request: web.Request) -> web.Response:
        if room.locked():
            return error_reply(
                JobError(
                    ErrorCode.OVERLOADED,
                    "too many pictures are sent from pages",
                    expected=f"at most {_MOST_AT_ONCE} at once",
                    got="one more",
                )
            )
        async with room:
            try:
                body = await _body(request)
                async with Client(
                    options.broker, root=options.root, connect_timeout_s=_CONNECT_S
                ) as client:
                    result = await client.infer(
                        request.match_info["model"], body, timeout_s=_ANSWER_S, deadline_s=_ANSWER_S
                    )
            except Amp4ecError as error:
                return error_reply(error)
        return json_reply(result.answer)

    return [web.post("/api/infer/{model}", infer)]


async def _body(request: web.Request) -> bytes:
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise JobError(
            ErrorCode.TOO_LARGE, "the file is too large for the page", got=error.text
        ) from error
    if not body:
        raise JobError(
            ErrorCode.BAD_INPUT, "there is nothing in the file", expected="an image", got="0 bytes"
        )
    return body

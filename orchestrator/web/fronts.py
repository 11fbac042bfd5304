"""`GET /api/front/{model}?axes=latency,throughput`: the plans that no other beats in all of the axes.

Computed by the orchestrator that leads in this process, of the nodes as they were measured; nothing is
changed by it. It takes up to some seconds of a core, so the page asks only when somebody wants to see it.
"""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from orchestrator.core.figures import Objective
from orchestrator.core.plan_document import front_document
from orchestrator.web.replies import error_reply, json_reply
from orchestrator.web.server import Site
from shared.errors import Amp4ecError, ConfigurationError, ErrorCode, JobError

_AXES = "latency,throughput"


def fronts(site: Site) -> Iterable[web.RouteDef]:
    """The route."""

    async def answer(request: web.Request) -> web.Response:
        life = site.leading()
        try:
            if life is None:
                raise JobError(
                    ErrorCode.UNAVAILABLE,
                    "this process does not lead, so it has no plans",
                    expected="the page of the orchestrator that leads",
                    got="one that stands by",
                )
            axes = _axes(request.query.get("axes", _AXES))
            found = await life.operators.front(request.match_info["model"], axes)
        except Amp4ecError as error:
            return error_reply(error)
        return json_reply(front_document(found))

    return [web.get("/api/front/{model}", answer)]


def _axes(text: str) -> list[Objective]:
    try:
        return [Objective(name) for name in text.split(",")]
    except ValueError as error:
        raise ConfigurationError(
            "axes", expected=f"some of {', '.join(Objective)}", got=text
        ) from error

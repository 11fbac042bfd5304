"""Routes for programs that watch: `/metrics` for Prometheus, `/healthz` and `/readyz` for who restarts us."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from orchestrator.identity import own_version
from orchestrator.web.metrics import Scene, exposition
from orchestrator.web.server import Site
from shared.codec import encode_json_line


def monitor_routes(site: Site) -> Iterable[web.RouteDef]:
    """The routes.

    `/healthz`: this process answers. `/readyz`: it is of use, that is connected to the broker, and where it
    leads every model that is to be served answers jobs; else 503, and why.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=exposition(scene_of(site)), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        role, reasons = _readiness(site)
        said = {"ready": not reasons, "role": role, "reasons": reasons}
        return web.Response(
            body=encode_json_line(said) + b"\n",
            status=503 if reasons else 200,
            content_type="application/json",
        )

    return [
        web.get("/metrics", metrics),
        web.get("/healthz", healthz),
        web.get("/readyz", readyz),
    ]


def scene_of(site: Site) -> Scene:
    """What there is to tell now."""
    life, status = site.leading(), site.watch.overview.snapshot()
    version, connected = own_version(), site.watch.connected
    if life is None:
        return Scene(version=version, connected=connected, status=status)
    known = life.reporting
    return Scene(
        version=version,
        connected=connected,
        status=status,
        health=known.health(),
        metrics=known.metrics,
        outcomes=known.outcomes,
        latencies=known.latencies,
    )


def _readiness(site: Site) -> tuple[str, list[str]]:
    """Whether we lead, and what keeps us from being of use."""
    life = site.leading()
    reasons = [] if site.watch.connected else ["not connected to the broker"]
    if life is None:
        return "stands by", reasons
    if not life.restore.over:
        reasons.append("what was served before is being taken over")
    findings = life.reporting.health().findings
    reasons += [found.text for found in findings if found.grade == "failing"]
    return "leads", reasons

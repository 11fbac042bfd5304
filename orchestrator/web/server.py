"""The HTTP server: groups of routes, started and stopped with the orchestrator's process.

A group of routes is a function that gets the `Site` and returns aiohttp routes; `ROUTES` in `groups.py` lists
them all. Routes run in the event loop that plans: what takes longer than some milliseconds goes to a thread.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from orchestrator.options import OrchestratorOptions
from orchestrator.service import Orchestrator
from orchestrator.web.address import HttpAddress
from orchestrator.web.guard import guard, harden
from orchestrator.web.watch import Watch
from shared.errors import ConfigurationError
from shared.logs import get_log

log = get_log(__name__)

_SHUTDOWN_S = 2.0
"""How long answers that are under way may take at the end."""
_LARGEST_BODY_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What groups of routes are made of.

    `watch` is the cluster as the documented topics show it; `leading` is the orchestrator in this process,
    None while another leads. A site is served once.
    """

    options: OrchestratorOptions
    watch: Watch
    leading: Callable[[], Orchestrator | None]
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server ends: answers that go on until told otherwise end, too."""


RouteGroup = Callable[[Site], Iterable[web.RouteDef]]
"""Makes some of the routes."""


@asynccontextmanager
async def serve(
    address: HttpAddress, site: Site, groups: Sequence[RouteGroup], *, names: Iterable[str] = ()
) -> AsyncIterator[HttpAddress]:
    """Listen until left; the address with the port that it came to.

    Args:
        address: where to listen.
        site: what the routes are made of.
        groups: the routes.
        names: further host names by which browsers may come.

    Raises:
        ConfigurationError: somebody else listens there, or this machine has no such address.
    """

    async def closing(_: web.Application) -> None:
        site.closing.set()

    app = web.Application(middlewares=[guard(address, names)], client_max_size=_LARGEST_BODY_BYTES)
    app.on_response_prepare.append(harden)
    app.on_shutdown.append(closing)
    for group in groups:
        app.add_routes(group(site))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, address.host, address.port).start()
        except OSError as error:
            raise _cannot_listen(address, error) from error
        bound = HttpAddress(runner.addresses[0][1], address.host)
        log.info("the page is there", url=bound.url)
        if not bound.is_loopback:
            log.warning(
                "the page is open to other machines, without a login: whoever reaches it sees nodes, models "
                "and events, and may send jobs",
                url=bound.url,
                for_this_machine_only=f"--http {bound.port}",
            )
        yield bound
    finally:
        await runner.cleanup()


def _cannot_listen(address: HttpAddress, error: OSError) -> ConfigurationError:
    if error.errno == errno.EADDRINUSE:
        return ConfigurationError(
            f"--http: port {address.port} is in use",
            expected="a free port; 0 takes any",
            got="a port that another program listens on",
        )
    return ConfigurationError(
        f"--http: cannot listen on {address}",
        expected="an address of this machine, such as 127.0.0.1 or 0.0.0.0",
        got=error.strerror or str(error),
    )

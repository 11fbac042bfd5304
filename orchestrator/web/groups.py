"""All routes of the orchestrator's HTTP server, and its life."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from orchestrator.options import OrchestratorOptions
from orchestrator.service import Orchestrator
from orchestrator.web.files import page_files
from orchestrator.web.fronts import fronts
from orchestrator.web.jobs import jobs
from orchestrator.web.live import live
from orchestrator.web.monitors import monitor_routes
from orchestrator.web.server import RouteGroup, Site, serve
from orchestrator.web.watch import MOST_EVENTS, Watch
from shared.bus import MqttControlBus
from shared.client.status import WATCHED
from shared.messages.operation import EventsRequest
from shared.signing import Admission
from shared.topics import Topics, largest_packet

_ALL_EVENTS = EventsRequest(transaction="page", most=MOST_EVENTS)
_MOST_WAITING = 4096
"""Messages; telemetry beyond is dropped. A few thousand nodes may speak at once."""
ROUTES: tuple[RouteGroup, ...] = (page_files, live, jobs, fronts, monitor_routes)


@asynccontextmanager
async def http_server(
    options: OrchestratorOptions, name: str, leading: Callable[[], Orchestrator | None]
) -> AsyncIterator[None]:
    """Serve all routes until left.

    Args:
        options: say where to listen, and where the broker is.
        name: of this process alone.
        leading: the orchestrator that leads in this process, if one does.

    Raises:
        ConfigurationError: it cannot listen there.
    """
    assert options.http is not None
    topics = Topics(options.root)
    watch = Watch(
        MqttControlBus(
            options.broker,
            client_id=f"amp4ec-page-{options.root.replace('/', '-')}-{name}",
            receive_maximum=_MOST_WAITING,
            maximum_packet_bytes=largest_packet((*WATCHED, "event")),
        ),
        topics,
        Admission(options.broker.credentials),
        earlier=lambda: [] if (life := leading()) is None else life.operators.events(_ALL_EVENTS),
    )
    site = Site(options=options, watch=watch, leading=leading)
    # A port in use is said before anything else is begun.
    async with serve(options.http, site, ROUTES, names=options.http_names), watch.running():
        yield

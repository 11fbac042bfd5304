"""`amp4ec orchestrator` and `agent`: they run until they are told to stop."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import click

from deploy.cli.openness import warn_of_plain_text
from deploy.cli.options import (
    DURATION,
    HTTP,
    NAME,
    SIZE,
    Common,
    home_assistant_option,
    service_options,
)
from deploy.cli.scheduling import scheduler_options
from orchestrator.core.scheduler_settings import SchedulerSettings
from orchestrator.web.address import HttpAddress
from shared.bus.url import BrokerUrl
from shared.ids import name_from
from shared.profile import DEFAULT_ZONE


def default_state_dir() -> Path:
    """Where an orchestrator keeps its models when nobody says: below the user's state directory (XDG)."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "amp4ec" / "orchestrator"


@click.command("orchestrator")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the served models here.  [default: ~/.local/state/amp4ec/orchestrator]",
)
@click.option(
    "--store-size",
    type=SIZE,
    default="16Gi",
    show_default=True,
    help="The most that models may take on disk.",
)
@click.option(
    "--store-after",
    type=DURATION,
    default="200ms",
    show_default=True,
    help="Write an accepted job to disk when it has no answer by then; 1ms for each at once.",
)
@click.option(
    "--forget-after",
    type=DURATION,
    default="1h",
    show_default=True,
    help="Clear what is retained of a node that was lost for so long; of one that left, after a sixth of it.",
)
@click.option(
    "--prefetch/--no-prefetch",
    default=True,
    show_default=True,
    help="Send nodes the weights that a later plan may need.",
)
@click.option(
    "--zone",
    default=DEFAULT_ZONE,
    show_default=True,
    help="The trust zone that the orchestrator is in: every job's input passes here.",
)
@click.option(
    "--broker-zone",
    default=DEFAULT_ZONE,
    show_default=True,
    help="The trust zone that the broker is in: every tensor crosses it.",
)
@click.option(
    "--http",
    type=HTTP,
    help="Serve the page here: 8080 on this machine only; 0.0.0.0:8080 to everybody who reaches it, who "
    "then sees all and may send jobs.  [default: no page]",
)
@click.option(
    "--http-name",
    "http_names",
    multiple=True,
    help="A further host name by which browsers come to the page, such as a proxy's; repeatable.",
)
@home_assistant_option
@scheduler_options
@service_options
def orchestrator_command(
    *,
    common: Common,
    state_dir: Path | None,
    store_size: int,
    store_after: float,
    forget_after: float,
    prefetch: bool,
    zone: str,
    broker_zone: str,
    http: HttpAddress | None,
    http_names: tuple[str, ...],
    home_assistant: str | None,
    scheduling: SchedulerSettings,
) -> int:
    """Run the orchestrator: it plans, deploys and answers jobs, until Ctrl-C.

    \b
    Example:
        amp4ec orchestrator --broker mqtt://192.168.1.5
    """  # noqa: D301
    from orchestrator.candidate import run_orchestrator
    from orchestrator.core.cluster_settings import ClusterSettings, Zones
    from orchestrator.core.dispatch_settings import DispatchSettings
    from orchestrator.options import OrchestratorOptions

    warn_of_plain_text(common.broker)
    options = OrchestratorOptions(
        broker=common.broker,
        root=common.root,
        state_dir=state_dir or default_state_dir(),
        store_bytes=store_size,
        store_after_s=store_after,
        prefetch=prefetch,
        http=http,
        http_names=http_names,
        home_assistant=home_assistant,
        cluster=ClusterSettings(
            zones=Zones(orchestrator=zone, broker=broker_zone), forget_after_s=forget_after
        ),
        dispatch=DispatchSettings(scheduling=scheduling),
    )
    return asyncio.run(run_orchestrator(options))


@click.command("agent")
@click.option(
    "--name", type=NAME, help="The node's name.  [default: the join token's, or the host's]"
)
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep weights here.  [default: ~/.cache/amp4ec/agent-NAME]",
)
@click.option(
    "--cache-size", type=SIZE, default="2Gi", show_default=True, help="The most the cache may take."
)
@click.option("--zone", default="default", show_default=True, help="The trust zone the node is in.")
@click.option(
    "--price-per-hour", type=click.FloatRange(min=0), default=0.0, help="What the node costs."
)
@click.option(
    "--power-w",
    "--power",
    "power_w",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Watts under load.",
)
@click.option(
    "--cpus",
    type=click.FloatRange(min=0, min_open=True),
    help="Count on so many CPUs; for several agents on a machine that nothing else limits.  "
    "[default: what quota and affinity leave]",
)
@click.option(
    "--telemetry-interval",
    type=DURATION,
    default="1s",
    show_default=True,
    help="How often to tell.",
)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    help="Offer this runtime only; repeatable.  [default: all]",
)
@click.option(
    "--preload",
    is_flag=True,
    help="Import the runtimes before joining: ready at once then, for 300 MB of memory.",
)
@service_options
def agent_command(
    *,
    common: Common,
    name: str | None,
    cache_dir: Path | None,
    cache_size: int,
    zone: str,
    price_per_hour: float,
    power_w: float,
    cpus: float | None,
    telemetry_interval: float,
    runtimes: tuple[str, ...],
    preload: bool,
) -> int:
    """Run an agent on this device, until Ctrl-C.

    \b
    Example, on a Raspberry Pi:
        amp4ec agent --broker mqtt://192.168.1.5 --zone home
    """  # noqa: D301
    from edge_agent.leaving import leave
    from edge_agent.options import AgentOptions
    from edge_agent.service import run_agent

    warn_of_plain_text(common.broker)
    options = AgentOptions(
        broker=common.broker,
        node=name or _node_name(common.broker),
        root=common.root,
        cache_dir=cache_dir,
        cache_bytes=cache_size,
        zone=zone,
        price_per_hour=price_per_hour,
        power_w=power_w,
        cpus=cpus,
        telemetry_interval_s=telemetry_interval,
        preload=preload,
        runtimes=runtimes or None,
    )
    code = asyncio.run(run_agent(options))
    leave(code)
    return code


def _node_name(broker: BrokerUrl) -> str:
    """A join token's user is the node that it was issued for."""
    if broker.own_login and broker.username is not None:
        return broker.username
    return name_from(socket.gethostname(), "node")

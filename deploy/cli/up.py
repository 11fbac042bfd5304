"""`amp4ec up`: a whole cluster on this machine, until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click

from deploy.cli.options import (
    HTTP,
    Common,
    common_options,
    home_assistant_option,
    json_option,
    serve_options,
)
from deploy.cli.output import note, print_json, print_line
from deploy.cli.scheduling import scheduler_arguments, scheduler_options
from deploy.cluster import ChildEndedError, Cluster, Part
from deploy.cluster_shape import ClusterShape, make_cluster
from deploy.flags import ServeFlags
from deploy.photo import photo_to_type
from orchestrator.core.scheduler_settings import SchedulerSettings
from orchestrator.web.address import HttpAddress
from shared.errors import BrokerError
from shared.messages.model import ModelState
from shared.profile import DEFAULT_ZONE


@click.command("up")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=1883,
    show_default=True,
    help="The broker's port, on loopback only; 0 for any free one.",
)
@click.option(
    "--http",
    type=HTTP,
    help="Serve a page here that shows the cluster: 8080, on this machine only; 0 for any free port.  "
    "[default: no page]",
)
@click.option("--agents", type=click.IntRange(1, 64), help="How many agents.  [default: 3]")
@click.option(
    "--cpus",
    help="Each agent's CPU share, as in 0.5,0.3,0.2, enforced by cgroup.  "
    "[default: an equal part each]",
)
@click.option(
    "--zones", help="Each agent's trust zone, as in home,home,cloud.  [default: default for all]"
)
@click.option(
    "--zone",
    default=DEFAULT_ZONE,
    show_default=True,
    help="The trust zone of orchestrator and broker.",
)
@click.option(
    "--docker",
    is_flag=True,
    help="In containers, on a Docker engine: each agent with its limits, on a network of their own.",
)
@click.option(
    "--profile",
    metavar="NAME|FILE",
    help="With --docker: the agents of a profile, in place of --agents, --cpus and --zones: paper, standard, "
    "scale-down, scale-up, or a .toml file.",
)
@click.option(
    "--scale",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Give each agent of the profile so many times its CPUs.",
)
@click.option("--serve", "models", multiple=True, metavar="MODEL", help="Serve this; repeatable.")
@serve_options
@home_assistant_option
@scheduler_options
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep logs, caches and state here.  [default: a temporary one, removed at the end]",
)
@json_option
@common_options
def up_command(
    *,
    common: Common,
    port: int,
    http: HttpAddress | None,
    agents: int | None,
    cpus: str | None,
    zones: str | None,
    zone: str,
    docker: bool,
    profile: str | None,
    scale: float,
    models: tuple[str, ...],
    flags: ServeFlags,
    home_assistant: str | None,
    scheduling: SchedulerSettings,
    directory: Path | None,
    as_json: bool,
) -> int:
    """Run broker, orchestrator and agents on this machine until Ctrl-C.

    Prints a line that begins with `ready` when the first model is served (or, without --serve, when all
    agents are there). Flags of `amp4ec serve` apply to every --serve.

    \b
    Examples:
        amp4ec up --agents 3 --cpus 0.5,0.3,0.2 --serve mobilenet_v2 --weights none
        amp4ec up --http 8080
        amp4ec up --docker --profile paper --scale 0.5 --serve mobilenet_v2
    """  # noqa: D301
    if flags.name is not None and len(models) > 1:
        raise click.UsageError("--name names one model; there are several --serve.")
    for model in models:
        flags.source(model)  # wrong usage is said before anything is started
    shape = ClusterShape(
        docker=docker,
        profile=profile,
        scale=scale,
        agents=agents,
        cpus=cpus,
        zones=zones,
        runtime=flags.runtime,
    )
    asked = _Asked(tuple(models), flags, as_json=as_json)
    with tempfile.TemporaryDirectory(prefix="amp4ec-up-") as scratch:
        cluster = make_cluster(
            shape,
            directory or Path(scratch),
            port=port,
            root=common.root,
            log_level="debug" if common.log_level == "debug" else "info",
            orchestrator_arguments=[
                *scheduler_arguments(scheduling),
                f"--zone={zone}",
                f"--broker-zone={zone}",
                *([] if home_assistant is None else [f"--home-assistant={home_assistant}"]),
            ],
            http=http,
            on_step=note,
        )
        return asyncio.run(_up(cluster, asked))


@dataclass(frozen=True, slots=True)
class _Asked:
    models: tuple[str, ...]
    flags: ServeFlags
    as_json: bool


async def _up(cluster: Cluster, asked: _Asked) -> int:
    """Until a signal (0) or until broker or orchestrator end by themselves (1)."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    stopped = asyncio.create_task(told.wait(), name="up: told to stop")
    work = asyncio.create_task(_run(cluster, asked), name="up: cluster")
    try:
        await asyncio.wait({stopped, work}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
            return 1
        note("stopping")
        return 0
    finally:
        for task in (stopped, work):
            task.cancel()
        await asyncio.gather(stopped, work, return_exceptions=True)
        await cluster.stop()


async def _run(cluster: Cluster, asked: _Asked) -> None:
    """Start everything, serve, then watch; ends by an exception only."""
    try:
        await cluster.start()
    except BrokerError as error:
        if "in use" in error.message:
            raise BrokerError(f"{error.message}; choose another with --port, 0 for any") from error
        raise
    if cluster.cpu_refused:
        note(f"agents share all CPUs, no limits are set: {cluster.cpu_refused}")
    note(
        f"broker {cluster.broker.url}, open to everybody on this machine and to nobody else; "
        f"logs in {cluster.directory}"
    )
    for agent in cluster.agents.values():
        note(_introduce(agent))
    async with asyncio.TaskGroup() as group:
        for agent in cluster.agents.values():
            group.create_task(_report_end(agent), name=f"up: {agent.name}")
        group.create_task(_watch(cluster), name="up: watch")
        group.create_task(_serve(cluster, asked), name="up: serve")


async def _serve(cluster: Cluster, asked: _Asked) -> None:
    await cluster.wait_for_nodes()
    page = cluster.page  # the orchestrator has it before it is online
    if page is not None:
        note(f"the page is at {page}")
    states: list[ModelState] = []
    for model in asked.models:
        await cluster.serve(model, asked.flags, on_line=lambda line: note(f"  {line}"))
        name = asked.flags.source(model).name
        state = await cluster.wait_for_model(name)
        states.append(state)
        if not asked.as_json:
            if len(states) == 1:
                print_line(f"ready {cluster.broker.url} {_shape(state)}")
            else:
                note(f"serving {_shape(state)}")
    if asked.as_json:
        print_json(
            {
                "state": "ready",
                "broker": cluster.broker.url,
                "http": page,
                "root": cluster.root,
                "directory": str(cluster.directory),
                "agents": [{"node": a.name, "pid": a.pid} for a in cluster.agents.values()],
                "models": states,
            }
        )
        return
    if not states:
        print_line(f"ready {cluster.broker.url} {len(cluster.agents)} agents, no model yet")
    print_line(_next(cluster, states[0].model if states else None))


async def _watch(cluster: Cluster) -> NoReturn:
    """Raises ChildEndedError when the broker or the orchestrator ended by itself."""
    orchestrator = cluster.orchestrator
    assert orchestrator is not None
    ended = {
        asyncio.create_task(cluster.broker.wait(), name="up: broker ended"): "broker",
        asyncio.create_task(orchestrator.ended(), name="up: orchestrator ended"): "orchestrator",
    }
    try:
        done, _ = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in ended:
            task.cancel()
    task = done.pop()
    tail = f"; the end of its log:\n{orchestrator.log_tail()}"
    if ended[task] == "broker":
        tail = f"; its log is {cluster.broker.log_file}"
    raise ChildEndedError(f"the {ended[task]} ended with status {task.result()}{tail}")


async def _report_end(agent: Part) -> None:
    status = await agent.ended()
    how = f"signal {-status}" if status < 0 else f"status {status}"
    if why := agent.why():
        how += f" ({why})"
    note(
        f"{agent.name} (pid {agent.pid}) ended with {how}; it is left dead, to show what a loss does"
    )
    if status > 0:
        note(agent.log_tail(5))


def _introduce(agent: Part) -> str:
    limits = f", {agent.limits}" if agent.limits else ""
    return f"{agent.name}: pid {agent.pid}{limits}"


def _shape(state: ModelState) -> str:
    counts = [len(pipeline.stages) for pipeline in state.pipelines]
    if len(counts) == 1:
        return f"{state.model} in {counts[0]} {'stage' if counts[0] == 1 else 'stages'}"
    return f"{state.model} in {len(counts)} pipelines of {', '.join(map(str, counts))} stages"


def _next(cluster: Cluster, model: str | None) -> str:
    """What somebody may want to type now."""
    port, root = cluster.broker.port, cluster.root
    address = f"--broker {cluster.broker.url}" if port != 1883 else ""
    agent = next(iter(cluster.agents.values()))
    name, photo = model or "mobilenet_v2", photo_to_type()
    # As text: the mosquitto_rr of 2.0.11 (Debian 12) sends an empty message with -f and -s.
    message = f"-m \"$(base64 < {photo} | tr -d '\\n')\""
    lines = [
        "now, in another terminal:",
        f"  amp4ec infer {name} {photo} {address}",
        f"  mosquitto_rr -p {port} -t {root}/model/{name}/infer -e {root}/result/me {message}",
        f"  mosquitto_sub -v -p {port} -t '{root}/event' -t '{root}/model/+/state'",
        f"  amp4ec top {address}",
        f"  {cluster.kill_command.format(pid=agent.pid, name=agent.name)}    # see what a loss does",
        "Ctrl-C ends everything.",
    ]
    if model is None:
        lines.insert(1, f"  amp4ec serve {name} {address}")
    return "\n".join(line.rstrip() for line in lines)

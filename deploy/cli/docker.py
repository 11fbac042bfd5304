"""`amp4ec docker`: images, and what is done to the containers of a cluster while it runs."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploy.cli.options import ROOT, SIZE, json_option
from deploy.cli.output import note, print_json, print_line
from deploy.log_lines import lines_of, readable
from deploy.tables import Column, console, show, table
from deploy.text import size
from shared.errors import ConfigurationError
from shared.topics import DEFAULT_ROOT

if TYPE_CHECKING:
    from docker import DockerClient

    from deploy.containers.control import NodeContainer
    from deploy.containers.usage import Agreement

F = TypeVar("F", bound=Callable[..., Any])


def _cluster_option(function: F) -> F:
    return click.option("--cluster", help="Which cluster, where there are several.")(function)


def _on_node(name: str, example: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command on one node; the function gets the engine, the node's container, and further options."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(*, node: str, cluster: str | None, **options: Any) -> None:
            from deploy.containers.control import find
            from deploy.containers.engine import connect

            client = connect()
            try:
                function(client, find(client, node, cluster), **options)
            finally:
                client.close()

        run.__doc__ = f"{function.__doc__}\n\n    \b\n    Example:\n        {example}\n    "
        return docker_command.command(name)(click.argument("node")(_cluster_option(run)))

    return decorate


@click.group("docker")
def docker_command() -> None:
    """Images, and what is done to the containers of a cluster: of `amp4ec up --docker` or of docker compose.

    \b
    Examples:
        amp4ec up --docker --profile paper --serve mobilenet_v2
        amp4ec docker kill medium
    """  # noqa: D301


@docker_command.command("build")
@click.option(
    "--agent",
    "kinds",
    type=click.Choice(["onnxruntime", "torch", "both"]),
    multiple=True,
    default=["onnxruntime"],
    show_default=True,
    help="What agents can run stages with; repeatable.",
)
@click.option("--base", help="Build upon this image with Python 3.11 or later.")
@click.option("--broker-base", help="Build the broker's upon this image with Mosquitto.")
@json_option
def build_command(
    *, kinds: tuple[str, ...], base: str | None, broker_base: str | None, as_json: bool
) -> None:
    """Build the images of broker, orchestrator and agents from what is here now, where need be.

    Wheels are collected on this machine. Without --base they are built upon what deploy/images/base.sh makes,
    where it is there, else upon python:3.11-slim-bookworm and eclipse-mosquitto:2.

    \b
    Example:
        amp4ec docker build --agent onnxruntime --agent torch
    """  # noqa: D301
    from deploy.containers.engine import connect
    from deploy.containers.images import AgentKind, Image, ensure_images

    client = connect()
    made: dict[str, Image] = {}
    try:
        for kind in kinds:
            images = ensure_images(
                client, AgentKind(kind), base=base, broker_base=broker_base, on_step=note
            )
            made |= {i.name: i for i in (images.broker, images.orchestrator, images.agent)}
    finally:
        client.close()
    if as_json:
        print_json([*made.values()])
        return
    columns = [
        Column("image"),
        Column("size", right=True),
        Column("on top of its base", right=True),
    ]
    rows = [(name, size(i.size_bytes), size(i.own_bytes)) for name, i in made.items()]
    _print(columns, rows)


@docker_command.command("ps")
@_cluster_option
@json_option
def ps_command(*, cluster: str | None, as_json: bool) -> None:
    """List every cluster's containers.

    \b
    Example:
        amp4ec docker ps
    """  # noqa: D301
    from deploy.containers.control import nodes, why_ended
    from deploy.containers.engine import connect

    client = connect()
    try:
        found = nodes(client, cluster)
    finally:
        client.close()
    if as_json:
        print_json(
            [
                {
                    "cluster": each.cluster,
                    "node": each.node,
                    "state": each.state,
                    "health": each.health,
                    "cpus": each.limits.cpus,
                    "memory_bytes": each.limits.memory_bytes,
                    "pid": each.pid,
                    "reason": why_ended(each),
                }
                for each in found
            ]
        )
        return
    if not found:
        print_line("no containers of ours; start some with `amp4ec up --docker`")
        return
    columns = [Column(t) for t in ("cluster", "node", "state", "health", "limits", "why")]
    rows = [(e.cluster, e.node, e.state, e.health, str(e.limits), why_ended(e)) for e in found]
    _print(columns, rows)


@docker_command.command("down")
@click.option("--all", "everything", is_flag=True, help="Also clusters whose commands still run.")
@click.option("--images", is_flag=True, help="Also the images that were built.")
@_cluster_option
def down_command(*, everything: bool, images: bool, cluster: str | None) -> None:
    """Remove the containers, networks and volumes that killed commands left.

    \b
    Example:
        amp4ec docker down --all
    """  # noqa: D301
    from deploy.containers.engine import clusters, connect, remove_cluster
    from deploy.containers.images import remove_images

    client = connect()
    try:
        found = clusters(client)
        if cluster is not None and cluster not in found:
            raise ConfigurationError(
                f"there is no cluster {cluster}", expected=" or ".join(found) or "one", got=cluster
            )
        removed = 0
        for each, owned in found.items():
            if each == cluster or (cluster is None and (everything or not owned)):
                note(f"removing cluster {each}")
                removed += remove_cluster(client, each)
            elif cluster is None:
                note(f"cluster {each} is still in use; --all removes it as well")
        print_line(f"removed {removed} containers, networks and volumes")
        if images:
            print_line(f"removed {remove_images(client)} images")
    finally:
        client.close()


@_on_node("kill", "amp4ec docker kill medium")
def kill_command(_: DockerClient, node: NodeContainer) -> None:
    """SIGKILL to a node, as when its plug is pulled."""
    from deploy.containers.engine import asking

    with asking(f"{node.node} cannot be killed"):
        node.container.kill()


@_on_node("stop", "amp4ec docker stop medium")
def stop_command(_: DockerClient, node: NodeContainer) -> None:
    """SIGTERM to a node: it says goodbye."""
    from deploy.containers.engine import asking

    with asking(f"{node.node} cannot be stopped"):
        node.container.stop(timeout=15)


@_on_node("start", "amp4ec docker start medium")
def start_command(_: DockerClient, node: NodeContainer) -> None:
    """Start a node again that was killed or stopped; it has its cache."""
    from deploy.containers.engine import asking

    with asking(f"{node.node} cannot be started"):
        node.container.start()


@_on_node("pause", "amp4ec docker pause medium")
def pause_command(_: DockerClient, node: NodeContainer) -> None:
    """Let a node stand still: its connections stay, and nothing answers."""
    from deploy.containers.engine import asking

    with asking(f"{node.node} cannot be paused"):
        node.container.pause()


@_on_node("unpause", "amp4ec docker unpause medium")
def unpause_command(_: DockerClient, node: NodeContainer) -> None:
    """Let a paused node go on."""
    from deploy.containers.engine import asking

    with asking(f"{node.node} cannot go on"):
        node.container.unpause()


@_on_node("limit", "amp4ec docker limit medium --cpus 0.2 --memory 256MiB")
@click.option("--cpus", type=click.FloatRange(min=0.01), help="So many CPUs from now on.")
@click.option("--memory", type=SIZE, help="So much memory from now on.")
def limit_command(
    _: DockerClient, node: NodeContainer, *, cpus: float | None, memory: int | None
) -> None:
    """Give a node other limits while it runs."""
    from deploy.containers.container import Limits
    from deploy.containers.control import limit

    if cpus is None and memory is None:
        raise click.UsageError("Say --cpus, --memory or both.")
    limit(node, Limits(cpus, memory))


@_on_node("cut", "amp4ec docker cut medium")
def cut_command(_: DockerClient, node: NodeContainer) -> None:
    """Let every packet from and to a node vanish. Needs root on the engine's machine."""
    from deploy.containers.links import container_link

    container_link(node.pid).cut()


@_on_node("heal", "amp4ec docker heal medium")
def heal_command(_: DockerClient, node: NodeContainer) -> None:
    """Undo `cut`."""
    from deploy.containers.links import container_link

    container_link(node.pid).heal()


@_on_node("rate", "amp4ec docker rate medium 10Mbit")
@click.argument("rate")
def rate_command(_: DockerClient, node: NodeContainer, *, rate: str) -> None:
    """Let RATE through a node's link at most, each way: 10Mbit, 1.25M bytes/s, or `off`. Needs root."""
    from deploy.containers.control import rate_bytes_per_s
    from deploy.containers.links import container_link

    link = container_link(node.pid)
    if rate == "off":
        link.unrate()
    else:
        link.rate(rate_bytes_per_s(rate))


@_on_node("logs", "amp4ec docker logs medium --follow")
@click.option("--follow", "-f", is_flag=True, help="Go on until it ends.")
@click.option("--tail", type=click.IntRange(min=0), default=100, show_default=True, help="Lines.")
def logs_command(_: DockerClient, node: NodeContainer, *, follow: bool, tail: int) -> None:
    """Print what a node wrote, as people read it; its own JSON lines are what `docker logs` prints."""
    from deploy.containers.engine import asking

    with asking(f"{node.node} has no log"):
        for line in lines_of(node.container.logs(stream=True, follow=follow, tail=tail)):
            print_line(readable(line))


@docker_command.command("usage")
@click.option(
    "--seconds",
    type=click.FloatRange(min=3),
    default=30.0,
    show_default=True,
    help="How long to look.",
)
@click.option(
    "--record",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep every sample here, a line of JSON each.",
)
@click.option("--root", type=ROOT, default=DEFAULT_ROOT, show_default=True, help="The root topic.")
@_cluster_option
@json_option
def usage_command(
    *, seconds: float, file: Path | None, root: str, cluster: str | None, as_json: bool
) -> int:
    """Compare what the engine counts of each agent with what the agent says: CPU, memory, network.

    Exits with 1 where they differ by more than 10 % and by more than can be told.

    \b
    Example:
        amp4ec docker usage --seconds 60 --record usage.jsonl
    """  # noqa: D301
    from deploy.containers.control import agents, broker_url, nodes
    from deploy.containers.engine import connect
    from deploy.containers.usage import Sample, compare, record
    from shared.bus import BrokerUrl
    from shared.codec import encode_json

    client = connect()
    samples: list[Sample] = []
    try:
        url = BrokerUrl.parse(broker_url(client, cluster))
        running = [each for each in agents(nodes(client, cluster)) if each.state == "running"]
        asyncio.run(record(running, url, root, seconds, samples.append))
    finally:
        client.close()
    if file is not None:
        file.write_bytes(b"".join(encode_json(sample) + b"\n" for sample in samples))
        note(f"{len(samples)} samples in {file}")
    found = compare(samples)
    if as_json:
        print_json(
            [
                {"agrees": each.agrees, "difference_ratio": each.difference_ratio, **_plain(each)}
                for each in found
            ]
        )
    else:
        _print_agreement(found)
    return 0 if found and all(each.agrees for each in found) else 1


def _plain(each: Agreement) -> dict[str, object]:
    return {
        "node": each.node,
        "figure": each.figure,
        "unit": each.unit,
        "agent": each.agent,
        "engine": each.engine,
    }


def _print_agreement(found: list[Agreement]) -> None:
    if not found:
        note("no agent was seen from both sides; is the cluster up?")
        return
    columns = [
        Column("node"),
        Column("figure"),
        Column("agent says", right=True),
        Column("engine counts", right=True),
        Column("difference", right=True),
        Column("agrees"),
    ]
    rows = [
        (
            each.node,
            each.figure,
            _amount(each.agent, each.unit),
            _amount(each.engine, each.unit),
            f"{each.difference_ratio:+.1%}" if math.isfinite(each.difference_ratio) else "",
            "yes" if each.agrees else "NO",
        )
        for each in found
    ]
    _print(columns, rows)


def _amount(value: float, unit: str) -> str:
    if unit == "CPU":
        return f"{value:.3f} CPU"
    return size(value) + unit.removeprefix("B")


def _print(columns: list[Column], rows: Sequence[tuple[str, ...]]) -> None:
    out = console()
    show(out, table(columns, rows, out.width))

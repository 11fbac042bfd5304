"""Finding nodes' containers and doing things to them, from a command beside the one that started them.

Whoever made them: `amp4ec up --docker` or `docker compose`; what counts is their labels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from docker import DockerClient
from docker.models.containers import Container as DockerContainer

from deploy.cgroup import PERIOD_US
from deploy.containers.container import Limits
from deploy.containers.engine import CLUSTER, NODE, asking
from deploy.settings import size_bytes
from shared.errors import ConfigurationError

BROKER: Final = "broker"
_RATE: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMG])?bit(?:/s)?", re.IGNORECASE)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3}


@dataclass(frozen=True, slots=True)
class NodeContainer:
    """A container as the engine knows it. `health` is empty where it does not run or has no check."""

    cluster: str
    node: str
    state: str
    health: str
    limits: Limits
    pid: int
    exit_code: int
    out_of_memory: bool
    container: DockerContainer


def nodes(client: DockerClient, cluster: str | None = None) -> list[NodeContainer]:
    """Every container of ours, running or not, of every cluster or of one.

    Raises:
        EngineError: the engine does not say.
    """
    with asking("containers cannot be listed"):
        found = client.containers.list(all=True, filters={"label": NODE}, ignore_removed=True)
    seen = [_seen(container) for container in found]
    return sorted(
        (node for node in seen if cluster in (None, node.cluster)),
        key=lambda node: (node.cluster, node.node),
    )


def find(client: DockerClient, node: str, cluster: str | None = None) -> NodeContainer:
    """A node's container.

    Raises:
        ConfigurationError: there is none of that name, or there are several.
        EngineError: the engine does not say.
    """
    everything = nodes(client, cluster)
    found = [each for each in everything if each.node == node]
    if len(found) == 1:
        return found[0]
    if found:
        clusters = ", ".join(each.cluster for each in found)
        raise ConfigurationError(
            f"there are {len(found)} containers for {node}",
            expected=f"--cluster with one of {clusters}",
            got=node,
        )
    raise ConfigurationError(
        f"there is no container for {node}",
        expected=" or ".join(each.node for each in everything) or "a cluster: `amp4ec up --docker`",
        got=node,
    )


def broker_url(client: DockerClient, cluster: str | None = None) -> str:
    """How a cluster's broker is reached from this machine.

    Raises:
        ConfigurationError: there is none, there are several, or its port is not published.
        EngineError: the engine does not say.
    """
    broker = find(client, BROKER, cluster)
    ports = broker.container.attrs["NetworkSettings"]["Ports"].get("1883/tcp")
    if not ports:
        raise ConfigurationError(
            "the broker's port is not published", expected="a broker that runs", got=broker.state
        )
    return f"mqtt://127.0.0.1:{ports[0]['HostPort']}"


def limit(node: NodeContainer, limits: Limits) -> None:
    """Give a container these limits; None leaves one as it is.

    Raises:
        EngineError: the engine or the kernel does not take them.
    """
    with asking(f"{node.node} cannot be limited to {limits}"):
        node.container.update(**limits.options())


def rate_bytes_per_s(text: str) -> float:
    """Bytes per second of `10Mbit`, `1.25M`, `500K` (bits only where it says bit; K, M, G are 1000s).

    Raises:
        ConfigurationError: none of these.
    """
    match = _RATE.fullmatch(text.strip())
    if match:
        rate = float(match[1]) * 1000.0 ** _POWERS[(match[2] or "").lower()] / 8
        if 0 < rate < math.inf:
            return rate
    try:
        return float(size_bytes(text.strip().removesuffix("/s")))
    except ConfigurationError:
        raise ConfigurationError(
            "not a rate", expected="bits as in 10Mbit, or bytes per second as in 1.25M", got=text
        ) from None


def _seen(container: DockerContainer) -> NodeContainer:
    state: dict[str, Any] = container.attrs["State"]
    host: dict[str, Any] = container.attrs["HostConfig"]
    carried: dict[str, str] = container.labels
    running = bool(state["Running"])
    return NodeContainer(
        cluster=carried.get(CLUSTER, ""),
        node=carried[NODE],
        state=str(state["Status"]),
        health=str((state.get("Health") or {}).get("Status", "")) if running else "",
        limits=Limits(_cpus(host), host.get("Memory") or None),
        pid=int(state["Pid"]),
        exit_code=int(state["ExitCode"]),
        out_of_memory=bool(state["OOMKilled"]),
        container=container,
    )


def _cpus(host: dict[str, Any]) -> float | None:
    """The engine keeps one of two: a number of CPUs, as compose says it, or quota and period."""
    if host.get("NanoCpus"):
        return float(host["NanoCpus"]) / 1e9
    if host.get("CpuQuota"):
        return float(host["CpuQuota"]) / float(host.get("CpuPeriod") or PERIOD_US)
    return None


def why_ended(node: NodeContainer) -> str:
    """Why a container does not run, for people; empty where it does."""
    if node.state in ("running", "paused", "restarting"):
        return ""
    if node.out_of_memory:
        return f"out of memory: its limit is {(node.limits.memory_bytes or 0) / 2**20:g} MiB"
    # The engine says 128 and the signal's number, as shells do.
    code = node.exit_code
    return f"signal {code - 128}" if code > 128 else f"exit status {code}"


def agents(found: Sequence[NodeContainer]) -> list[NodeContainer]:
    """Those that are no broker and no orchestrator."""
    return [each for each in found if each.node not in (BROKER, "orchestrator")]

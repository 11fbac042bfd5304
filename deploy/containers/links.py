"""The network of a cluster in containers: nodes cut off and slowed by name, from the engine's machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from deploy.link import Link, network_missing, run_tool
from shared.errors import ConfigurationError


def container_link(pid: int) -> Link:
    """The cable of the container whose first process has this id, from its `eth0` to its network's bridge.

    Raises:
        ConfigurationError: this process may not look, the engine is on another machine, or it has ended.
    """
    reason = network_missing()
    namespace = Path("/proc", str(pid), "ns", "net")
    if not reason and not namespace.exists():
        reason = f"process {pid} is not here: the container ended, or the engine is elsewhere"
    if reason:
        raise ConfigurationError(
            "a container's link cannot be reached",
            expected="root and iproute2 on the engine's machine",
            got=reason,
        )
    inside = ["nsenter", f"--net={namespace}", "--", "ip", "-json", "link", "show", "eth0"]
    index = json.loads(run_tool(inside))[0]["link_index"]
    for link in json.loads(run_tool(["ip", "-json", "link", "show"])):
        if link["ifindex"] == index:
            return Link(str(link["ifname"]), namespace)
    raise ConfigurationError(
        "a container's link cannot be reached",
        expected=f"an interface with number {index} on this machine",
        got="none: the engine is elsewhere",
    )


class ContainerLinks:
    """Cuts and slows nodes by name; `pid_of` says which process of which container."""

    def __init__(self, pid_of: Callable[[str], int]) -> None:
        self._pid_of = pid_of

    def cut(self, node: str) -> None:
        """Let every packet from and to `node` vanish; connections stay as they are, and hear nothing."""
        container_link(self._pid_of(node)).cut()

    def heal(self, node: str) -> None:
        """Undo `cut`."""
        container_link(self._pid_of(node)).heal()

    def rate(self, node: str, bytes_per_s: float) -> None:
        """Let through `bytes_per_s` at most, in each direction."""
        container_link(self._pid_of(node)).rate(bytes_per_s)

    def unrate(self, node: str) -> None:
        """Undo `rate`."""
        container_link(self._pid_of(node)).unrate()

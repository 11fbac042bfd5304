"""Nodes with a network of their own on one machine: each in a network namespace, on a bridge with a broker.

What a container or a second machine would give a test without being either: a node's connection may be cut
(packets vanish, nobody is told, as when somebody pulls a cable behind a switch) or made slow, and the
processes on both sides see what they would see in the field::

    with Network() as network:
        line = [*network.entry("agent-1"), "amp4ec", "agent", "--broker", f"mqtt://{network.host}"]
        network.cut("agent-1")
        network.heal("agent-1")
        network.rate("agent-1", 125_000)

Needs Linux, root, `ip`, `bridge` and `tc` (iproute2) and `nsenter` (util-linux). No packet filter: a bridge's
port that is switched off drops what comes from either side. Addresses are taken from 198.18.0.0/15, which is
set aside for tests of this kind (RFC 2544, appendix C.2.2).
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import itertools
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from deploy.link import Link, network_missing, run_tool
from shared.errors import ConfigurationError

_PREFIX: Final = "a4"
"""Interfaces' names have 15 characters; the rest are process id and number."""
_RANGE: Final = ipaddress.ip_network("198.18.0.0/15")
_LOCK: Final = Path("/run/amp4ec-network.lock")
_MAX_NODES: Final = 253
_STOP_S: Final = 20.0
_NAMESPACES: Final = Path("/run/netns")

# Deletes what it was told of once its input ends: with our `close`, or with us.
_JANITOR: Final = """
links= spaces=
while read -r kind name; do
    case $kind in
        link) links="$links $name" ;;
        namespace) spaces="$spaces $name" ;;
    esac
done
for name in $links; do ip link delete "$name"; done
for name in $spaces; do ip netns delete "$name"; done
"""

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class _Node:
    number: int
    namespace: str
    link: Link


class Network:
    """A bridge on this machine, and nodes on it. Use with `with`; everything goes away, whatever happens.

    A helper process waits for the end of this one and then removes what is left, so not even SIGKILL leaves
    anything behind. The methods block for some milliseconds and may be called from any thread.
    """

    def __init__(self) -> None:
        """Make the bridge.

        Raises:
            ConfigurationError: this process may not, or a tool is missing; the message says which.
        """
        reason = network_missing()
        if reason:
            raise ConfigurationError(
                "a network of one's own cannot be made", expected="root and iproute2", got=reason
            )
        self._nodes: dict[str, _Node] = {}
        self._lock = threading.Lock()
        self._bridge = _name("b")
        self._janitor = subprocess.Popen(
            ["/bin/sh", "-c", _JANITOR],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # what ends us by signal shall not end it
        )
        try:
            with _one_at_a_time():
                self._net = _free_net()
                self._will_need("link", self._bridge)
                _ip(
                    f"link add {self._bridge} address {_mac(self.host)} type bridge stp_state 0",
                    f"address add {self.host}/{self._net.prefixlen} dev {self._bridge}",
                    f"link set {self._bridge} up",
                )
        except BaseException:
            self.close()
            raise

    @property
    def host(self) -> str:
        """The address at which nodes reach a server of this machine that listens there."""
        return str(self._net[1])

    def entry(self, node: str) -> list[str]:
        """What a command line begins with to run in the node's namespace; the node is made if need be.

        It becomes the program that is named after it, under the same process id.

        Raises:
            ConfigurationError: the kernel refuses; the message says why.
        """
        return self._add(node).link.entry()

    def cut(self, node: str) -> None:
        """Let every packet from and to `node` vanish; connections stay as they are, and hear nothing.

        Raises:
            ConfigurationError: there is no such node.
        """
        self._of(node).link.cut()

    def heal(self, node: str) -> None:
        """Undo `cut`.

        Raises:
            ConfigurationError: there is no such node.
        """
        self._of(node).link.heal()

    def rate(self, node: str, bytes_per_s: float) -> None:
        """Let through `bytes_per_s` at most, in each direction.

        Raises:
            ConfigurationError: there is no such node, or the rate is below 1,000 bytes/s.
        """
        self._of(node).link.rate(bytes_per_s)

    def unrate(self, node: str) -> None:
        """Undo `rate`; nothing where there is none.

        Raises:
            ConfigurationError: there is no such node.
        """
        self._of(node).link.unrate()

    def remove(self, node: str) -> None:
        """Take a node away that nothing runs on any more; its name and its address may be used again.

        Raises:
            ConfigurationError: there is no such node.
        """
        with self._lock:
            found = self._of(node)
            _ip(f"link delete {found.link.port}", f"netns delete {found.namespace}")
            del self._nodes[node]

    def close(self) -> None:
        """Take bridge, cables and namespaces away; processes that still run inside reach nobody."""
        assert self._janitor.stdin is not None
        self._janitor.stdin.close()
        self._janitor.wait(_STOP_S)

    def __enter__(self) -> Self:
        """Itself; it was made by the constructor."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take it away."""
        self.close()

    def _of(self, node: str) -> _Node:
        try:
            return self._nodes[node]
        except KeyError:
            raise ConfigurationError(
                f"the network has no node {node}", expected=" or ".join(self._nodes) or "a node"
            ) from None

    def _add(self, node: str) -> _Node:
        with self._lock:
            found = self._nodes.get(node)
            if found is not None:
                return found
            if len(self._nodes) >= _MAX_NODES:
                raise ConfigurationError(
                    "the network is full", expected=f"at most {_MAX_NODES} nodes", got=node
                )
            taken = {made.number for made in self._nodes.values()}
            number = next(free for free in itertools.count() if free not in taken)
            address = str(self._net[2 + number])
            space, port = _name("n"), _name("v")
            made = _Node(number=number, namespace=space, link=Link(port, _NAMESPACES / space))
            self._will_need("namespace", space)
            self._will_need("link", port)
            _ip(
                f"netns add {space}",
                f"link add {port} type veth peer name eth0 address {_mac(address)} netns {space}",
                f"link set {port} master {self._bridge} up",
                # Who is where is known: a cut shall not be noticed by an address that stopped answering.
                f"neighbour replace {address} lladdr {_mac(address)} dev {self._bridge} nud permanent",
            )
            _ip(
                "link set lo up",
                f"address add {address}/{self._net.prefixlen} dev eth0",
                "link set eth0 up",
                f"neighbour replace {self.host} lladdr {_mac(self.host)} dev eth0 nud permanent",
                namespace=space,
            )
            self._nodes[node] = made
            return made

    def _will_need(self, kind: str, name: str) -> None:
        """Tell the janitor before it is made: then there is no moment at which a crash would leave it."""
        janitor: IO[str] | None = self._janitor.stdin
        assert janitor is not None
        janitor.write(f"{kind} {name}\n")
        janitor.flush()


def _name(kind: str) -> str:
    return f"{_PREFIX}{kind}{os.getpid()}-{next(_numbers)}"


def _mac(address: str) -> str:
    """A locally administered one, from the address."""
    return "02:a4:" + ":".join(f"{byte:02x}" for byte in ipaddress.ip_address(address).packed)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two processes that look for free addresses at once would find the same ones."""
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _free_net() -> ipaddress.IPv4Network:
    used = [
        ipaddress.ip_network(f"{info['local']}/{info['prefixlen']}", strict=False)
        for link in json.loads(run_tool(["ip", "-json", "-4", "address", "show"]))
        for info in link["addr_info"]
    ]
    for net in _RANGE.subnets(new_prefix=24):
        if isinstance(net, ipaddress.IPv4Network) and not any(map(net.overlaps, used)):
            return net
    raise ConfigurationError("no addresses are left for a network", expected=f"some of {_RANGE}")


def _ip(*lines: str, namespace: str | None = None) -> None:
    where = [] if namespace is None else ["-netns", namespace]
    run_tool(["ip", *where, "-batch", "-"], "\n".join(lines))

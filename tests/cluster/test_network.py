"""Networks of their own for nodes: cut, healed, slowed, and gone afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from deploy.flags import ServeFlags
from deploy.link import network_missing
from deploy.local import LocalCluster
from deploy.network import Network
from shared.errors import ConfigurationError
from tests.cluster.conftest import JPEG, MODEL, until

pytestmark = pytest.mark.skipif(bool(network_missing()), reason=network_missing())

SENDER = """
import socket, sys
with socket.create_connection(("{host}", {port})) as sock:
    print("connected", flush=True)
    for line in sys.stdin.buffer:
        sock.sendall(line)
"""


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


class Sender:
    """A process on a node that sends on, over one TCP connection, what it is told."""

    def __init__(self, network: Network, node: str) -> None:
        with socket.create_server((network.host, 0)) as server:
            server.settimeout(20)
            port = server.getsockname()[1]
            self.process = subprocess.Popen(
                [
                    *network.entry(node),
                    sys.executable,
                    "-c",
                    SENDER.format(host=network.host, port=port),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self.connection, (self.address, _) = server.accept()

    def send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def receive(self, size: int, timeout_s: float) -> bytes:
        self.connection.settimeout(timeout_s)
        got = b""
        while len(got) < size:
            data = self.connection.recv(size - len(got))
            assert data, "the connection was closed"
            got += data
        return got

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.connection.close()


def interfaces() -> set[str]:
    return {entry.name for entry in Path("/sys/class/net").iterdir()}


def namespaces() -> set[str]:
    folder = Path("/run/netns")
    return {entry.name for entry in folder.iterdir()} if folder.exists() else set()


def test_cut_swallows_and_heal_delivers(network: Network) -> None:
    with Sender(network, "far") as far, Sender(network, "near") as near:
        assert far.address != near.address
        far.send(b"one\n")
        assert far.receive(4, 20) == b"one\n"
        network.cut("far")
        far.send(b"two\n")
        with pytest.raises(TimeoutError):
            far.receive(1, 0.3)
        near.send(b"hears\n")
        assert near.receive(6, 20) == b"hears\n", "the neighbour is not cut"
        network.heal("far")
        assert far.receive(4, 20) == b"two\n", "nothing was reset, and TCP sends again"


def test_rate_holds_packets_back(network: Network) -> None:
    with Sender(network, "slow") as slow:
        network.rate("slow", 200_000)
        line = b"x" * 99_999 + b"\n"
        slow.send(line)
        assert slow.receive(len(line), 30) == line
        held = subprocess.run(
            [*network.entry("slow"), "tc", "-s", "-json", "qdisc", "show", "dev", "eth0"],
            capture_output=True,
            check=True,
        ).stdout
        (shaped,) = json.loads(held)
        assert shaped["kind"] == "tbf"
        assert shaped["overlimits"] > 0
        network.unrate("slow")
        network.unrate("slow")
        slow.send(line)
        assert slow.receive(len(line), 30) == line


@pytest.mark.parametrize("verb", ["cut", "heal", "unrate"])
def test_unknown_nodes_are_named(network: Network, verb: str) -> None:
    network.entry("known")
    with pytest.raises(ConfigurationError, match=r"no node stranger.*known"):
        getattr(network, verb)("stranger")


def test_a_rate_of_nothing_is_refused(network: Network) -> None:
    network.entry("node")
    with pytest.raises(ConfigurationError, match="too low"):
        network.rate("node", 0)


def test_a_removed_node_leaves_its_place_to_another(network: Network) -> None:
    for name in ("stays", "goes"):
        network.entry(name)
    with Sender(network, "goes") as sender:
        address = sender.address
    before = interfaces(), namespaces()
    network.remove("goes")
    with pytest.raises(ConfigurationError, match="no node goes"):
        network.cut("goes")
    with Sender(network, "new") as sender, Sender(network, "stays") as other:
        assert sender.address == address != other.address
        sender.send(b"hello\n")
        assert sender.receive(6, 20) == b"hello\n"
    assert len(interfaces() - before[0]) == len(namespaces() - before[1]) == 1


def test_nothing_is_left() -> None:
    before = interfaces(), namespaces()
    with Network() as first, Network() as second:
        first.entry("node")
        second.entry("node")
        assert first.host != second.host
        assert len(interfaces() - before[0]) == 4
        assert len(namespaces() - before[1]) == 2
    # Other processes' networks come and go beside ours.
    assert not {name for name in interfaces() - before[0] if str(os.getpid()) in name}
    assert not {name for name in namespaces() - before[1] if str(os.getpid()) in name}


def test_nothing_is_left_by_a_crash() -> None:
    program = (
        "import os, signal\n"
        "from deploy.network import Network\n"
        "network = Network()\n"
        "network.entry('node')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        assert process.wait(30) == -signal.SIGKILL
    owner = f"{process.pid}-"
    until(lambda: not any(owner in name for name in interfaces() | namespaces()))


@pytest.mark.timeout(180)
async def test_a_cut_agent_is_lost_and_comes_back(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, agents=2, isolated=True) as cluster:
        await cluster.wait_for_nodes()
        await cluster.serve(
            MODEL, ServeFlags(weights="none", min_stages=2, max_stages=2, timeout_s=110)
        )
        cluster.network.cut("agent-2")
        async with cluster.client() as client:
            result = await client.infer(MODEL, JPEG, timeout_s=90)
            assert set(result.nodes) == {"agent-1"}
            await cluster.wait_for(
                "agent-2 to be lost",
                lambda status: [n.state.node for n in status.online] == ["agent-1"],
            )
            cluster.network.heal("agent-2")
            await cluster.wait_for_nodes(2)
            await client.infer(MODEL, JPEG, timeout_s=90)

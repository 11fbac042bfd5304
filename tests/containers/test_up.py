"""`amp4ec up --docker`, its leftovers, the images, and docker compose, as people meet them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import DockerClient

from deploy.containers.images import Images
from tests.cluster.conftest import until
from tests.cluster.test_up import Up, running
from tests.containers.conftest import MODEL, amp4ec, left, listed

pytestmark = pytest.mark.timeout(500)
TOP = Path(__file__).parents[2]
PROFILE = '[[node]]\nname = "solo"\ncpus = 0.5\nmemory = "512MiB"\n'


@pytest.fixture
def profile(tmp_path: Path) -> str:
    path = tmp_path / "solo.toml"
    path.write_text(PROFILE)
    return str(path)


def cluster_of(up: Up) -> str:
    """The id of what `up` started: its containers' owner is that process."""
    import docker

    client = docker.from_env()
    try:
        for container in client.containers.list(all=True, filters={"label": "amp4ec.owner"}):
            if container.labels["amp4ec.owner"].startswith(f"{up.process.pid}@"):
                return str(container.labels["amp4ec.cluster"])
    finally:
        client.close()
    raise AssertionError("\n".join((*up.out, *up.err)))


def test_from_start_to_end(engine: DockerClient, profile: str, images: Images) -> None:
    serve = ["--serve", MODEL, "--weights", "none"]
    with running("--docker", "--port", "0", "--http", "0", "--profile", profile, *serve) as up:
        page = up.line("the page is at ").rpartition(" ")[2]
        ready = up.line("ready ")
        assert ready == f"ready {ready.split()[1]} {MODEL} in 1 stage"
        assert any(line.endswith("0.5 CPU, 512 MiB") for line in up.err)
        cluster = cluster_of(up)
        nodes = listed(cluster)
        assert sorted(nodes) == ["broker", "orchestrator", "solo"]
        assert {each["state"] for each in nodes.values()} == {"running"}
        with urllib.request.urlopen(page, timeout=10) as answer:
            assert b"<title>AMP4EC" in answer.read()
        assert amp4ec("docker", "kill", "solo", "--cluster", cluster).returncode == 0
        up.line(f"solo (pid {nodes['solo']['pid']}) ended with signal 9")
        assert up.end(signal.SIGTERM) == 0
    assert left(engine, cluster) == []


def test_what_a_killed_command_leaves_is_removed_by_the_next(
    engine: DockerClient, profile: str, images: Images
) -> None:
    with running("--docker", "--port", "0", "--profile", profile) as up:
        up.line("ready ")
        cluster = cluster_of(up)
        other = amp4ec("docker", "down")
        assert f"cluster {cluster} is still in use" in other.stderr
        up.end(signal.SIGKILL)
    assert len(left(engine, cluster)) == 7  # three containers and volumes, and a network
    assert amp4ec("docker", "down").returncode == 0
    assert left(engine, cluster) == []


def test_a_port_that_is_taken(profile: str, images: Images) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = str(sock.getsockname()[1])
        result = amp4ec("up", "--docker", "--port", port, "--profile", profile)
    assert result.returncode == 1
    assert "--port" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_engine_that_is_not_there(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    for arguments in (["up", "--docker", "--profile", profile], ["docker", "ps"]):
        result = amp4ec(*arguments)
        assert result.returncode == 2
        assert "no Docker engine answers" in result.stderr
        assert "Traceback" not in result.stderr


def test_images_are_small_and_run_without_rights(engine: DockerClient, images: Images) -> None:
    assert images.agent.own_bytes <= 200_000_000
    for image in (images.broker, images.orchestrator, images.agent):
        assert engine.images.get(image.name).attrs["Config"]["User"] == "10001:10001"
    said: bytes = engine.containers.run(
        images.agent.name,
        ["-c", "command -v gcc pip; ls /wheels; id -u"],
        entrypoint="/bin/sh",
        remove=True,
        stderr=False,
    )
    assert said.split() == [b"10001"]


@pytest.fixture
def composed(images: Images) -> Iterator[str]:
    """The compose file's services; the broker's address."""
    compose = shutil.which("docker-compose")
    assert compose is not None, "install docker-compose"
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
    file = str(TOP / "deploy" / "docker-compose.yaml")
    line = [compose, "--file", file, "--project-name", f"amp4ec-test-{os.getpid()}"]
    environment = {**os.environ, "AMP4EC_PORT": port}
    try:
        subprocess.run([*line, "up", "--detach"], env=environment, check=True, timeout=120)
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        down = ["down", "--volumes", "--timeout", "5"]
        subprocess.run([*line, *down], env=environment, check=True, timeout=120)


def test_compose_starts_the_same(engine: DockerClient, composed: str) -> None:
    """Nodes, limits and commands are those of `up --docker --profile paper`."""
    wanted = {"high": (1.0, 2**30), "medium": (0.6, 2**29), "low": (0.4, 2**29)}

    def online() -> bool:
        said = amp4ec("status", "--broker", composed).stdout
        return all(f"{name} " in said and "online" in said for name in wanted)

    until(online, 60)
    nodes = listed("compose")
    assert {name: (nodes[name]["cpus"], nodes[name]["memory_bytes"]) for name in wanted} == wanted
    assert amp4ec("docker", "limit", "low", "--cpus", "0.3").returncode == 0
    assert listed("compose")["low"]["cpus"] == 0.3
    serve = amp4ec("serve", MODEL, "--weights", "none", "--broker", composed)
    assert serve.returncode == 0, serve.stderr
    # The orchestrator's limits: none, on either way.
    assert nodes["orchestrator"]["memory_bytes"] is None

"""A closed cluster as its user makes it: `broker init`, tokens for everybody, answers over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from amp4ec import Client
from deploy.photo import PHOTO
from deploy.supervisor import Child, child_environment, command
from shared.errors import BrokerError, BrokerUnreachableError
from tests.cluster.conftest import MODEL

pytestmark = pytest.mark.timeout(180)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def amp4ec(*arguments: str) -> str:
    """What a command that ends prints."""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


class Closed:
    """The directory, and the children that run with its tokens."""

    def __init__(self, directory: Path, work: Path) -> None:
        self.directory = directory
        self.work = work
        self.children = contextlib.AsyncExitStack()

    def token(self, name: str) -> str:
        return f"@{self.directory / 'tokens' / name}"

    async def issue(self, name: str, role: str) -> str:
        file = self.work / f"{name}.token"
        await amp4ec(
            "join-token",
            name,
            "--role",
            role,
            "--directory",
            str(self.directory),
            "--output",
            str(file),
        )
        return f"@{file}"

    async def start(self, name: str, *arguments: str) -> Child:
        child = await Child.start(name, arguments, self.work / f"{name}.log")
        self.children.push_async_callback(child.stop)
        return child


@pytest.fixture
async def closed(tmp_path: Path) -> AsyncIterator[Closed]:
    directory = tmp_path / "closed"
    await amp4ec(
        "broker", "init", str(directory), "--host", "localhost", "--port", str(free_port())
    )
    site = Closed(directory, tmp_path)
    async with site.children:
        await site.start("broker", "broker", "--directory", str(directory), "--bind", "127.0.0.1")
        await site.start(
            "orchestrator", "orchestrator", "--broker", site.token("orchestrator"),
            "--state-dir", str(tmp_path / "state"),
        )  # fmt: skip
        for name in ("pi-1", "pi-2"):
            await site.start(
                name, "agent", "--broker", await site.issue(name, "agent"),
                "--cpus", "0.5", "--cache-dir", str(tmp_path / f"cache-{name}"),
            )  # fmt: skip
        yield site


async def test_a_model_is_served_and_answered_in_a_closed_cluster(closed: Closed) -> None:
    await amp4ec(
        "serve", MODEL, "--broker", closed.token("operator"), "--weights", "none",
        "--min-stages", "2", "--timeout", "120s",
    )  # fmt: skip
    camera = await closed.issue("camera", "client")
    answer = json.loads(await amp4ec("infer", MODEL, str(PHOTO), "--broker", camera, "--json"))
    first: dict[str, Any] = answer[0] if isinstance(answer, list) else answer
    assert first["status"] == "ok"
    assert sorted(first["nodes"]) == ["pi-1", "pi-2"]
    async with Client(camera) as one, Client(camera) as other:
        # Two programs with one login hear each other's answers and take their own.
        results = await asyncio.gather(
            *(client.infer(MODEL, PHOTO) for client in (one, other) for _ in range(3))
        )
        assert all(set(result.nodes) == {"pi-1", "pi-2"} for result in results)
        status = await one.status()
        assert sorted(node.state.node for node in status.nodes) == ["pi-1", "pi-2"]
    wall = await closed.issue("wall", "monitor")
    async with Client(wall) as monitor:
        assert [model.model for model in (await monitor.status()).models] == [MODEL]
        with pytest.raises(BrokerError, match=r"(?i)not authori[sz]ed"):
            await monitor.infer(MODEL, PHOTO)
    await amp4ec("join-token", "camera", "--revoke", "--directory", str(closed.directory))
    with pytest.raises(BrokerUnreachableError):
        async with Client(camera, connect_timeout_s=2):
            pass

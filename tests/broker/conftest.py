"""A real Mosquitto for each test that asks for one, and ways to wait without sleeping."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from broker.config import BrokerConfig
from broker.launcher import Broker
from shared.bus import BrokerUrl, DataBus, Message
from shared.client import Client
from tests.broker.stand import Stand, stand_in


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with Broker(directory=tmp_path / "broker", config=BrokerConfig()) as running:
        yield running


@pytest.fixture
async def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for this host, which signs itself, and its key."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    making = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        *("-keyout", key, "-out", certificate),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await making.wait() == 0
    return certificate, key


@pytest.fixture
def url(broker: Broker) -> BrokerUrl:
    return BrokerUrl.parse(broker.url)


@pytest.fixture
async def stand(url: BrokerUrl) -> AsyncIterator[Stand]:
    async with stand_in(url) as stand:
        yield stand


@pytest.fixture
async def client(url: BrokerUrl, stand: Stand) -> AsyncIterator[Client]:
    async with Client(url) as client:
        yield client


async def until(condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    """Let the event loop run until the condition holds."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 (what is watched has no event)
            await asyncio.sleep(0.005)


def poll_until(bus: DataBus, condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    """Poll a data bus until the condition holds."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        bus.poll(0.05)


def receive(bus: DataBus, count: int, deadline_s: float = 10.0) -> list[Message]:
    """The next `count` messages."""
    messages: list[Message] = []
    deadline = time.monotonic() + deadline_s
    while len(messages) < count:
        assert time.monotonic() < deadline, f"{len(messages)} of {count} messages came"
        bus.poll(0.05)
        while len(messages) < count and (message := bus.receive()) is not None:
            messages.append(message)
    return messages


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port

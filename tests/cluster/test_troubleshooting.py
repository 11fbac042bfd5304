"""The README's table of first mistakes: each of them is made, and meets the words that the table quotes."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from broker.closed import ClosedBroker
from broker.config import BrokerConfig
from broker.launcher import Broker
from deploy.photo import PHOTO
from deploy.supervisor import Child, child_environment, command
from shared.bus import BrokerUrl
from tests.cluster.test_clocks import LIBRARIES

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "README.md").read_text().split("## When something is wrong")[1].split("\n## ")[0]
ROWS: list[str] = re.findall(r"^\| `([^`]+)` \|", SECTION, re.MULTILINE)
WAIT_S = 60

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


@dataclass(frozen=True, slots=True)
class Site:
    """A broker on which nothing runs, one with an orchestrator, and a closed one with another."""

    directory: Path
    bare: Broker
    ours: Broker
    closed: ClosedBroker
    guarded: Broker

    def login(self, name: str) -> BrokerUrl:
        return BrokerUrl.parse(f"@{self.closed.token_file(name)}")


async def said(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """All that a command prints until it ends."""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments),
        cwd=ROOT,
        env=child_environment(environment or {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise
    return output.decode()


@contextlib.asynccontextmanager
async def running(directory: Path, name: str, *arguments: str) -> AsyncIterator[Child]:
    child = await Child.start(name, list(arguments), directory / f"{name}.log")
    try:
        yield child
    finally:
        await child.stop()


async def logged(child: Child, words: str) -> str:
    """What a service that goes on has logged, once `words` are in it."""
    async with asyncio.timeout(WAIT_S):
        while words not in child.log.read_text():  # noqa: ASYNC110 (a file has no event)
            await asyncio.sleep(0.05)
    return child.log.read_text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    directory = tmp_path_factory.mktemp("trouble")
    closed = ClosedBroker.create(
        directory / "closed", hosts=["localhost"], port=free_port(), now=dt.datetime.now(dt.UTC)
    )
    async with (
        Broker(directory=directory / "bare") as bare,
        Broker(directory=directory / "ours") as ours,
        Broker(
            directory=closed.directory,
            port=closed.port,
            config=BrokerConfig(security=closed.security),
        ) as guarded,
    ):
        made = Site(directory, bare, ours, closed, guarded)
        states = [f"--state-dir={directory / name}" for name in ("one", "two")]
        token = f"@{closed.token_file('orchestrator')}"
        async with (
            running(directory, "one", "orchestrator", states[0], "--broker", ours.url) as first,
            running(directory, "two", "orchestrator", states[1], "--broker", token) as second,
        ):
            for orchestrator in (first, second):
                await logged(orchestrator, "orchestrator runs")
            yield made


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def no_broker(_: Site) -> str:
    return await said("status", "--broker", f"127.0.0.1:{free_port()}")


async def wrong_port(_: Site) -> str:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ready\r\n")  # no MQTT, and no word for what it is asked
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return await said("status", "--broker", f"127.0.0.1:{port}")


async def wrong_password(site: Site) -> str:
    token = replace(site.login("operator"), password="guess").token()
    return await said("status", "--broker", token)


async def unknown_authority(site: Site) -> str:
    return await said("status", "--broker", f"mqtts://localhost:{site.closed.port}")


async def port_taken(site: Site) -> str:
    return await said("broker", "--port", str(site.bare.port))


async def no_orchestrator(site: Site) -> str:
    return await said("status", "--broker", site.bare.url)


async def no_nodes(site: Site) -> str:
    return await said("status", "--broker", site.bare.url)


async def no_runtime(site: Site) -> str:
    async with agent(site, "bare") as child:
        return await logged(child, "no runtime is installed")


def agent(site: Site, name: str) -> contextlib.AbstractAsyncContextManager[Child]:
    """One that offers a runtime which is not there, as if none were."""
    words = ("--name", name, "--runtime", "none", "--cache-dir", str(site.directory / name))
    return running(site.directory, name, "agent", *words, "--broker", site.ours.url)


async def no_memory(site: Site) -> str:
    cluster = site.directory / "small.toml"
    text = (ROOT / "deploy/example/three-pis.toml").read_text()
    cluster.write_text(re.sub(r"(?m)^memory_bytes = .*", "memory_bytes = 100e6", text))
    profile = ROOT / "deploy/example/mobilenet_v2.json"
    return await said("plan", "--profile", str(profile), "--cluster", str(cluster))


async def one_name_twice(site: Site) -> str:
    async with agent(site, "twin") as child:
        await logged(child, "birth told")
        words = ("--name", "twin", "--cache-dir", str(site.directory / "other"))
        return await said("agent", *words, "--broker", site.ours.url)


async def token_of_another(site: Site) -> str:
    token = f"@{site.closed.token_file('operator')}"
    words = ("--name", "pi-9", "--cache-dir", str(site.directory / "pi-9"))
    return await said("agent", *words, "--broker", token)


async def wrong_clock(site: Site) -> str:
    if not LIBRARIES:
        pytest.skip("there is no libfaketime: install the package faketime")
    ahead = {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME": "+15m",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    token = f"@{site.closed.token_file('operator')}"
    return await said("stop", "nothing", "--broker", token, environment=ahead)


async def unknown_model(site: Site) -> str:
    return await said("infer", "resnet18", str(PHOTO), "--broker", site.ours.url)


MISTAKES: dict[str, Callable[[Site], Awaitable[str]]] = {
    "Connection refused": no_broker,
    "no MQTT answer": wrong_port,
    "refused the login": wrong_password,
    "certificate verify failed": unknown_authority,
    "is in use": port_taken,
    "none has announced itself": no_orchestrator,
    "no nodes: start agents": no_nodes,
    "no runtime is installed": no_runtime,
    "no number of stages helps": no_memory,
    "another agent has the name": one_name_twice,
    "Not authorized": token_of_another,
    "the clocks differ": wrong_clock,
    "no model named": unknown_model,
}


async def test_every_row_is_provoked() -> None:
    assert sorted(ROWS) == sorted(MISTAKES)


@pytest.mark.parametrize("words", MISTAKES)
async def test_a_mistake_meets_these_words(site: Site, words: str) -> None:
    told = await MISTAKES[words](site)
    assert words in told, told
    assert "Traceback" not in told, told

"""The HTTP server: whom it lets in, what it says with every answer, and where it cannot listen."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from orchestrator.options import OrchestratorOptions
from orchestrator.web.address import HttpAddress
from orchestrator.web.files import page_files
from orchestrator.web.server import Site, serve
from orchestrator.web.watch import Watch
from shared.bus import BrokerUrl
from shared.errors import ConfigurationError
from shared.signing import Admission
from shared.topics import Topics
from tests.fakes.wire import FakeBroker

TOPICS = Topics("test")


def site_of(directory: Path) -> Site:
    return Site(
        options=OrchestratorOptions(
            broker=BrokerUrl.parse("mqtt://nowhere"), root="test", state_dir=directory
        ),
        watch=Watch(FakeBroker().control("page", will=None), TOPICS, Admission(None)),
        leading=lambda: None,
    )


def odd(_: Site) -> Iterable[web.RouteDef]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="done")

    return [web.post("/do", answer)]


@asynccontextmanager
async def running(
    directory: Path, *names: str, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[HttpAddress, aiohttp.ClientSession]]:
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(
            serve(HttpAddress(0, host), site_of(directory), (page_files, odd), names=names)
        )
        session = aiohttp.ClientSession(f"http://127.0.0.1:{address.port}")
        yield address, await stack.enter_async_context(session)


async def test_the_page_comes_with_a_policy_that_lets_nothing_else_in(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, http):
        async with http.get("/") as answer:
            assert answer.status == 200
            assert answer.content_type == "text/html"
            policy = answer.headers["Content-Security-Policy"]
            tag = answer.headers["ETag"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "http" not in policy
        async with http.get("/", headers={"If-None-Match": tag}) as again:
            assert again.status == 304
        async with http.get("/../server.py") as outside:
            assert outside.status == 404
            assert "Content-Security-Policy" in outside.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("localhost:9000", 200),  # by way of an SSH tunnel
        ("[::1]:{port}", 200),
        ("proxy.example", 200),
        ("PROXY.example.:443", 200),
        ("evil.example:{port}", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
        ("[", 403),
    ],
)
async def test_names_that_are_not_ours_are_refused(tmp_path: Path, host: str, status: int) -> None:
    async with running(tmp_path, "proxy.example") as (address, http):
        headers = {"Host": host.format(port=address.port)}
        async with http.get("/", headers=headers) as answer:
            assert answer.status == status
            if status == 403 and host:
                assert "--http-name" in await answer.text()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # a program
        ({"Origin": "http://{own}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
async def test_other_sites_pages_cannot_post(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    async with running(tmp_path) as (address, http):
        own = f"127.0.0.1:{address.port}"
        sent = {name: value.format(own=own) for name, value in headers.items()}
        async with http.post("/do", headers=sent) as answer:
            assert answer.status == status


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("none", "navigate", 200),  # typed
        ("cross-site", "navigate", 200),  # a link
        ("same-origin", "cors", 200),  # our own scripts
        ("cross-site", "no-cors", 403),
        ("same-site", "no-cors", 403),  # another port of this machine
    ],
)
async def test_other_sites_pages_can_link_here_but_not_read(
    tmp_path: Path, site: str, mode: str, status: int
) -> None:
    async with running(tmp_path) as (_, http):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
        async with http.get("/", headers=headers) as answer:
            assert answer.status == status


async def test_a_port_in_use_is_said_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"port {port} is in use.*0 takes any"):
            async with serve(HttpAddress(port), site_of(tmp_path), ()):
                pass


async def test_an_address_of_another_machine_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on 192\.0\.2\.1:0.*this machine"):
        async with serve(HttpAddress(0, "192.0.2.1"), site_of(tmp_path), ()):
            pass


async def test_open_to_others_is_said_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        async with running(tmp_path):
            assert "the page is there  url=http://127.0.0.1:" in caplog.text
            assert "without a login" not in caplog.text
        async with running(tmp_path, host="0.0.0.0"):
            assert "without a login" in caplog.text


async def test_the_port_is_free_afterwards(tmp_path: Path) -> None:
    async with serve(HttpAddress(0), site_of(tmp_path), ()) as address:
        pass
    async with serve(address, site_of(tmp_path), ()) as again:
        assert again.port == address.port

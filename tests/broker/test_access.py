"""The access matrix is as it should be, and who may log in cannot use that against the others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker import access
from broker.access import Grant, Role
from shared.bus import BrokerUrl, MqttControlBus, MqttDataBus
from shared.topics import TABLE
from tests.broker.access.matrix import NOBODY, WRITES, measure
from tests.broker.access.peer import Peer
from tests.broker.access.rules import READ, ROLES, WRITE
from tests.broker.access.site import Site, closed_site, let_witness_in, make, run
from tests.broker.conftest import poll_until, receive, until


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with closed_site(tmp_path / "closed") as running:
        yield running


def test_the_rules_have_every_topic_and_every_role() -> None:
    rows = {spec.name for spec in TABLE}
    assert set(READ) == rows
    assert set(WRITE) == rows
    assert set(ROLES) == set(Role)


async def test_every_role_tries_every_topic_every_way(tmp_path: Path) -> None:
    cells = await measure(tmp_path / "closed")
    assert [cell for cell in cells if not cell.right] == []
    for cell in cells:
        # Mosquitto denies a message of QoS 2 without a word.
        if cell.verb in ("publish QoS 1", "publish retained") and not cell.role.startswith(NOBODY):
            assert cell.told == (not cell.allowed), f"the broker's word is its deed: {cell}"
    # The rules could say "nobody" everywhere and agree with a broker that is down.
    for role in ROLES:
        ways = {cell.verb in WRITES for cell in cells if cell.role == role and cell.allowed}
        assert ways == ({False} if role == "monitor" else {False, True})


async def test_a_hole_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the matrix is for: a line too much, and a line too little."""
    line = Grant("read", "event")
    grants = {
        **access.GRANTS,
        Role.CLIENT: (*access.GRANTS[Role.CLIENT], line),
        Role.MONITOR: tuple(grant for grant in access.GRANTS[Role.MONITOR] if grant != line),
    }
    monkeypatch.setattr(access, "GRANTS", grants)
    wrong = [cell for cell in await measure(tmp_path / "closed") if not cell.right]
    assert {(cell.role, cell.target, cell.allowed) for cell in wrong} == {
        ("client", "event", True),
        ("monitor", "event", False),
    }


async def test_what_the_broker_says_of_itself_is_for_nobody(tmp_path: Path) -> None:
    closed = make(tmp_path / "closed")
    orchestrator = BrokerUrl.parse(f"@{closed.token_file('orchestrator')}")
    witness = let_witness_in(closed)
    async with run(closed) as running:
        site = Site(closed, running)
        found = {}
        for name, url in (("witness", witness), ("orchestrator", orchestrator)):
            with Peer(site.at(url)) as peer:
                peer.subscribe(["$SYS/#"])
                peer.settle()
                found[name] = {topic for topic, _, _ in peer.received}
    assert "$SYS/broker/version" in found["witness"], "there is something to be had"
    assert found["orchestrator"] == set()


@pytest.mark.parametrize("clean_start", [True, False])
async def test_nobody_takes_over_the_session_of_another_login(
    site: Site, *, clean_start: bool
) -> None:
    """Mosquitto gives a session to whoever names it. So names of sessions are secrets."""
    name = "amp4ec-dispatcher"
    hostile = site.url("hostile", "agent")
    jobs = MqttDataBus(
        site.first("orchestrator"), name, clean_start=False, session_expiry_s=60, manual_ack=True
    )
    try:
        assert jobs.connect(10)
        jobs.subscribe(site.topics.pattern("infer_311"))
        jobs.publish(site.topics.topic("event"), b"")
        assert jobs.flush(10), "what was asked before is answered, too"
        async with MqttControlBus(
            site.first("orchestrator"), client_id="amp4ec-control"
        ) as control:
            await until(lambda: control.connected)
            for guess in (name, "amp4ec-control", hostile.client_id(name)):
                with Peer(hostile, client_id=guess, clean_start=clean_start) as thief:
                    assert not thief.session_present
            # The login of the one who owns it is what it takes.
            assert (control.connected, control.reconnections) == (True, 0)
        client = site.url("camera", "client")
        with Peer(client) as camera:
            topic = site.topics.topic("infer_311", model="m", client="camera", job="1")
            mid = camera.publish(topic, b"job")
            assert mid is not None
            assert not camera.refused(mid)
        assert [message.payload for message in receive(jobs, 1)] == [b"job"]
        assert jobs.sessions == 1, "never interrupted"
    finally:
        jobs.close()


@pytest.mark.parametrize("token", ["orchestrator", "standby"])
async def test_an_orchestrator_takes_over_the_queue_of_another(site: Site, token: str) -> None:
    """What a successor on another machine needs: the same token or one of its own, the same queue."""
    successor = site.url(token, "orchestrator") if token == "standby" else site.first(token)
    first, second = (
        MqttDataBus(url, "jobs", clean_start=False, session_expiry_s=60)
        for url in (site.first("orchestrator"), successor)
    )
    try:
        assert first.connect(10)
        assert second.connect(10)
        assert second.session_present
        poll_until(first, lambda: not first.connected)
    finally:
        second.close()
        first.close()


async def test_a_message_too_large_ends_its_sender_only(site: Site) -> None:
    big = site.url("big", "client")
    small = site.url("small", "client")
    limit = 128 << 20
    with Peer(small) as witness:
        async with _logged_in(big) as (reader, writer):
            # A PUBLISH that says it is larger than the broker takes; not a byte of it need follow.
            writer.write(b"\x30" + _varint(limit + 1) + b"\x00\x01x")
            async with asyncio.timeout(10):
                rest = await reader.read()  # up to the end: the broker hangs up
        assert rest == b"" or rest[0] >> 4 == 14, "a goodbye (DISCONNECT), or none"
        assert witness.subscribe([site.topics.pattern("result", client="small")]) == [True]
        assert not witness.ended.is_set()


async def test_a_flood_of_connections_keeps_nobody_out(site: Site) -> None:
    """Sockets that say nothing, and logins that come and go, beside one that works."""
    url = site.url("camera", "client")
    with Peer(site.first("operator")) as resident, contextlib.ExitStack() as held:
        for _ in range(300):
            silent = held.enter_context(socket.socket())
            silent.connect(("127.0.0.1", site.running.port))
        guest = replace(url, password="guess")
        results = await asyncio.gather(*(_let_in(guest) for _ in range(50)))
        assert not any(results)
        with Peer(url) as late:
            late.settle()
        resident.settle()
        assert not resident.ended.is_set()


@contextlib.asynccontextmanager
async def _logged_in(
    url: BrokerUrl,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """An MQTT 3.1.1 connection by hand, past the greeting, which has to be a welcome."""
    reader, writer = await asyncio.open_connection(url.host, url.port, ssl=url.tls_context())
    try:
        assert url.username is not None
        assert url.password is not None
        texts = b"".join(
            len(text).to_bytes(2, "big") + text
            for text in (b"by-hand", url.username.encode(), url.password.encode())
        )
        body = b"\x00\x04MQTT\x04\xc2\x00\x3c" + texts
        writer.write(b"\x10" + _varint(len(body)) + body)
        assert (await reader.readexactly(4))[3] == 0, "let in"
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):  # hung up by the other side
            await writer.wait_closed()


async def _let_in(url: BrokerUrl) -> bool:
    try:
        async with _logged_in(url):
            return True
    except (AssertionError, OSError, asyncio.IncompleteReadError):
        return False


def _varint(number: int) -> bytes:
    """MQTT's variable byte integer (1.5.5)."""
    out = bytearray()
    while True:
        number, low = divmod(number, 128)
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)

"""A closed broker, for real: every role tries every topic over TLS, and a revoked login is out at once."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import os
import signal
import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.access import Role, User
from broker.closed import ClosedBroker
from broker.config import BrokerConfig
from broker.launcher import Broker
from shared.bus import BrokerUrl, MqttControlBus
from shared.errors import BrokerError, BrokerUnreachableError, ConfigurationError
from shared.topics import TABLE, Topics
from tests.broker.conftest import until

NOW = dt.datetime.now(dt.UTC)

# Row of the topic table -> roles that may; `own`: with the user's name where the table has a name.
READ = {
    "node_state": "client monitor operator",
    "telemetry": "client monitor operator",
    "assignment": "agent:own",
    "report": "monitor operator",
    "model_state": "client monitor operator",
    "infer": "",
    "infer_311": "",
    "activation": "agent",
    "stage_result": "agent",
    "result": "client:own",
    "artifact_want": "operator",
    "artifact_piece": "agent:own",
    "artifact_probe": "agent:own",
    "request": "",
    "response": "operator",
    "orchestrator_state": "agent client monitor operator",
    "orchestrator_beat": "",
    "event": "monitor operator",
    "metrics": "monitor operator",
}
WRITE = {
    "node_state": "agent:own",
    "telemetry": "agent:own",
    "assignment": "",
    "report": "agent:own",
    "model_state": "",
    "infer": "",
    "infer_311": "client:own",
    "activation": "agent",
    "stage_result": "agent",
    "result": "",
    "artifact_want": "agent:orchestrator",
    "artifact_piece": "operator:orchestrator",
    "artifact_probe": "agent:own",
    "request": "operator",
    "response": "",
    "orchestrator_state": "",
    "orchestrator_beat": "",
    "event": "",
    "metrics": "",
}
ROLES = ("agent", "client", "monitor", "operator")


def make(directory: Path) -> ClosedBroker:
    return ClosedBroker.create(directory, hosts=["localhost", "127.0.0.1"], now=NOW)


class Site:
    """A closed broker that runs, and everybody's login."""

    def __init__(self, closed: ClosedBroker, running: Broker) -> None:
        self.closed = closed
        self.running = running
        self.topics = Topics(closed.root)

    def url(self, name: str, role: str) -> BrokerUrl:
        issued = self.closed.add(User(name=name, role=Role(role)))
        return self.at(issued)

    def at(self, issued: BrokerUrl) -> BrokerUrl:
        """The login, at the port that was free here."""
        return BrokerUrl(
            host=issued.host,
            port=self.running.port,
            username=issued.username,
            password=issued.password,
            tls=True,
            ca_pem=issued.ca_pem,
        )

    def first(self, name: str) -> BrokerUrl:
        """A login that `create` made."""
        return self.at(BrokerUrl.parse(f"@{self.closed.token_file(name)}"))


def run(closed: ClosedBroker) -> Broker:
    config = BrokerConfig(security=closed.security, pid_file=str(closed.pid_file))
    return Broker(directory=closed.directory, config=config)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    closed = make(tmp_path / "closed")
    async with run(closed) as running:
        yield Site(closed, running)


def bus(url: BrokerUrl, name: str) -> MqttControlBus:
    return MqttControlBus(url, client_id=name, first_connect_timeout_s=10)


def allowed(rule: str, role: str, level: str) -> bool:
    """Whether a rule of the tables above lets `role` in, with `level` (own, other, ...) in the topic."""
    for entry in rule.split():
        name, _, only = entry.partition(":")
        if name == role and (not only or only == level):
            return True
    return False


def concrete(topics: Topics, row: str, name: str) -> str:
    levels = dict.fromkeys(("node", "client", "peer"), "x") | {
        "model": "m", "job": "j", "pipeline": "p", "generation": "1", "stage": "0", "verb": "serve",
    }  # fmt: skip
    return topics.topic(row, **(levels | dict.fromkeys(("node", "client", "peer"), name)))


def named(row: str) -> bool:
    pattern = next(spec.pattern for spec in TABLE if spec.name == row)
    return any(level in pattern for level in ("{node}", "{client}", "{peer}"))


def test_the_tables_here_have_every_topic() -> None:
    rows = {spec.name for spec in TABLE}
    assert set(READ) == rows
    assert set(WRITE) == rows


@pytest.mark.parametrize("role", ROLES)
async def test_access_matrix(site: Site, role: str) -> None:
    """All of the table, both ways: what may be read or written arrives, and nothing else does."""
    topics, me = site.topics, f"{role}-1"
    rows = [(row, level) for row in READ for level in ("own", "other", "orchestrator")]
    rows = [(row, level) for row, level in rows if level == "own" or named(row)]
    names = {"own": me, "other": "somebody-else", "orchestrator": "orchestrator"}
    async with (
        bus(site.first("orchestrator"), "all") as everything,
        bus(site.url(me, role), "one") as one,
    ):
        seen: dict[str, list[str]] = {"all": [], "one": []}

        async def collect(name: str, which: MqttControlBus) -> None:
            async for message in which.messages():
                seen[name].append(f"{message.topic} {message.payload.decode()}")

        readers = [
            asyncio.create_task(collect("all", everything)),
            asyncio.create_task(collect("one", one)),
        ]
        await everything.subscribe(f"{topics.root}/#")
        await one.subscribe("#")
        refused = set()
        for row, level in rows:
            topic = concrete(topics, row, names[level])
            await everything.publish(topic, b"from above")
            try:
                await one.publish(topic, b"from one")
            except BrokerError:
                refused.add(topic)
        last = topics.topic("orchestrator_state")
        await everything.publish(last, b"last")
        await until(lambda: f"{last} last" in seen["all"])
        if allowed(READ["orchestrator_state"], role, "own"):
            await until(lambda: f"{last} last" in seen["one"])
        for task in readers:
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    for row, level in rows:
        topic = concrete(topics, row, names[level])
        may_read = allowed(READ[row], role, level)
        may_write = allowed(WRITE[row], role, level)
        assert (f"{topic} from above" in seen["one"]) == may_read, f"{role} reads {topic}"
        assert (f"{topic} from one" in seen["all"]) == may_write, f"{role} writes {topic}"
        assert (topic in refused) == (not may_write), f"{role} is told so of {topic}"


async def test_nobody_without_a_login(site: Site) -> None:
    good = site.first("operator")
    for username, password in (
        (None, None),
        ("operator", None),
        ("operator", "guess"),
        ("nobody", "x"),
    ):
        url = BrokerUrl(
            host="localhost", port=site.running.port, username=username, password=password,
            tls=True, ca_pem=good.ca_pem,
        )  # fmt: skip
        with pytest.raises(BrokerUnreachableError, match=r"(?i)not authori[sz]ed"):
            async with MqttControlBus(url, client_id="x", first_connect_timeout_s=2):
                pass


# paho leaves the socket of a handshake that failed to the garbage collector, which complains
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_another_authority_does_not_vouch_for_it(site: Site, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    url = site.first("operator")
    stranger = BrokerUrl(
        host="localhost", port=site.running.port, username=url.username, password=url.password,
        tls=True, ca_pem=(other.directory / "ca.pem").read_text(),
    )  # fmt: skip
    with pytest.raises(BrokerUnreachableError, match="certificate"):
        async with MqttControlBus(stranger, client_id="x", first_connect_timeout_s=2):
            pass
    gc.collect()


async def test_plain_tcp_gets_nothing(site: Site) -> None:
    reader, writer = await asyncio.open_connection("localhost", site.running.port)
    writer.write(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x05\x00\x00")
    try:
        assert await asyncio.wait_for(reader.read(4), 5) in (
            b"",
            b"\x15\x03\x01\x00",
            b"\x15\x03\x03\x00",
        )
    except ConnectionResetError:
        pass  # as good as silence
    finally:
        writer.close()


async def test_a_login_made_while_it_runs_works_and_a_revoked_one_is_out(site: Site) -> None:
    url = site.url("pi-1", "agent")
    async with bus(url, "pi-1") as agent:
        assert agent.connected
        site.closed.revoke("pi-1")
        await until(lambda: not agent.connected)
    with pytest.raises(BrokerUnreachableError):
        async with MqttControlBus(url, client_id="x", first_connect_timeout_s=2):
            pass
    again = site.url("pi-1", "agent")
    async with bus(again, "pi-1") as agent:
        assert agent.connected


def test_files_with_secrets_are_their_owners_only(tmp_path: Path) -> None:
    closed = make(tmp_path / "closed")
    secret = {"ca.key", "server.key", "passwords", "acl", "operator", "orchestrator"}
    for path in closed.directory.rglob("*"):
        if path.is_file() and path.name in secret:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((closed.directory / "tokens").stat().st_mode) == 0o700


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    closed = make(tmp_path / "closed")
    url = closed.add(User(name="pi-1", role=Role.AGENT), host="127.0.0.1")
    again = ClosedBroker.open(tmp_path / "closed")
    assert {user.name for user in again.users} == {"orchestrator", "operator", "pi-1"}
    assert BrokerUrl.parse(url.token()) == url
    assert (url.host, url.port, url.username, url.own_login) == ("127.0.0.1", 8883, "pi-1", True)
    assert url.password is not None
    assert url.password not in (repr(url) + str(url) + (closed.directory / "passwords").read_text())
    assert isinstance(url.tls_context(), ssl.SSLContext)


def test_bad_set_ups(tmp_path: Path) -> None:
    closed = make(tmp_path / "closed")
    with pytest.raises(ConfigurationError, match="already"):
        make(tmp_path / "closed")
    with pytest.raises(ConfigurationError, match="broker init"):
        ClosedBroker.open(tmp_path)
    with pytest.raises(ConfigurationError, match="has a token already"):
        closed.add(User(name="operator", role=Role.AGENT))
    with pytest.raises(ConfigurationError, match="not for this host") as caught:
        closed.add(User(name="pi-2", role=Role.AGENT), host="elsewhere")
    assert caught.value.expected == "one of localhost, 127.0.0.1"
    with pytest.raises(ConfigurationError, match="nobody"):
        closed.revoke("pi-9")
    with pytest.raises(ConfigurationError, match="hosts"):
        ClosedBroker.create(tmp_path / "none", hosts=[], now=NOW)
    assert not (tmp_path / "none").exists()
    (closed.directory / "closed.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="damaged"):
        ClosedBroker.open(closed.directory)


async def test_a_stale_process_id_signals_nobody(tmp_path: Path) -> None:
    """The file may outlive the broker, and the number be another process's: this test's own."""
    closed = make(tmp_path / "closed")
    hung_up = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up.set)
    try:
        closed.pid_file.write_text(f"{os.getpid()}\n")
        closed.add(User(name="pi-1", role=Role.AGENT))
        await asyncio.sleep(0)
        assert not hung_up.is_set()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)

"""A closed broker, for real: who is let in over TLS, and a revoked login is out at once."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import ssl
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.access import Role, User
from broker.closed import ClosedBroker
from deploy.cli.app import cli
from deploy.health import health_of
from deploy.operator import Request, connect
from deploy.supervisor import child_environment, command
from shared.bus import BrokerUrl, MqttControlBus
from shared.codec import encode_json
from shared.errors import BrokerUnreachableError, ConfigurationError, NotPermittedError
from shared.messages.cordon import DrainRequest
from shared.messages.health import Health, HealthRequest
from shared.messages.operation import OrchestratorState, StopRequest
from shared.messages.settings import SetRequest
from shared.signing import signer_of
from tests.broker.access.site import NOW, Site, closed_site, make
from tests.broker.conftest import until


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with closed_site(tmp_path / "closed") as running:
        yield running


def bus(url: BrokerUrl, name: str) -> MqttControlBus:
    return MqttControlBus(url, client_id=name, first_connect_timeout_s=10)


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


REQUESTS: tuple[Request, ...] = (
    DrainRequest(transaction="1", node="pi-1"),
    SetRequest(transaction="2", settings={"cool_down_s": 60}),
    StopRequest(transaction="3", model="tiny"),
    HealthRequest(transaction="4"),
)


@pytest.mark.parametrize("role", ["client", "monitor", "agent", "home-assistant"])
async def test_who_may_not_ask_is_told_at_once_also_where_no_orchestrator_is(
    site: Site, role: str
) -> None:
    async with (
        connect(site.url("somebody", role), site.topics.root) as operator,
        asyncio.timeout(10),
    ):
        for request in REQUESTS:
            with pytest.raises(NotPermittedError, match="only an operator may") as caught:
                await operator.ask(request, 60, lambda _: None)
            assert "join-token NAME --role operator" in (caught.value.expected or "")
            assert "'somebody'" in (caught.value.got or "")


async def test_without_keys_in_the_token_the_brokers_own_word_counts(site: Site) -> None:
    keyless = replace(site.url("camera", "client"), credentials=None)
    state = OrchestratorState(state="online", incarnation=1)
    async with bus(site.first("orchestrator"), "orchestrator") as orchestrator:
        topic = site.topics.topic("orchestrator_state")
        await orchestrator.publish(topic, encode_json(state), retain=True)
        async with connect(keyless, site.topics.root) as operator, asyncio.timeout(10):
            for request in REQUESTS:
                with pytest.raises(NotPermittedError, match="only an operator may") as caught:
                    await operator.ask(request, 60, lambda _: None)
                assert "Not authorized" in (caught.value.got or "")


async def test_a_command_with_a_clients_token_says_which_one_it_needs(
    site: Site, tmp_path: Path
) -> None:
    token = tmp_path / "camera.token"
    token.write_text(site.url("camera", "client").token())
    drain = await asyncio.create_subprocess_exec(
        *command("drain", "pi-1", "--broker", f"@{token}", "--json"),
        stdout=asyncio.subprocess.PIPE,
        env=child_environment(),
    )
    # Its own --timeout is two minutes.
    output, _ = await asyncio.wait_for(drain.communicate(), 60)
    assert drain.returncode == 1
    error = json.loads(output)["error"]
    assert error["message"] == "only an operator may ask this cluster's orchestrator for 'drain'"
    assert "--role operator" in error["expected"]
    assert "'camera'" in error["got"]


async def test_a_monitor_reads_how_the_cluster_is_and_a_client_may_not(site: Site) -> None:
    monitor, client = site.url("wall", "monitor"), site.url("camera", "client")
    state = OrchestratorState(state="online", incarnation=1, host="hub", pid=7)
    said = Health(text="ok: 2 nodes online, serving m", health="ok")
    async with bus(site.first("orchestrator"), "orchestrator") as orchestrator:

        async def retain(name: str, value: object) -> None:
            await orchestrator.publish(site.topics.topic(name), encode_json(value), retain=True)

        async def seen_by(url: BrokerUrl) -> Health:
            return await health_of(url, site.topics.root, lambda _: None)

        await retain("orchestrator_state", state)
        await retain("health", said)
        assert await seen_by(monitor) == said
        with pytest.raises(NotPermittedError, match="only an operator may"):
            await seen_by(client)
        await retain("orchestrator_state", replace(state, state="lost"))
        for url, last in ((monitor, "The last word"), (client, "jobs wait")):
            health = await seen_by(url)
            assert health.health == "failing"
            assert "the orchestrator is lost, last on hub (pid 7)" in health.text
            assert last in health.text


async def test_a_program_that_takes_no_token_logs_in_with_what_plain_prints(site: Site) -> None:
    words = ("join-token", "home", "--role", "home-assistant", "--plain", "--json", "--directory")
    done = CliRunner().invoke(cli, [*words, str(site.closed.directory)])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    watching = await asyncio.create_subprocess_exec(
        "mosquitto_sub", "-h", said["host"], "-p", str(site.running.port), "-u", said["username"],
        "-P", said["password"], "--cafile", said["certificate"], "-V", "mqttv5", "-C", "1",
        "-t", site.topics.pattern("telemetry"), "-t", "homeassistant/device/+/config",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with bus(site.first("orchestrator"), "orchestrator") as orchestrator:
        topic = "homeassistant/device/amp4ec_node_pi-1/config"
        await orchestrator.publish(topic, b"document", retain=True)
        output, _ = await asyncio.wait_for(watching.communicate(), 20)
    assert output == b"document\n"


def test_files_with_secrets_are_their_owners_only(tmp_path: Path) -> None:
    closed = make(tmp_path / "closed")
    secret = {
        "authority.key",
        "ca.key",
        "server.key",
        "passwords",
        "acl",
        "operator",
        "orchestrator",
    }
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


# --- the keys in tokens


def token(closed: ClosedBroker, name: str, role: Role) -> BrokerUrl:
    return BrokerUrl.parse(closed.add(User(name=name, role=role)).token())


def test_every_token_brings_the_authority_and_a_signers_its_keys(tmp_path: Path) -> None:
    closed = make(tmp_path / "closed")
    assert closed.signs
    first = BrokerUrl.parse(f"@{closed.token_file('orchestrator')}").credentials
    assert first is not None
    for role in Role:
        credentials = token(closed, f"a-{role}", role).credentials
        assert credentials is not None
        assert credentials.authority == first.authority
        signs = role in {Role.ORCHESTRATOR, Role.OPERATOR}
        assert (credentials.key is not None) == (credentials.certificate is not None) == signs
        assert credentials.secret == (first.secret if role is Role.ORCHESTRATOR else None)
        signer = signer_of(credentials)
        if signer is not None:
            assert (signer.certificate.name, signer.certificate.role) == (f"a-{role}", role)
    names = (path.name for path in closed.directory.rglob("*") if path.is_file())
    private = {"authority.key", "operator", "orchestrator"}
    assert first.secret is not None
    for name in set(names) - private:
        for path in closed.directory.rglob(name):
            assert first.secret not in path.read_text(errors="replace"), path


def test_the_authority_may_be_kept_elsewhere(tmp_path: Path) -> None:
    closed = make(tmp_path / "closed")
    key = closed.directory / "authority.key"
    (closed.directory / "ca.key").unlink()
    safe = key.rename(tmp_path / "in a safe")
    again = ClosedBroker.open(closed.directory)
    assert token(again, "pi-1", Role.AGENT).credentials is not None
    assert token(again, "camera", Role.CLIENT).credentials is not None
    before = (closed.directory / "passwords").read_text()
    with pytest.raises(ConfigurationError, match="put it back") as caught:
        token(again, "ann", Role.OPERATOR)
    assert caught.value.expected == str(key)
    other = make(tmp_path / "other")
    for wrong in ((other.directory / "authority.key").read_bytes(), b"", b"-----BEGIN"):
        key.write_bytes(wrong)
        with pytest.raises(ConfigurationError, match=r"of another cluster|damaged"):
            token(again, "ann", Role.OPERATOR)
    assert (closed.directory / "passwords").read_text() == before, "nobody was let in half way"
    safe.rename(key)
    credentials = token(again, "ann", Role.OPERATOR).credentials
    assert credentials is not None
    assert signer_of(credentials) is not None


def test_a_directory_of_before_gives_tokens_of_before(tmp_path: Path) -> None:
    closed = make(tmp_path / "closed")
    file = closed.directory / "closed.json"
    document = json.loads(file.read_text())
    del document["authority"]
    file.write_text(json.dumps(document))
    (closed.directory / "authority.key").unlink()
    old = ClosedBroker.open(closed.directory)
    assert not old.signs
    for role in Role:
        assert token(old, f"a-{role}", role).credentials is None
    old.revoke("a-agent")
    assert not ClosedBroker.open(closed.directory).signs

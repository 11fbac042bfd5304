"""`amp4ec doctor` on brokers and clusters that have what it looks for: each finding provoked for real."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from broker.access import Role, User
from broker.bridge import Bridge
from broker.closed import ClosedBroker
from broker.config import BrokerConfig, Security
from broker.launcher import Broker
from deploy.cli.app import cli
from deploy.doctor import broker as doctor_broker
from deploy.doctor import cluster as doctor_cluster
from deploy.doctor import machine as doctor_machine
from deploy.doctor.finding import Finding, Level, healthy
from shared.bus import BrokerUrl, MqttControlBus
from shared.codec import encode_json
from shared.errors import BrokerUnreachableError
from shared.messages.model import ModelState
from shared.messages.node import Hardware, NodeState, Telemetry
from shared.messages.operation import Metrics, OrchestratorState
from shared.topics import Topics

TOPICS = Topics()


@dataclass(frozen=True, slots=True, kw_only=True)
class Altered(BrokerConfig):
    """A configuration with lines that somebody changed."""

    changes: tuple[tuple[str, str], ...] = ()

    def render(self) -> str:
        text = BrokerConfig.render(self)
        for old, new in self.changes:
            assert old in text
            text = text.replace(old, new)
        return text


def found(findings: Sequence[Finding], check: str) -> list[Finding]:
    return [
        each
        for each in findings
        if each.check == check and each.level in (Level.WARNING, Level.ERROR)
    ]


DEFAULTS = (
    ("max_inflight_messages 0", "max_inflight_messages 20"),
    ("max_queued_messages 20000", "max_queued_messages 1000"),
)


@pytest.mark.parametrize(
    ("check", "changes", "says"),
    [
        # As Mosquitto comes.
        ("broker.nodelay", (("set_tcp_nodelay true", ""),), "Nagle"),
        ("broker.queue", DEFAULTS, "keeps 1000"),
        ("broker.packet", (("max_packet_size 134217728", "max_packet_size 65536"),), "65,536"),
        ("broker.retain", (("retain_available true", "retain_available false"),), "memory"),
        ("broker.qos", (("protocol mqtt\n", "protocol mqtt\nmax_qos 0\n"),), "QoS 0"),
    ],
)
async def test_a_broker_that_was_not_set_up(
    tmp_path: Path, check: str, changes: tuple[tuple[str, str], ...], says: str
) -> None:
    async with Broker(directory=tmp_path, config=Altered(changes=changes)) as broker:
        findings = await doctor_broker.examine(BrokerUrl.parse(broker.url), TOPICS)
    (finding,) = found(findings, check)
    assert says in finding.text
    assert finding.mend


def test_a_broker_with_a_limit_of_its_own_for_messages_under_way() -> None:
    """Mosquitto goes by what an MQTT 5 client says; others do not."""
    (finding,) = doctor_broker.queues(doctor_broker.Queue(under_way=32, came=doctor_broker.MANY))
    assert finding.check == "broker.inflight"
    assert "stops at 32 messages" in finding.text


async def test_a_broker_of_ours_has_nothing_to_mend(url: BrokerUrl) -> None:
    findings = await doctor_broker.examine(url, TOPICS)
    # How fast it answers is this machine's business.
    assert healthy(each for each in findings if each.check != "broker.nodelay")
    assert {"broker.limits", "broker.queue"} <= {each.check for each in findings}


async def test_nobody_answers(unused_port: int) -> None:
    with pytest.raises(BrokerUnreachableError, match="no MQTT 5 broker"):
        await doctor_broker.examine(BrokerUrl.parse(f"127.0.0.1:{unused_port}"), TOPICS)


async def test_tls_on_one_side_only(url: BrokerUrl) -> None:
    with pytest.raises(BrokerUnreachableError):
        await doctor_broker.examine(replace(url, tls=True, insecure=True), TOPICS)


@contextlib.asynccontextmanager
async def closed_broker(
    directory: Path, security: Security | None = None
) -> AsyncIterator[tuple[ClosedBroker, Broker]]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    closed = ClosedBroker.create(
        directory, hosts=["localhost"], port=port, now=dt.datetime.now(dt.UTC)
    )
    closed.add(User(name="pi-1", role=Role.AGENT))
    config = BrokerConfig(security=security or closed.security)
    async with Broker(directory=closed.directory, port=port, config=config) as broker:
        yield closed, broker


async def test_a_login_that_is_wrong_and_one_that_is_right(tmp_path: Path) -> None:
    async with closed_broker(tmp_path / "closed") as (closed, _):
        operator = BrokerUrl.parse(f"@{closed.token_file('operator')}")
        wrong = replace(operator, password="guessed")
        (finding,) = await doctor_broker.examine(wrong, TOPICS)
        assert (finding.check, finding.level) == ("broker.login", Level.ERROR)
        findings = await doctor_broker.examine(operator, TOPICS)
        assert not found(findings, "broker.acl")
        assert any(each.check == "broker.acl" for each in findings)  # it was tried
        assert any(each.check == "broker.queue" for each in findings)


async def test_a_login_that_may_command(tmp_path: Path) -> None:
    """As with an ACL file that somebody made too wide."""
    directory = tmp_path / "closed"
    wide = tmp_path / "acl"
    wide.write_text("topic readwrite #\n")
    async with closed_broker(directory) as (closed, broker):
        operator = BrokerUrl.parse(f"@{closed.token_file('operator')}")
        await broker.stop()
        config = BrokerConfig(security=replace(closed.security, acl_file=str(wide)))
        wide.write_text("user operator\ntopic readwrite #\n")
        async with Broker(directory=directory, port=closed.port, config=config):
            (finding,) = found(await doctor_broker.examine(operator, TOPICS), "broker.acl")
    assert "may give orders" in finding.text


async def test_a_broker_that_lets_anybody_in(tmp_path: Path) -> None:
    others = [
        each.address
        for many in psutil.net_if_addrs().values()
        for each in many
        if each.family == socket.AF_INET and not each.address.startswith("127.")
    ]
    if not others:
        pytest.skip("this machine has no address but loopback")
    async with Broker(directory=tmp_path, config=BrokerConfig(bind=others[0])) as broker:
        findings = await doctor_broker.examine(BrokerUrl.parse(broker.url), TOPICS)
    assert found(findings, "broker.open")


async def test_a_broker_that_forgets(tmp_path: Path) -> None:
    for directory, forgets in ((None, True), ("kept", False)):
        config = BrokerConfig(persistence_dir=directory)
        async with Broker(directory=tmp_path / str(forgets), config=config) as broker:
            findings = [*doctor_machine.check_persistence(BrokerUrl.parse(broker.url))]
        assert bool(found(findings, "broker.persistence")) == forgets


# The cluster


def node_state(**changes: object) -> NodeState:
    state = NodeState(
        state="online",
        node="pi-1",
        incarnation=1,
        version="1.0",
        host="shed",
        hardware=Hardware(cpu=1.0, cores=1, memory_bytes=10**9, architecture="aarch64"),
        runtimes={"onnxruntime": "1.20"},
    )
    return replace(state, **changes)  # type: ignore[arg-type]


def telemetry(**changes: object) -> Telemetry:
    now = Telemetry(
        node="pi-1",
        incarnation=1,
        uptime_s=1.0,
        cpu_percent=1.0,
        memory_used_bytes=10**8,
        memory_limit_bytes=10**9,
        network_received_bytes=0,
        network_sent_bytes=0,
        round_trip_s=0.001,
        queue=0,
        stability=1.0,
        sent_at_ms=time.time_ns() // 10**6,
    )
    return replace(now, **changes)  # type: ignore[arg-type]


def metrics(**changes: object) -> Metrics:
    now = Metrics(
        counters={},
        models={},
        nodes_online=1,
        cpu_s=1.0,
        memory_bytes=1,
        sent_at_ms=time.time_ns() // 10**6,
    )
    return replace(now, **changes)  # type: ignore[arg-type]


ORCHESTRATOR = OrchestratorState(state="online", incarnation=1, host="desk", pid=7, version="1.0")


class Stage:
    """Says what is on a cluster's topics, so that one thing at a time is wrong."""

    def __init__(self, url: BrokerUrl, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = url
        self.bus = MqttControlBus(url, client_id="stage", first_connect_timeout_s=5)
        # Nothing comes by itself here: all is retained.
        monkeypatch.setattr(doctor_cluster, "LISTEN_S", 0.3)
        monkeypatch.setattr(doctor_cluster, "RETAINED_S", 0.3)

    async def say(self, name: str, message: object, **levels: str) -> None:
        payload = message if isinstance(message, bytes) else encode_json(message)
        await self.bus.publish(TOPICS.topic(name, **levels), payload, retain=True)

    async def set(self, **messages: object) -> None:
        """A cluster that is well, but for these."""
        well: dict[str, object] = {
            "orchestrator_state": ORCHESTRATOR,
            "node_state": node_state(),
            "telemetry": telemetry(),
            "metrics": metrics(),
        }
        for name, message in (well | messages).items():
            levels = {"node": "pi-1"} if name in ("node_state", "telemetry") else {}
            levels |= {"model": "m"} if name == "model_state" else {}
            if message is not None:
                await self.say(name, message, **levels)

    async def findings(self) -> list[Finding]:
        heard = await doctor_cluster.listen(self.url, TOPICS)
        # This test retains them, a cluster does not.
        for topic in (TOPICS.topic("telemetry", node="pi-1"), TOPICS.topic("metrics")):
            heard.retained.pop(topic, None)
        return doctor_cluster.judge(heard, TOPICS, "1.0", sees_all=True, remove="clear")


@pytest.fixture
async def stage(url: BrokerUrl, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    stage = Stage(url, monkeypatch)
    async with stage.bus:
        yield stage


async def test_a_cluster_that_is_well(stage: Stage) -> None:
    await stage.set()
    findings = await stage.findings()
    assert healthy(findings), findings
    assert {"orchestrator", "node", "version", "clock", "broker.version"} <= {
        each.check for each in findings
    }


LOST = node_state(state="lost", reason="the broker lost the connection")
HOUR_AGO_MS = time.time_ns() // 10**6 - 3_600_000


@pytest.mark.parametrize(
    ("check", "messages", "says"),
    [
        ("orchestrator.none", {"orchestrator_state": None, "metrics": None}, "announced"),
        ("orchestrator.away", {"orchestrator_state": replace(ORCHESTRATOR, state="lost")}, "desk"),
        ("orchestrator.silent", {"metrics": None}, "nothing comes"),
        ("node.none", {"node_state": None, "telemetry": None}, "no nodes"),
        ("node.lost", {"node_state": LOST}, "pi-1"),
        ("node.runtime", {"node_state": node_state(runtimes={})}, "no runtime"),
        ("node.silent", {"telemetry": None}, "no telemetry"),
        ("node.memory", {"telemetry": telemetry(memory_used_bytes=950_000_000)}, "950 of 1000 MB"),
        ("node.cpu", {"telemetry": telemetry(cpu_others_ratio=0.8)}, "80%"),
        ("node.disk", {"telemetry": telemetry(disk_free_bytes=10**7)}, "10 MB left"),
        (
            "model.failed",
            {
                "model_state": ModelState(
                    state="failed", model="m", generation=1, reason="it needs 9 GB"
                )
            },
            "9 GB",
        ),
        (
            "model.unserved",
            {
                "model_state": ModelState(
                    state="unserved", model="m", generation=1, reason="no node is here"
                )
            },
            "no node is here; jobs for it wait",
        ),
        ("version", {"node_state": node_state(version="0.9")}, "0.9: node pi-1; 1.0"),
        ("clock", {"metrics": metrics(sent_at_ms=HOUR_AGO_MS)}, "refuses requests"),
        ("clock", {"telemetry": telemetry(sent_at_ms=HOUR_AGO_MS)}, "node pi-1"),
        (
            "retained",
            {"model_state": ModelState(state="serving", model="m", generation=1)},
            "no such model",
        ),
    ],
)
async def test_a_cluster_in_which_one_thing_is_wrong(
    stage: Stage, check: str, messages: dict[str, object], says: str
) -> None:
    await stage.set(**messages)
    findings = await stage.findings()
    assert any(says in finding.text for finding in found(findings, check)), findings
    assert all(finding.mend for finding in found(findings, check))


@pytest.mark.parametrize(
    ("host", "busy"), [("shed", False), ("attic", True)], ids=["of one machine", "of two"]
)
async def test_agents_of_one_machine_are_not_its_other_programs(
    stage: Stage, host: str, busy: bool
) -> None:
    # Of two cores each uses nine tenths of one, which the other sees as somebody else's.
    hardware = Hardware(cpu=1.0, cores=2, memory_bytes=10**9, architecture="aarch64")
    used = {"cpu_percent": 90.0, "cpu_others_ratio": 0.55}
    await stage.set(node_state=node_state(hardware=hardware), telemetry=telemetry(**used))
    await stage.say(
        "node_state", node_state(node="pi-2", host=host, hardware=hardware), node="pi-2"
    )
    await stage.say("telemetry", telemetry(node="pi-2", **used), node="pi-2")
    assert bool(found(await stage.findings(), "node.cpu")) == busy


@pytest.mark.parametrize(
    ("version", "old"), [("mosquitto version 1.6.9", True), ("mosquitto version 2.0.11", False)]
)
def test_a_mosquitto_that_is_too_old(version: str, old: bool) -> None:
    heard = doctor_cluster.Heard(sys={"version": version})
    findings = doctor_cluster.judge(heard, TOPICS, "1.0", sees_all=True, remove="clear")
    assert bool(found(findings, "broker.version")) == old


async def test_what_a_login_may_not_hear_is_not_taken_for_missing(stage: Stage) -> None:
    await stage.set(telemetry=None, metrics=None)
    heard = await doctor_cluster.listen(stage.url, TOPICS)
    assert not heard.hears_how_it_does
    findings = doctor_cluster.judge(heard, TOPICS, "1.0", sees_all=False, remove="clear")
    assert healthy(findings), findings
    assert any("hears neither" in finding.text for finding in findings)


async def test_leftovers_are_named_and_their_remedy_works(stage: Stage) -> None:
    await stage.set()
    await stage.say("infer", b"a job that comes again", model="m")
    await stage.say("assignment", b"{}", node="gone")
    await stage.say("artifact_probe", b"\0" * 10, peer="pi-1")
    await stage.bus.publish(f"{TOPICS.root}/old/topic", b"x", retain=True)
    await stage.say("node_state", b"not JSON", node="pi-2")
    leftovers = found(await stage.findings(), "retained")
    assert [each.text.partition(" ")[0].removeprefix(f"{TOPICS.root}/") for each in leftovers] == [
        "artifact/pi-1/probe",
        "model/m/infer",
        "node/gone/assignment",
        "node/pi-2/state",
        "old/topic",
    ]
    for each in leftovers:
        topic = each.mend.rpartition(" ")[2]
        await stage.bus.publish(topic, b"", retain=True)
    assert not found(await stage.findings(), "retained")


async def test_a_bridge_that_is_down(
    tmp_path: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_cluster, "LISTEN_S", 0.3)
    bridge = Bridge(
        remote=BrokerUrl.parse(f"127.0.0.1:{unused_port}"), root=TOPICS.root, name="barn"
    )
    async with Broker(directory=tmp_path, config=BrokerConfig(bridge=bridge)) as broker:
        heard = await doctor_cluster.listen(BrokerUrl.parse(broker.url), TOPICS)
    findings = doctor_cluster.judge(heard, TOPICS, "1.0", sees_all=True, remove="clear")
    (finding,) = found(findings, "broker.bridge")
    assert "barn" in finding.text


async def test_messages_that_were_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_cluster, "LISTEN_S", 0.3)
    monkeypatch.setattr(
        doctor_cluster, "RETAINED_S", 2.5
    )  # $SYS is brought up to date once a second
    config = Altered(changes=(*DEFAULTS, ("connection_messages true", "sys_interval 1")))
    async with Broker(directory=tmp_path, config=config) as broker:
        url = BrokerUrl.parse(broker.url)
        async with doctor_broker.probing(url, TOPICS) as probe:
            assert (await probe.queue()).came < doctor_broker.MANY
        heard = await doctor_cluster.listen(url, TOPICS)
    findings = doctor_cluster.judge(heard, TOPICS, "1.0", sees_all=True, remove="clear")
    assert found(findings, "broker.dropped")


# This machine


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "small"
    directory.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "amp4ec-test", directory],
        capture_output=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip("this process may not mount a small file system")
    yield directory
    subprocess.run(["umount", directory], check=True)


def test_a_disk_that_is_full(small_disk: Path) -> None:
    (finding,) = doctor_machine.check_disk([small_disk / "cache" / "agent"])
    assert finding.level is Level.ERROR


def test_a_small_share_of_a_cpu_and_of_memory(tmp_path: Path) -> None:
    """The kernel's files as a container at 0.2 CPU and 64 MB shows them."""
    proc, group = tmp_path / "proc/self", tmp_path / "sys/fs/cgroup"
    proc.mkdir(parents=True)
    group.mkdir(parents=True)
    (proc / "cgroup").write_text("0::/\n")
    (proc / "mountinfo").write_text("30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (group / "cpu.max").write_text("20000 100000\n")
    (group / "memory.max").write_text(f"{64 << 20}\n")
    (group / "memory.current").write_text(f"{32 << 20}\n")
    (group / "memory.stat").write_text("inactive_file 0\n")
    looks = doctor_machine.Looks((tmp_path,), root=tmp_path)
    (cpu,) = found([*doctor_machine.check_cpu(looks)], "cpu.quota")
    assert "0.2 CPUs" in cpu.text
    assert "80 ms" in cpu.text
    assert found([*doctor_machine.check_memory(looks, {"onnxruntime": "1.20"})], "memory")


def test_a_runtime_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libgomp.so.1: not found')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    (finding,) = doctor_machine.check_runtimes({"onnxruntime": "1.20"})
    assert finding.check == "runtime.broken"
    assert "libgomp.so.1" in finding.text


def test_no_runtime_at_all() -> None:
    (finding,) = doctor_machine.check_runtimes({})
    assert (finding.check, finding.level) == ("runtime.none", Level.NOTE)
    assert "pip install 'amp4ec[agent,onnx]'" in finding.mend


def test_packages_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "picky-1.0.dist-info"
    directory.mkdir()
    (directory / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: picky\nVersion: 1.0\nRequires-Dist: numpy>=999\n"
        "Requires-Dist: click>=1\nRequires-Dist: not-installed-anywhere\n"
        "Requires-Dist: numpy<1; sys_platform == 'win32'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ((package, requirement, have),) = doctor_machine.misfitting("picky")
    assert (package, requirement) == ("picky", "numpy>=999")
    assert have


def test_an_agent_without_packaging_is_still_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    monkeypatch.setattr(doctor_machine, "available_runtimes", dict)
    findings = doctor_machine.examine(doctor_machine.Looks((tmp_path,)), None)
    (unseen,) = [finding for finding in findings if finding.check == "package.unseen"]
    assert (unseen.level, unseen.mend) == (Level.NOTE, "pip install packaging")
    assert {"cpu", "disk"} <= {finding.check.split(".")[0] for finding in findings}


# The command


async def test_the_command_and_its_exit_codes(
    broker: Broker,
    tmp_path: Path,
    unused_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Importing torch to see that it can be takes seconds, and has a test of its own.
    monkeypatch.setattr(doctor_machine, "available_runtimes", dict)

    async def amp4ec(*arguments: str) -> tuple[object, str]:
        places = ("--cache-dir", str(tmp_path), "--state-dir", str(tmp_path))
        code = await asyncio.to_thread(
            cli.main, ["doctor", *arguments, *places], standalone_mode=False
        )
        return code, capsys.readouterr().out

    code, out = await amp4ec("--json", "--broker", f"127.0.0.1:{unused_port}")
    assert code == 3
    document = json.loads(out)
    assert document["ok"] is False
    (finding,) = [each for each in document["findings"] if each["check"] == "broker.unreachable"]
    assert "amp4ec broker" in finding["mend"]
    code, out = await amp4ec("--broker", broker.url)
    assert code == 1
    assert "orchestrator.none" in out
    assert "-> start one: `amp4ec orchestrator`" in out
    assert out.splitlines()[-1].endswith("to mend")

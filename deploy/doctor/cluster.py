"""What the cluster's topics say, and what on them should not be there.

Heard for a few seconds by `listen`; what is made of it is pure.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from deploy.doctor.finding import Finding, error, note, ok, warning
from shared.bus import BrokerUrl, Message, MqttControlBus
from shared.client.status import WATCHED, ClusterStatus, NodeView, Overview
from shared.errors import ProtocolError
from shared.topics import SPECS, Topics

CONNECT_S: Final = 5.0
LISTEN_S: Final = 3.5
"""Telemetry and metrics come once a second."""
RETAINED_S: Final = 1.0
"""For what is retained on topics that carry jobs: they are left again at once, as others' jobs are large."""
CLOCK_WARNING_S: Final = 2.0
CLOCK_ERROR_S: Final = 240.0
"""Of the five minutes that a signed request holds."""
MEMORY_RATIO: Final = 0.9
OTHERS_RATIO: Final = 0.5
DISK_BYTES: Final = 200 << 20
SYS: Final = {
    "$SYS/broker/version": "version",
    "$SYS/broker/publish/messages/dropped": "dropped",
}
_BRIDGES: Final = "$SYS/broker/connection/+/state"
_UNHEARD: Final = note(
    "node",
    "this login hears neither telemetry nor metrics, as an agent's does not: nodes were not looked at",
    "ask with the token of an operator or a monitor",
)


@dataclass(slots=True)
class Heard:
    """What came. `clocks_s` are other wall clocks less ours, by what they belong to."""

    overview: Overview = field(default_factory=Overview)
    clocks_s: dict[str, float] = field(default_factory=dict)
    retained: dict[str, int] = field(default_factory=dict)
    """Topics with something retained, and its size in bytes."""
    broken: dict[str, str] = field(default_factory=dict)
    """Topics with something that is not what their row promises, and what is wrong."""
    sys: dict[str, str] = field(default_factory=dict)
    bridges: dict[str, str] = field(default_factory=dict)

    @property
    def hears_how_it_does(self) -> bool:
        """Whether telemetry or metrics came at all."""
        return bool(self.overview.telemetry) or self.overview.metrics is not None

    def take(self, topics: Topics, message: Message, now_s: float) -> None:
        """One message; `now_s` is wall time."""
        topic = message.topic
        if topic.startswith("$SYS/"):
            text = bytes(message.payload).decode(errors="replace")
            if topic in SYS:
                self.sys[SYS[topic]] = text
            else:
                self.bridges[topic.split("/")[3]] = text
            return
        if message.retain and message.payload:
            self.retained[topic] = len(message.payload)
        try:
            name, levels = topics.accept(topic, len(message.payload))
            if name in WATCHED:
                self.overview.take(name, levels, message)
        except ProtocolError as wrong:
            if message.retain:
                self.broken[topic] = str(wrong)
            return
        if name == "metrics" and self.overview.metrics is not None:
            self._clock("orchestrator", self.overview.metrics.sent_at_ms, now_s)
        elif name == "telemetry" and levels["node"] in self.overview.telemetry:
            node = levels["node"]
            self._clock(f"node {node}", self.overview.telemetry[node].sent_at_ms, now_s)

    def _clock(self, whose: str, sent_at_ms: int, now_s: float) -> None:
        if sent_at_ms:
            self.clocks_s[whose] = sent_at_ms / 1000 - now_s


async def listen(url: BrokerUrl, topics: Topics) -> Heard:
    """Hear the cluster for some seconds.

    Raises:
        BrokerUnreachableError: nobody answers at the address.
    """
    heard = Heard()
    bus = MqttControlBus(
        url,
        client_id=f"amp4ec-doctor-{secrets.token_hex(6)}",
        receive_maximum=1000,
        first_connect_timeout_s=CONNECT_S,
    )

    async def read() -> None:
        async for message in bus.messages():
            heard.take(topics, message, time.time())

    async with bus:
        reader = asyncio.create_task(read(), name="doctor: listen")
        try:
            for name in WATCHED:
                await bus.subscribe(topics.pattern(name))
            for topic in (*SYS, _BRIDGES):
                await bus.subscribe(topic, 0)
            everything = f"{topics.root}/#"
            await bus.subscribe(everything)
            await asyncio.sleep(RETAINED_S)
            # The answer comes after what the broker had to deliver by then, however slow all this is.
            await bus.round_trip()
            await bus.unsubscribe(everything)
            await asyncio.sleep(LISTEN_S)
            await bus.round_trip()
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
    return heard


def judge(
    heard: Heard, topics: Topics, version: str, *, sees_all: bool, remove: str
) -> list[Finding]:
    """Everything that is to be said of it.

    Args:
        heard: what was heard.
        topics: the table.
        version: of this command.
        sees_all: whether the login may read telemetry and metrics; an agent's may not.
        remove: the beginning of a command that clears a retained topic.
    """
    status = heard.overview.snapshot()
    return [
        *_broker(heard),
        *_orchestrator(status, sees_all=sees_all),
        *(_nodes(status) if sees_all else [_UNHEARD]),
        *_models(status),
        *_versions(status, version),
        *_clocks(heard),
        *_leftovers(heard, topics, remove),
    ]


def _broker(heard: Heard) -> Iterator[Finding]:
    version = heard.sys.get("version")
    if version is None:
        yield note(
            "broker.version", "the broker does not say its version (no $SYS, or no right to it)"
        )
    elif version.startswith("mosquitto version ") and version.split()[-1] < "2":
        yield warning(
            "broker.version",
            f"{version}: before 2.0 it has bugs with MQTT 5 that lose messages",
            "install Mosquitto 2.0.11 or later",
        )
    else:
        yield ok("broker.version", version)
    dropped = heard.sys.get("dropped", "0")
    if dropped.isdigit() and int(dropped):
        yield warning(
            "broker.dropped",
            f"the broker has dropped {int(dropped):,} messages since its start: a client was away or slow, "
            "and its queue full",
            "raise max_queued_messages and max_queued_bytes; see which client is slow (`amp4ec status`)",
        )
    for name, state in sorted(heard.bridges.items()):
        if state.strip() == "1":
            yield ok("broker.bridge", f"bridge {name} stands")
        else:
            yield error(
                "broker.bridge",
                f"bridge {name} is down: this broker's nodes and clients are cut off from the cluster",
                "look at the network to the main broker, at its login (`join-token --role bridge`), and at "
                "both brokers' logs",
            )


def _orchestrator(status: ClusterStatus, *, sees_all: bool) -> Iterator[Finding]:
    state = status.orchestrator
    if state is None:
        yield error(
            "orchestrator.none",
            "no orchestrator has announced itself below this root topic",
            "start one: `amp4ec orchestrator`; or give its --root",
        )
    elif state.state != "online":
        yield error(
            "orchestrator.away",
            f"the orchestrator is {state.state}, last on {state.host or 'an unknown host'}: jobs wait",
            "start it again there; its log says why it ended",
        )
    elif status.metrics is None and sees_all:
        yield warning(
            "orchestrator.silent",
            "the orchestrator says it is online, and nothing comes from it",
            f"look whether process {state.pid} on {state.host} is stopped, or out of CPU",
        )
    else:
        yield ok("orchestrator", f"online on {state.host}")


def _nodes(status: ClusterStatus) -> Iterator[Finding]:
    if not status.nodes:
        yield error(
            "node.none", "there are no nodes", "start an agent on each device: `amp4ec agent`"
        )
    for view in status.nodes:
        found = [*_node(view)]
        if found:
            yield from found
        elif view.state.state == "online":
            yield ok("node", f"{view.state.node} is well")
    yield from _neighbours(status)


def _node(view: NodeView) -> Iterator[Finding]:
    name, state, now = view.state.node, view.state, view.telemetry
    if state.state == "lost":
        yield warning(
            "node.lost",
            f"node {name} was lost: {state.reason or 'its connection ended'}",
            f"look at its agent on {state.host or 'its device'} (`systemctl status amp4ec-agent`)",
        )
    if state.state != "online":
        return
    if not state.runtimes:
        yield error(
            "node.runtime",
            f"node {name} has no runtime: it can run nothing",
            "on it: pip install 'amp4ec[agent,onnx]'",
        )
    if now is None:
        yield warning(
            "node.silent",
            f"node {name} is said to be online, and no telemetry comes",
            f"look whether process {state.pid} on {state.host} is stopped, or the network cut",
        )
        return
    if now.memory_limit_bytes and now.memory_used_bytes > MEMORY_RATIO * now.memory_limit_bytes:
        yield warning(
            "node.memory",
            f"node {name} uses {now.memory_used_bytes / 1e6:.0f} of {now.memory_limit_bytes / 1e6:.0f} MB",
            "raise its limit, or serve less there (`amp4ec status` shows its stages)",
        )
    if now.disk_free_bytes is not None and now.disk_free_bytes < DISK_BYTES:
        yield warning(
            "node.disk",
            f"node {name} has {now.disk_free_bytes / 1e6:.0f} MB left for weights",
            "make room there, or a smaller cache elsewhere: `amp4ec agent --cache-dir --cache-size`",
        )


def _neighbours(status: ClusterStatus) -> Iterator[Finding]:
    """What programs that are none of the cluster's take of a machine: its agents see each other as others."""
    hosts: dict[str, list[NodeView]] = {}
    for view in status.online:
        hosts.setdefault(view.state.host or view.state.node, []).append(view)
    for views in hosts.values():
        own = {view.state.node: _used_cpus(view) for view in views}
        all_others = [
            view.telemetry.cpu_others_ratio * _cores(view)
            + own[view.state.node]
            - sum(own.values())
            for view in views
            if view.telemetry is not None and view.telemetry.cpu_others_ratio is not None
        ]
        ratio = max(all_others, default=0.0) / max(map(_cores, views))
        if ratio > OTHERS_RATIO:
            names = ", ".join(sorted(own))
            yield warning(
                "node.cpu",
                f"other programs take {ratio:.0%} of the CPU of the machine of {names}",
                "move them, or declare a smaller share: `amp4ec agent --cpus`",
            )


def _cores(view: NodeView) -> int:
    return 1 if view.state.hardware is None else max(view.state.hardware.cores, 1)


def _used_cpus(view: NodeView) -> float:
    if view.telemetry is None or view.state.hardware is None:
        return 0.0
    return view.telemetry.cpu_percent / 100.0 * view.state.hardware.cpu


def _models(status: ClusterStatus) -> Iterator[Finding]:
    for model in status.models:
        if model.state == "failed":
            yield error(
                "model.failed",
                f"{model.model} is not served: {model.reason}",
                f"`amp4ec plan {model.model} --live --explain` says what would fit",
            )
        elif model.state == "serving":
            yield ok("model", f"{model.model} is served")
        elif model.state == "unserved":
            yield warning(
                "model.unserved",
                f"{model.model} is not served: {model.reason}; jobs for it wait",
                "start an agent that has room for it: `amp4ec agent`",
            )
        else:
            yield note("model", f"{model.model} is {model.state}: {model.reason}")


def _versions(status: ClusterStatus, version: str) -> Iterator[Finding]:
    said = {"this command": version}
    if status.orchestrator is not None:
        said["the orchestrator"] = status.orchestrator.version
    said |= {f"node {view.state.node}": view.state.version for view in status.online}
    by_version: dict[str, list[str]] = {}
    for who, what in said.items():
        if what:
            by_version.setdefault(what, []).append(who)
    if len(by_version) > 1:
        parts = "; ".join(f"{what}: {', '.join(who)}" for what, who in sorted(by_version.items()))
        yield warning(
            "version",
            f"not all run the same version ({parts})",
            "install one version everywhere: the same commit of the clone, then `pip install` as at first",
        )
    elif status.orchestrator is not None:
        yield ok("version", f"all run {version}")


def _clocks(heard: Heard) -> Iterator[Finding]:
    wrong = {who: off for who, off in heard.clocks_s.items() if abs(off) > CLOCK_WARNING_S}
    for who, off in sorted(wrong.items()):
        way = "ahead of" if off > 0 else "behind"
        text = f"the clock of the {who} is {abs(off):,.0f} s {way} this machine's"
        mend = (
            "set both by NTP (`timedatectl set-ntp true`); the one that is wrong is the one to mend"
        )
        if who == "orchestrator" and abs(off) > CLOCK_ERROR_S:
            yield error("clock", f"{text}: on a closed cluster it refuses requests from here", mend)
        else:
            yield warning("clock", text, mend)
    if heard.clocks_s and not wrong:
        most = max(abs(off) for off in heard.clocks_s.values())
        count = len(heard.clocks_s)
        yield ok("clock", f"{count} clock{'s' * (count != 1)} within {most:.1f} s of this one")


def _leftovers(heard: Heard, topics: Topics, remove: str) -> Iterator[Finding]:
    status = heard.overview.snapshot()
    nodes = {view.state.node for view in status.nodes}
    for topic, size in sorted(heard.retained.items()):
        why = heard.broken.get(topic)
        if why is None:
            name, levels = topics.parse(topic)
            why = _stale(name, levels, nodes, status)
        if why is not None:
            yield warning(
                "retained",
                f"{topic} has {size:,} bytes retained that nobody needs: {why}",
                f"{remove} -t {shlex.quote(topic)}",
            )


def _stale(name: str, levels: dict[str, str], nodes: set[str], status: ClusterStatus) -> str | None:
    """Why what is retained there is a leftover; None: it is not, or it cannot be told."""
    if not SPECS[name].retained:
        return "messages of that topic are not to be retained, and this one comes again with each start"
    match name:
        case "assignment" if levels["node"] not in nodes:
            return f"there is no node {levels['node']}"
        case "artifact_probe":
            return "an agent that measured its link did not clear it"
        case "model_state" if status.metrics is not None:
            model = status.model(levels["model"])
            if (
                model is not None
                and model.state == "serving"
                and model.model not in status.metrics.models
            ):
                return "the orchestrator serves no such model"
    return None

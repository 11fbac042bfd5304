"""What containers use as the engine counts it, beside what their agents say of themselves.

The engine's statistics come once a second from each container's cgroup and network interface; agents'
telemetry comes from inside. They are recorded as JSON lines, one per sample, and compared.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from docker.errors import DockerException
from requests.exceptions import RequestException

from deploy.containers.control import NodeContainer
from shared.bus import BrokerUrl, Message, MqttControlBus
from shared.codec import decode_json
from shared.errors import ProtocolError
from shared.messages.node import NodeState, Telemetry
from shared.topics import Topics

CONNECT_S = 5.0
Source = Literal["engine", "agent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at a node. CPU and network count from the container's or the agent's start.

    From the engine: CPU seconds of everything in the container; memory of its cgroup less page cache that can
    be dropped; bytes on its interface, headers included. From the agent: `cpu_s` is summed up from its
    `cpu_percent`; memory as it reads it; the payloads of its data connection.
    """

    at_s: float
    """Seconds since 1970, of this machine, when it was taken or came."""
    node: str
    source: Source
    cpu_s: float
    memory_bytes: int
    received_bytes: int
    sent_bytes: int


def engine_sample(node: str, stats: Mapping[str, Any]) -> Sample | None:
    """The sample of one answer of the engine's statistics; None for a container that does not run."""
    memory, cpu = stats.get("memory_stats") or {}, stats.get("cpu_stats") or {}
    used = memory.get("usage")
    total_ns = (cpu.get("cpu_usage") or {}).get("total_usage")
    if used is None or not total_ns:
        return None
    detail = memory.get("stats") or {}
    # Version 1 of cgroups has the sum over the tree under another name.
    droppable = detail.get("total_inactive_file", detail.get("inactive_file", 0))
    networks = (stats.get("networks") or {}).values()
    return Sample(
        at_s=_seconds(str(stats["read"])),
        node=node,
        source="engine",
        cpu_s=total_ns / 1e9,
        memory_bytes=max(0, int(used) - int(droppable)),
        received_bytes=sum(int(each["rx_bytes"]) for each in networks),
        sent_bytes=sum(int(each["tx_bytes"]) for each in networks),
    )


def _seconds(text: str) -> float:
    """Of RFC 3339 with nanoseconds, of which Python reads six digits."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    moment = dt.datetime.fromisoformat(whole).replace(tzinfo=dt.UTC)
    return moment.timestamp() + float(f"0.{fraction or 0}")


class AgentSamples:
    """Makes samples of telemetry: CPU is told as a share of an interval, so it is summed up here."""

    def __init__(self) -> None:
        self._cpus: dict[str, float] = {}
        self._last: dict[str, tuple[int, float, float]] = {}

    def born(self, state: NodeState) -> None:
        """A birth says how many CPUs the percentages are of."""
        if state.hardware is not None:
            self._cpus[state.node] = state.hardware.cpu

    def take(self, telemetry: Telemetry, at_s: float) -> Sample | None:
        """The sample of one telemetry; None until the node's birth was seen."""
        cpus = self._cpus.get(telemetry.node)
        if cpus is None:
            return None
        incarnation, uptime_s, cpu_s = self._last.get(
            telemetry.node, (telemetry.incarnation, 0.0, 0.0)
        )
        if incarnation != telemetry.incarnation:
            uptime_s, cpu_s = 0.0, 0.0
        cpu_s += telemetry.cpu_percent / 100 * cpus * (telemetry.uptime_s - uptime_s)
        self._last[telemetry.node] = (telemetry.incarnation, telemetry.uptime_s, cpu_s)
        return Sample(
            at_s=at_s,
            node=telemetry.node,
            source="agent",
            cpu_s=cpu_s,
            memory_bytes=telemetry.memory_used_bytes,
            received_bytes=telemetry.network_received_bytes,
            sent_bytes=telemetry.network_sent_bytes,
        )


async def record(
    containers: Sequence[NodeContainer],
    broker: BrokerUrl,
    root: str,
    seconds: float,
    keep: Callable[[Sample], None],
) -> None:
    """Give `keep` every sample of `containers`, from engine and agents, for so many seconds.

    Raises:
        BrokerUnreachableError: nobody answers at the broker's address.
    """
    loop, over = asyncio.get_running_loop(), threading.Event()
    watched = {each.node for each in containers}
    for each in containers:
        threading.Thread(
            target=_follow,
            args=(each, over, lambda sample: loop.call_soon_threadsafe(keep, sample)),
            name=f"usage of {each.node}",
            daemon=True,
        ).start()
    samples, topics = AgentSamples(), Topics(root)
    bus = MqttControlBus(
        broker,
        client_id=f"amp4ec-usage-{uuid.uuid4().hex[:12]}",
        first_connect_timeout_s=CONNECT_S,
    )

    def take(message: Message) -> None:
        name, _ = topics.accept(message.topic, len(message.payload))
        if name == "node_state" and message.payload:
            samples.born(decode_json(message.payload, NodeState))
        elif name == "telemetry":
            sample = samples.take(decode_json(message.payload, Telemetry), time.time())
            if sample is not None and sample.node in watched:
                keep(sample)

    async def receive() -> None:
        async for message in bus.messages():
            try:
                take(message)
            except ProtocolError:
                continue  # somebody else's nonsense; the orchestrator reports it

    try:
        async with bus:
            pump = asyncio.create_task(receive(), name="usage: receive")
            for name in ("node_state", "telemetry"):
                await bus.subscribe(topics.pattern(name))
            await asyncio.sleep(seconds)
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
    finally:
        over.set()


def _follow(each: NodeContainer, over: threading.Event, keep: Callable[[Sample], None]) -> None:
    """In a thread of its own: the engine answers once a second, and its answers block."""
    try:
        for stats in each.container.stats(stream=True, decode=True):
            if over.is_set():
                return
            sample = engine_sample(each.node, stats) if isinstance(stats, dict) else None
            if sample is not None:
                keep(sample)
    except (DockerException, RequestException, RuntimeError):
        return  # the container or the event loop ended: there is nothing more to be told


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One figure of one node over a window, from both sides, and whether they agree.

    `agent` and `engine` are CPUs, bytes or bytes per second. Two figures agree when they differ by
    `TOLERANCE_RATIO` of the engine's, or by less than `least`: what is too little to tell.
    """

    node: str
    figure: str
    unit: str
    agent: float
    engine: float
    least: float

    @property
    def difference_ratio(self) -> float:
        """(agent - engine) / engine; 0 where both are 0."""
        if self.engine == 0.0:
            return 0.0 if self.agent == 0.0 else float("inf")
        return (self.agent - self.engine) / self.engine

    @property
    def agrees(self) -> bool:
        """Whether they do."""
        difference = abs(self.agent - self.engine)
        return difference <= max(TOLERANCE_RATIO * self.engine, self.least)


TOLERANCE_RATIO = 0.1
LEAST_CPUS = 0.01
LEAST_MEMORY_BYTES = 2 * 2**20
LEAST_BYTES_PER_S = 16 * 1024
"""Control messages, acknowledgements and headers that an agent does not count as its traffic."""


def compare(samples: Iterable[Sample]) -> list[Agreement]:
    """Both sides of every node over the time that both saw it; nodes that only one saw are left out."""
    by_node: dict[str, dict[Source, list[Sample]]] = {}
    for sample in samples:
        by_node.setdefault(sample.node, {}).setdefault(sample.source, []).append(sample)
    found: list[Agreement] = []
    for node, sides in sorted(by_node.items()):
        agent, engine = sides.get("agent", []), sides.get("engine", [])
        begin = max((side[0].at_s for side in (agent, engine) if side), default=0.0)
        end = min((side[-1].at_s for side in (agent, engine) if side), default=0.0)
        inside, outside = _within(agent, begin, end), _within(engine, begin, end)
        if len(inside) < 2 or len(outside) < 2:
            continue
        of = {"agent": inside, "engine": outside}
        found += [
            Agreement(
                node=node,
                figure=figure,
                unit=unit,
                agent=value(of["agent"]),
                engine=value(of["engine"]),
                least=least,
            )
            for figure, unit, least, value in (
                ("cpu", "CPU", LEAST_CPUS, lambda side: _rate(side, "cpu_s")),
                ("memory", "B", LEAST_MEMORY_BYTES, _memory),
                ("received", "B/s", LEAST_BYTES_PER_S, lambda s: _rate(s, "received_bytes")),
                ("sent", "B/s", LEAST_BYTES_PER_S, lambda side: _rate(side, "sent_bytes")),
            )
        ]
    return found


def _within(samples: Sequence[Sample], begin_s: float, end_s: float) -> list[Sample]:
    # A sample more on either side: the sides do not look at the same moments.
    return [each for each in samples if begin_s - 1.0 <= each.at_s <= end_s + 1.0]


def _rate(samples: Sequence[Sample], name: str) -> float:
    first, last = samples[0], samples[-1]
    change: float = getattr(last, name) - getattr(first, name)
    return change / max(last.at_s - first.at_s, 1e-6)


def _memory(samples: Sequence[Sample]) -> float:
    return sum(each.memory_bytes for each in samples) / len(samples)

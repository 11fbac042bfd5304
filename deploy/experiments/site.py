"""A cluster to measure, and the figures of a stretch of load on it: the same for every experiment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from typing import NamedTuple, Self

from deploy.cluster import Cluster
from deploy.experiments.case import Engine, Lab, Measured
from deploy.experiments.load import Choose, Load, Stretch, drawn
from deploy.experiments.photos import photos
from deploy.experiments.watch import Part, Watch, bytes_through, watching
from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from deploy.serve import stop
from orchestrator.core.dispatch_settings import default_window
from shared.client import Client, ClusterStatus
from shared.messages.model import ModelState

MODEL = "mobilenet_v2"
PROFILE = (1.0, 0.6, 0.4)
"""The paper's devices, in CPUs: High, Medium, Low."""
MIB = 1024 * 1024
BATCH = 32
BATCHES_UNDER_WAY = 4
"""Of batches of 32; with two the nodes had a quarter of their CPU left, with eight nothing is gained."""
POOL = 256
"""Different photographs that are sent in turn: with the cache off all are run."""
IMAGES = 1024
"""Different photographs that are drawn from where a cache is measured."""
CACHE_BYTES = 64 * MIB
SERVE_S = 2.0
"""A model is loaded, or replaced."""
START_S = 6.0
"""Broker, orchestrator and agents start; the first time ever the agents measure themselves as well."""
TORCH_START_S = 14.0
"""The same where each agent imports torch, at a share of 0.2 CPU."""
_CALIBRATION_S = 180.0
_STOP_S = 60.0
_TIMEOUT_S = 300.0


def memory_bytes(share: float) -> int:
    """What a device of the paper with so many CPUs has: 1 GB, or 512 MB."""
    return (1024 if share >= 1.0 else 512) * MIB


def flags(**values: object) -> ServeFlags:
    """Random weights, and patience: a small share loads slowly."""
    return ServeFlags(weights="none", timeout_s=_TIMEOUT_S, **values)  # type: ignore[arg-type]


@dataclass(slots=True)
class Site:
    """A running cluster with a client; `shares` are its agents' CPUs as in the paper, before `scale`."""

    lab: Lab
    cluster: Cluster
    client: Client
    shares: Mapping[str, float]
    new: bool = True
    """Whether it was started for the case that has it now."""
    _pools: dict[int, list[bytes]] = field(default_factory=dict)

    async def serve(self, model: str, how: ServeFlags) -> ModelState:
        """Have it served; its state then. What a cache of it had before is gone.

        Raises:
            ChildEndedError: it was not; says why.
        """
        status = await self.client.status(wait_s=0.5)
        for other in status.models:
            if other.model != model or how.cache_bytes:
                await stop(self.cluster.url, self.cluster.root, other.model, _STOP_S)
        await self.cluster.serve(model, how)
        return await self.cluster.wait_for_model(model)

    def load(self, model: str, under_way: int) -> Load:
        """Photographs of the pool in turn, one in a request."""
        return Load(self.client, model, self.in_turn(1), under_way)

    def in_turn(self, batch: int) -> Choose:
        """The photographs of the pool in turn, `batch` in a request."""
        turns = cycle(self.pool(POOL))
        return lambda: list(islice(turns, batch))

    def drawn(self, batch: int, count: int, exponent: float) -> Choose:
        """Of `count` photographs some come again and again: drawn by Zipf's law, `batch` in a request."""
        return drawn(self.pool(count), batch, exponent, self.lab.settings.seed)

    def pool(self, count: int) -> list[bytes]:
        """So many different photographs."""
        if count not in self._pools:
            self._pools[count] = photos(count, self.lab.settings.seed)
        return self._pools[count]

    def parts(self) -> dict[str, Part]:
        """All processes of the cluster that run now."""
        scale = self.lab.settings.scale
        found = {
            name: Part(agent.pid, self.shares[name] * scale, memory_bytes(self.shares[name]))
            for name, agent in self.cluster.agents.items()
            if agent.alive
        }
        assert self.cluster.orchestrator is not None
        found["orchestrator"] = Part(self.cluster.orchestrator.pid, 0.0, 0)
        found["broker"] = Part(self.broker_pid, 0.0, 0)
        return found

    @property
    def broker_pid(self) -> int:
        """The broker's process on this machine."""
        if isinstance(self.cluster, LocalCluster):
            return self.cluster.broker.pid
        from deploy.containers.cluster import DockerBroker

        broker = self.cluster.broker
        assert isinstance(broker, DockerBroker)
        return broker.container.pid

    @property
    def agents(self) -> list[str]:
        """Their names."""
        return list(self.cluster.agents)

    def window(self, state: ModelState) -> int:
        """Single images that keep all pipelines of a plan busy."""
        return sum(default_window(len(pipeline.stages)) for pipeline in state.pipelines)


@asynccontextmanager
async def site(
    lab: Lab,
    shares: Sequence[float] = PROFILE,
    *,
    orchestrator_arguments: Sequence[str] = (),
    agent_arguments: Sequence[str] = (),
    runtime: str = "onnxruntime",
    isolated: bool = False,
    fresh: bool = False,
) -> AsyncIterator[Site]:
    """A cluster whose agents have measured themselves, so that nothing does so while it is measured.

    It stays for the next case that needs the same one.

    Args:
        lab: of the round.
        shares: the agents' CPUs as in the paper; the lab's scale is applied here.
        orchestrator_arguments: further flags of `amp4ec orchestrator`.
        agent_arguments: further flags of `amp4ec agent`.
        runtime: the only one that the agents have, so that no other is in their memory.
        isolated: each node in a network of its own.
        fresh: one that nobody had before or has afterwards, since its nodes come or go.
    """
    key = _Key(
        tuple(shares),
        tuple(orchestrator_arguments),
        (f"--runtime={runtime}", *agent_arguments),
        runtime,
        isolated,
    )
    found = lab.bench
    new = fresh or not isinstance(found, _Standing) or found.key != key
    if new:
        await lab.clear()
        lab.bench = found = await _Standing.start(lab, key)
    assert isinstance(found, _Standing)
    try:
        yield replace(found.site, lab=lab, new=new)
    finally:
        if fresh:
            await lab.clear()


class _Key(NamedTuple):
    """What tells one cluster from another."""

    shares: tuple[float, ...]
    orchestrator_arguments: tuple[str, ...]
    agent_arguments: tuple[str, ...]
    runtime: str
    isolated: bool


def _make(lab: Lab, key: _Key) -> Cluster:
    cpus = lab.settings.cpus(key.shares)
    if lab.settings.engine is Engine.LOCAL:
        return LocalCluster(
            lab.directory / "cluster",
            agents=len(key.shares),
            cpus=cpus,
            agent_arguments=key.agent_arguments,
            orchestrator_arguments=key.orchestrator_arguments,
            isolated=key.isolated,
            log_level="warning",
        )
    # An extra: whoever runs processes needs no docker.
    from deploy.containers.cluster import DockerCluster
    from deploy.containers.images import AgentKind
    from deploy.containers.profile import Node

    nodes = [
        Node(name=f"agent-{index}", cpus=cpu, memory_bytes=memory_bytes(share))
        for index, (cpu, share) in enumerate(zip(cpus, key.shares, strict=True), 1)
    ]
    return DockerCluster(
        lab.directory / "cluster",
        nodes,
        kind=AgentKind(key.runtime),
        agent_arguments=key.agent_arguments,
        orchestrator_arguments=key.orchestrator_arguments,
        log_level="warning",
        on_step=lab.say,
    )


@dataclass(slots=True)
class _Standing:
    """A cluster that runs; `key` is what was asked for."""

    key: _Key
    site: Site
    stack: AsyncExitStack

    @classmethod
    async def start(cls, lab: Lab, key: _Key) -> Self:
        lab.say("starting broker, orchestrator and agents")
        async with AsyncExitStack() as stack:
            cluster = _make(lab, key)
            await stack.enter_async_context(cluster)
            await cluster.wait_for_nodes()
            await cluster.wait_for("calibrations", calibrated, _CALIBRATION_S)
            client = await stack.enter_async_context(cluster.client())
            names = dict(zip(cluster.agents, key.shares, strict=True))
            made, running = Site(lab, cluster, client, names), stack.pop_all()
        return cls(key, made, running)

    async def close(self) -> None:
        """End all of it."""
        await self.stack.aclose()


def calibrated(status: ClusterStatus) -> bool:
    """Whether every node that is there has measured itself."""
    return all(node.state.calibration for node in status.online)


async def measure(
    here: Site, model: str, *, batch: int = 1, choose: Choose | None = None
) -> Measured:
    """Warm up, measure saturated, and with one request under way for a tenth of the time.

    The figures are named as `deploy.experiments.table_one` explains them.

    Args:
        here: the cluster.
        model: what is served there.
        batch: images of a request.
        choose: gives a request's images; None for those of the pool in turn.
    """
    settings = here.lab.settings
    state = await here.cluster.wait_for_model(model)
    chosen = choose or here.in_turn(batch)
    many = BATCHES_UNDER_WAY if batch > 1 else here.window(state)
    async with Load(here.client, model, chosen, many) as load:
        await load.stretch(settings.warm_up_s)
        broker = here.broker_pid
        read = bytes_through(broker)
        state = await here.cluster.wait_for_model(model)
        async with watching(here.parts()) as watch:
            busy = await load.stretch(settings.seconds)
        sent = bytes_through(broker)
    figures = saturated(here, busy, watch)
    figures["predicted_per_s"] = state.predicted.throughput_per_s
    if read is not None and sent is not None and busy.images:
        figures["network_kb_per_image"] = (sent - read) / 1e3 / busy.images
    async with Load(here.client, model, chosen, 1) as load:
        await load.stretch(settings.warm_up_s / 10)
        single = await load.stretch(settings.alone_s)
    figures["latency_ms"] = single.latency_ms()
    figures["latency_p95_ms"] = single.latency_ms(0.95)
    if batch > 1:
        # The images of a batch wait for each other, and that is no communication.
        async with Load(here.client, model, here.in_turn(1), 1) as load:
            single = await load.stretch(settings.alone_s / 3)
    figures["communication_ms"] = single.transit_ms()
    state = await here.cluster.wait_for_model(model)
    return Measured(figures=figures, notes=notes(state))


def saturated(here: Site, busy: Stretch, watch: Watch) -> dict[str, float | None]:
    """Figures of a stretch with all pipelines busy."""
    agents = here.agents
    cpus = sum(here.shares[name] for name in agents) * here.lab.settings.scale
    images = max(busy.images, 1)
    return {
        "throughput_per_s": busy.per_s,
        "busy_latency_ms": busy.latency_ms(),
        "busy_latency_p95_ms": busy.latency_ms(0.95),
        "cpu_percent": 100.0 * watch.cpu_s(*agents) / watch.seconds / cpus,
        "memory_mb": watch.memory_mb(*agents),
        "other_memory_mb": watch.memory_mb("orchestrator", "broker"),
        "stability": watch.stability(*agents),
        "scheduling_ms": 1e3 * watch.cpu_s("orchestrator") / images,
        "broker_cpu_ms": 1e3 * watch.cpu_s("broker") / images,
        "cached_ratio": busy.cached_ratio(),
        "exact_ratio": busy.exact_ratio(),
        "failed": float(busy.failed),
    }


def notes(state: ModelState) -> dict[str, str]:
    """The plan that was in force."""
    plan = " + ".join(
        " > ".join(f"{row.node}[{row.blocks[0]}:{row.blocks[1]}]" for row in pipeline.stages)
        for pipeline in state.pipelines
    )
    return {"plan": plan, "runtime": state.runtime, "level": state.level}

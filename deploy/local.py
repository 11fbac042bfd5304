"""A whole cluster on this machine: Mosquitto, an orchestrator and agents as child processes.

`amp4ec up`, the quickstart, the cluster tests and the benchmarks all run this one::

    async with LocalCluster(directory, cpus=[0.5, 0.3, 0.2]) as cluster:
        await cluster.serve("mobilenet_v2", ServeFlags(weights="none"))
        async with cluster.client() as client:
            print(await client.infer("mobilenet_v2", "cat.jpg"))
        await cluster.kill_agent("agent-1")

With `isolated=True` each agent and the orchestrator have a network of their own, which `cluster.network` cuts
and slows by name (`deploy.network`).

Every part has a log and a directory of its own below `directory`. Leaving ends every child.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker.config import BrokerConfig
from broker.launcher import Broker
from deploy.cgroup import CpuLimit, available_cpus, limit_cpu
from deploy.cluster import Cluster
from deploy.network import Network
from deploy.supervisor import Child
from shared.errors import ConfigurationError
from shared.profile import DEFAULT_ZONE
from shared.topics import DEFAULT_ROOT


@dataclass(frozen=True, slots=True)
class _Launch:
    """How an agent was started."""

    cpu: float | None
    arguments: Sequence[str]
    wrap: Sequence[str]


class LocalCluster(Cluster):
    """Broker, orchestrator and agents of one's own as processes. Use with `async with`."""

    agents: dict[str, Child]
    orchestrator: Child | None

    def __init__(
        self,
        directory: Path,
        *,
        agents: int = 3,
        cpus: Sequence[float] | None = None,
        zones: Sequence[str] | None = None,
        port: int = 0,
        root: str = DEFAULT_ROOT,
        log_level: str = "info",
        agent_arguments: Sequence[str] = (),
        orchestrator_arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        isolated: bool = False,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            directory: for logs, caches and what the broker and the orchestrator keep; made when missing.
            agents: how many to start.
            cpus: each agent's CPU share, enforced by cgroup. Without it each gets an equal part of this
                machine, enforced where that may be done and counted on where not.
            zones: each agent's trust zone.
            port: the broker's, on loopback; 0 for any.
            root: the root topic.
            log_level: of every child.
            agent_arguments: further flags of `amp4ec agent`.
            orchestrator_arguments: further flags of `amp4ec orchestrator`.
            environment: further variables of every child.
            isolated: every agent and the orchestrator in a network namespace of its own (`network`). The
                broker listens on an address that only they and this machine reach, and lets anybody in.

        Raises:
            ConfigurationError: not one share or zone per agent.
        """
        if zones is not None and len(zones) != agents:
            raise ConfigurationError(
                "zones do not fit the agents", expected=str(agents), got=str(len(zones))
            )
        if cpus is not None and len(cpus) != agents:
            raise ConfigurationError(
                "CPU shares do not fit the agents", expected=str(agents), got=str(len(cpus))
            )
        super().__init__(directory, root=root, log_level=log_level, environment=environment)
        self._broker = Broker(directory=directory / "broker", port=port)
        self._port = port
        self._isolated = isolated
        self._network: Network | None = None
        self.agents = {}
        self._launches: dict[str, _Launch] = {}
        self.orchestrator = None
        self.standbys: dict[str, Child] = {}
        self._shares: Sequence[float | None] = cpus if cpus is not None else [None] * agents
        self._zones = [DEFAULT_ZONE] * agents if zones is None else list(zones)
        self._equal_share = available_cpus() / max(agents, 1)
        self._agent_arguments = tuple(agent_arguments)
        self._orchestrator_arguments = tuple(orchestrator_arguments)

    @property
    def broker(self) -> Broker:
        """The broker, a child process."""
        return self._broker

    @property
    def network(self) -> Network:
        """What cuts and slows the nodes of an isolated cluster, named like their agents, and `orchestrator`.

        Raises:
            ConfigurationError: it is not isolated, or not started.
        """
        if self._network is None:
            raise ConfigurationError(
                "this cluster has no network of its own", expected="isolated=True"
            )
        return self._network

    async def start(self) -> None:
        """Start the broker, the orchestrator and the agents; returns when their processes run.

        Raises:
            BrokerError: the broker does not start, for instance since its port is taken.
            ConfigurationError: CPU shares or networks were asked for and may not be had.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._isolated:
            self._network = await asyncio.to_thread(Network)
            self._broker = Broker(
                directory=self.directory / "broker",
                port=self._port,
                config=BrokerConfig(bind=self._network.host),
            )
        await self.broker.start()
        await self.start_orchestrator()
        for share, zone in zip(self._shares, self._zones, strict=True):
            await self.add_agent(cpu=share, arguments=[f"--zone={zone}"])

    async def stop(self) -> None:
        """End every child: agents and orchestrator leave while there is a broker to say it to."""
        await asyncio.gather(*(agent.stop() for agent in self.agents.values()))
        # The standbys first: none of them takes over what ends as well.
        await asyncio.gather(*(standby.stop() for standby in self.standbys.values()))
        if self.orchestrator is not None:
            await self.orchestrator.stop()
        await self.broker.stop()
        if self._network is not None:
            await asyncio.to_thread(self._network.close)
            self._network = None

    async def start_orchestrator(self) -> Child:
        """Start the orchestrator; it finds the state of the one before."""
        self.orchestrator = await self._start_orchestrator("orchestrator", "orchestrator")
        return self.orchestrator

    async def start_standby(
        self, name: str | None = None, *, state_dir: str | None = None
    ) -> Child:
        """Start one more orchestrator, which takes over when the leader is gone.

        Args:
            name: of its log, its state directory and in `standbys`; `standby-N` when None.
            state_dir: another name below the cluster's directory, such as the leader's `orchestrator`.

        Raises:
            ConfigurationError: a standby of that name runs.
        """
        name = name or next(
            free for n in itertools.count(1) if (free := f"standby-{n}") not in self.standbys
        )
        earlier = self.standbys.get(name)
        if earlier is not None and earlier.alive:
            raise ConfigurationError(f"standby {name} runs already", got=f"process {earlier.pid}")
        self.standbys[name] = await self._start_orchestrator(name, state_dir or name)
        return self.standbys[name]

    async def _start_orchestrator(self, name: str, state_dir: str) -> Child:
        arguments = ["orchestrator", "--state-dir", str(self.directory / state_dir)]
        return await Child.start(
            name,
            [*arguments, *self._common("orchestrator"), *self._orchestrator_arguments],
            self.directory / f"{name}.log",
            environment=self._environment,
            wrap=await self._within(name),
        )

    async def add_agent(
        self,
        name: str | None = None,
        cpu: float | None = None,
        *,
        arguments: Sequence[str] = (),
        wrap: Sequence[str] = (),
    ) -> Child:
        """Start one more agent, or one of a name that was there before.

        Args:
            name: the node's name; `agent-N` when None.
            cpu: its share, enforced by cgroup; None for an equal part, enforced where that may be done.
            arguments: further flags of `amp4ec agent`; they count more than what stands here.
            wrap: what its command line begins with, as in `Child.start`.

        Raises:
            ConfigurationError: a share was asked for and may not be enforced, or that agent runs.
        """
        name = name or self._free_name()
        earlier = self.agents.get(name)
        if earlier is not None and earlier.alive:
            raise ConfigurationError(f"agent {name} runs already", got=f"process {earlier.pid}")
        limit = await asyncio.to_thread(self._limit, name, cpu)
        line = ["agent", "--name", name, "--cache-dir", str(self.directory / name)]
        if limit is None:
            # Not enforced, but counted on, or each agent would plan with the whole machine.
            line += ["--cpus", f"{self._equal_share:g}"]
        try:
            agent = await Child.start(
                name,
                [*line, *self._common(name), *self._agent_arguments, *arguments],
                self.directory / f"{name}.log",
                limit=limit,
                environment=self._environment,
                wrap=[*await self._within(name), *wrap],
            )
        except BaseException:
            if limit is not None:
                limit.remove()
            raise
        self.agents[name] = agent
        self._launches[name] = _Launch(cpu, arguments, wrap)
        return agent

    async def restart_agent(self, name: str) -> Child:
        """Start an agent that ended again, with what it had: share, cache, flags.

        Raises:
            ConfigurationError: there was none of that name, or it runs.
        """
        launch = self._launches.get(name)
        if launch is None:
            raise ConfigurationError(
                f"there was no agent {name}", expected=" or ".join(self._launches), got=name
            )
        return await self.add_agent(name, launch.cpu, arguments=launch.arguments, wrap=launch.wrap)

    async def limit_agent(
        self, name: str, *, cpus: float | None = None, memory_bytes: int | None = None
    ) -> None:
        """Give a running agent another CPU share.

        Raises:
            ConfigurationError: there is no such agent, nothing limits it, or memory is to be limited.
        """
        agent = self.agents.get(name)
        if agent is None or memory_bytes is not None or (cpus is not None and agent.limit is None):
            raise ConfigurationError(
                f"agent {name} cannot be limited so",
                expected="a CPU share of an agent in a cgroup; containers take memory limits, too",
                got=f"{cpus} CPUs, {memory_bytes} bytes",
            )
        if cpus is not None and agent.limit is not None:
            agent.limit = await asyncio.to_thread(agent.limit.changed, cpus)

    def _any_orchestrator(self) -> bool:
        return any(c.alive for c in (self.orchestrator, *self.standbys.values()) if c is not None)

    async def _within(self, node: str) -> Sequence[str]:
        """What a command line begins with that shall run on `node`."""
        if self._network is None:
            return ()
        return await asyncio.to_thread(self._network.entry, node)

    def _limit(self, name: str, cpu: float | None) -> CpuLimit | None:
        if cpu is not None:
            return limit_cpu(name, cpu)
        try:
            return limit_cpu(name, self._equal_share)
        except ConfigurationError as error:
            self.cpu_refused = str(error)
            return None

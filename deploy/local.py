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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from broker.config import BrokerConfig
from broker.launcher import Broker
from deploy.cgroup import CpuLimit, available_cpus, limit_cpu
from deploy.flags import ServeFlags
from deploy.network import Network
from deploy.supervisor import Child, child_environment, command
from shared.bus import BrokerUrl
from shared.client import Client, ClusterStatus
from shared.errors import Amp4ecError, ConfigurationError
from shared.messages.model import ModelState
from shared.profile import DEFAULT_ZONE
from shared.topics import DEFAULT_ROOT

POLL_S = 0.1


class ChildEndedError(Amp4ecError):
    """A child that was needed ended; the message has the end of its log."""


class LocalCluster:
    """Broker, orchestrator and agents of one's own. Use with `async with`."""

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
        self.directory = directory
        self.root = root
        self.broker = Broker(directory=directory / "broker", port=port)
        self._port = port
        self._isolated = isolated
        self._network: Network | None = None
        self.agents: dict[str, Child] = {}
        self.orchestrator: Child | None = None
        """The one that was started to lead; after a take-over a standby does."""
        self.standbys: dict[str, Child] = {}
        self.cpu_refused = ""
        """Why no CPU limit is enforced, where none was asked for and none may be set."""
        self._shares: Sequence[float | None] = cpus if cpus is not None else [None] * agents
        self._zones = [DEFAULT_ZONE] * agents if zones is None else list(zones)
        self._equal_share = available_cpus() / max(agents, 1)
        self._log_level = log_level
        self._agent_arguments = tuple(agent_arguments)
        self._orchestrator_arguments = tuple(orchestrator_arguments)
        self._environment = dict(environment or {})

    @property
    def url(self) -> BrokerUrl:
        """The broker's address, as an operator has it."""
        return BrokerUrl.parse(self.address("operator"))

    def address(self, name: str) -> str:
        """The broker's address as `name` has it: an agent, `orchestrator`, `operator` or `client`."""
        del name  # an open broker asks nobody
        return self.broker.url

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

    def client(self) -> Client:
        """A client of this cluster, to be used with `async with`."""
        return Client(self.address("client"), root=self.root)

    async def start(self) -> None:
        """Start the broker, the orchestrator and the agents; returns when their processes run.

        Raises:
            BrokerError: the broker does not start, for instance since its port is taken.
            ConfigurationError: CPU shares or networks were asked for and may not be had.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._isolated:
            self._network = await asyncio.to_thread(Network)
            self.broker = Broker(
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

    async def kill_orchestrator(self) -> None:
        """SIGKILL to the orchestrator."""
        if self.orchestrator is not None:
            await self.orchestrator.kill()
            self.orchestrator = None

    async def restart_orchestrator(self, arguments: Sequence[str] | None = None) -> Child:
        """End the orchestrator as somebody who installs a new version would, and start it again.

        Args:
            arguments: its further flags from now on; None for those that it had.
        """
        if arguments is not None:
            self._orchestrator_arguments = tuple(arguments)
        if self.orchestrator is not None:
            await self.orchestrator.stop()
        return await self.start_orchestrator()

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
        return agent

    async def kill_agent(self, name: str) -> None:
        """SIGKILL to an agent."""
        await self.agents[name].kill()

    async def stop_agent(self, name: str) -> int:
        """SIGTERM to an agent; its exit status."""
        return await self.agents[name].stop()

    async def serve(
        self, model: str, flags: ServeFlags, *, on_line: Callable[[str], None] | None = None
    ) -> None:
        """Ask for `model` to be served, in a child of its own; returns when it is.

        Args:
            model: as `amp4ec serve` takes it.
            flags: as `amp4ec serve` takes them.
            on_line: gets each line of progress.

        Raises:
            ChildEndedError: it was not served; the message has the reason.
        """
        process = await asyncio.create_subprocess_exec(
            *command("serve", model, *self._common("operator", "warning"), *flags.arguments()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=child_environment(self._environment),
            start_new_session=True,
        )
        lines: list[str] = []
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                lines.append(line.decode(errors="replace").rstrip())
                if on_line is not None:
                    on_line(lines[-1])
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if status != 0:
            reason = lines[-1].removeprefix("error: ") if lines else f"exit status {status}"
            raise ChildEndedError(f"{model} is not served: {reason}")

    async def wait_for(
        self, what: str, holds: Callable[[ClusterStatus], bool], timeout_s: float = 30.0
    ) -> ClusterStatus:
        """Wait until the cluster's status is as wanted.

        Args:
            what: what is waited for, for the error.
            holds: says whether a status is as wanted.
            timeout_s: how long to wait.

        Raises:
            ChildEndedError: the time ran out, or the orchestrator ended by itself.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        async with self.client() as client:
            while True:
                status = await client.status(wait_s=0.0)
                if holds(status):
                    return status
                if self.orchestrator is not None and not self._any_orchestrator():
                    raise ChildEndedError(
                        f"the orchestrator ended with status "
                        f"{self.orchestrator.process.returncode}; the end of its log:\n"
                        f"{self.orchestrator.log_tail()}"
                    )
                if loop.time() > deadline:
                    raise ChildEndedError(
                        f"waited {timeout_s:g} s for {what}", expected=what, got=_brief(status)
                    )
                await asyncio.sleep(POLL_S)

    async def wait_for_model(
        self, name: str, *, newer_than: int = -1, timeout_s: float = 60.0
    ) -> ModelState:
        """Wait until a model is served, by a generation above `newer_than`; its state.

        Raises:
            ChildEndedError: the time ran out.
        """

        def served(status: ClusterStatus) -> bool:
            state = status.model(name)
            return state is not None and state.state == "serving" and state.generation > newer_than

        wanted = f"{name} to be served" + (f" anew after {newer_than}" if newer_than >= 0 else "")
        state = (await self.wait_for(wanted, served, timeout_s)).model(name)
        assert state is not None
        return state

    async def wait_for_nodes(self, count: int | None = None, timeout_s: float = 60.0) -> None:
        """Wait until `count` agents (all, when None) are online, and the orchestrator.

        Raises:
            ChildEndedError: the time ran out.
        """
        wanted = len(self.agents) if count is None else count
        await self.wait_for(
            f"{wanted} agents and an orchestrator online",
            lambda status: (
                len(status.online) >= wanted
                and status.orchestrator is not None
                and status.orchestrator.state == "online"
            ),
            timeout_s,
        )

    async def __aenter__(self) -> Self:
        """Start everything; see `start`."""
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End everything."""
        await self.stop()

    def _any_orchestrator(self) -> bool:
        return any(c.alive for c in (self.orchestrator, *self.standbys.values()) if c is not None)

    async def _within(self, node: str) -> Sequence[str]:
        """What a command line begins with that shall run on `node`."""
        if self._network is None:
            return ()
        return await asyncio.to_thread(self._network.entry, node)

    def _common(self, name: str, log_level: str | None = None) -> list[str]:
        level = log_level or self._log_level
        return ["--broker", self.address(name), "--root", self.root, "--log-level", level]

    def _free_name(self) -> str:
        number = 1
        while f"agent-{number}" in self.agents:
            number += 1
        return f"agent-{number}"

    def _limit(self, name: str, cpu: float | None) -> CpuLimit | None:
        if cpu is not None:
            return limit_cpu(name, cpu)
        try:
            return limit_cpu(name, self._equal_share)
        except ConfigurationError as error:
            self.cpu_refused = str(error)
            return None


def _brief(status: ClusterStatus) -> str:
    orchestrator = status.orchestrator.state if status.orchestrator else "none"
    nodes = ", ".join(f"{node.state.node} {node.state.state}" for node in status.nodes) or "none"
    models = ", ".join(f"{model.model} {model.state}" for model in status.models) or "none"
    return f"orchestrator: {orchestrator}; nodes: {nodes}; models: {models}"

"""What every cluster of ours can do, whatever its parts run in: processes (`deploy.local`) or containers.

`amp4ec up`, the experiments and the tests take either: parts that are killed, paused and limited by name, a
network that is cut and slowed by name where there is one, and the same ways to serve and to wait.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Protocol, Self

from deploy.flags import ServeFlags
from deploy.page_address import page_address
from deploy.supervisor import child_environment, command
from shared.bus import BrokerUrl
from shared.client import Client, ClusterStatus
from shared.errors import Amp4ecError
from shared.messages.model import ModelState
from shared.topics import DEFAULT_ROOT

POLL_S = 0.1


class ChildEndedError(Amp4ecError):
    """A part that was needed ended; the message has the end of its log."""


class Part(Protocol):
    """A running agent or orchestrator; `log` is the file that has what it wrote."""

    @property
    def name(self) -> str:
        """The node's name, or the part's."""

    @property
    def log(self) -> Path:
        """What it wrote to standard output and error."""

    @property
    def pid(self) -> int:
        """Its process id on the machine that it runs on."""

    @property
    def alive(self) -> bool:
        """Whether it has not ended, as far as was noticed."""

    @property
    def limits(self) -> str:
        """What it is limited to, for people; empty where it is not."""

    async def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM, and SIGKILL when that is not obeyed in time; the exit status."""

    async def kill(self) -> int:
        """SIGKILL; the exit status."""

    async def ended(self) -> int:
        """Wait for its end; the exit status, negative for a signal."""

    def why(self) -> str:
        """What is known of its end beyond the exit status, such as that memory ran out; mostly empty."""

    def freeze(self, *, frozen: bool) -> None:
        """Let it stand still, or go on: alive for the kernel, dead for everybody else."""

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the log, indented."""


class BrokerPart(Protocol):
    """A cluster's broker, as the operator's machine sees it."""

    @property
    def url(self) -> str:
        """How to reach it from this machine."""

    @property
    def port(self) -> int:
        """The port of that address."""

    @property
    def log_file(self) -> Path:
        """Where it writes."""

    async def wait(self) -> int:
        """Wait until it ends; its exit status, negative for a signal."""

    async def restart(self) -> None:
        """Stop it, and start it again on the same port."""


class Links(Protocol):
    """A network whose nodes are cut off and slowed by name."""

    def cut(self, node: str) -> None:
        """Let every packet from and to `node` vanish; connections stay as they are, and hear nothing."""

    def heal(self, node: str) -> None:
        """Undo `cut`."""

    def rate(self, node: str, bytes_per_s: float) -> None:
        """Let through `bytes_per_s` at most, in each direction."""

    def unrate(self, node: str) -> None:
        """Undo `rate`."""


class Cluster(ABC):
    """Broker, orchestrator and agents of one's own. Use with `async with`."""

    agents: Mapping[str, Part]
    orchestrator: Part | None
    """The one that was started to lead; after a take-over a standby does."""
    _orchestrator_arguments: tuple[str, ...]
    cpu_refused: str = ""
    """Why no CPU limit is enforced, where none was asked for and none may be set."""
    kill_command: ClassVar[str] = "kill -9 {pid}"
    """What somebody types to see a loss; with `{pid}` and `{name}`."""

    def __init__(
        self,
        directory: Path,
        *,
        root: str = DEFAULT_ROOT,
        log_level: str = "info",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            directory: for logs, caches and what the broker and the orchestrator keep; made when missing.
            root: the root topic.
            log_level: of every part.
            environment: further variables of every part.
        """
        self.directory = directory
        self.root = root
        self._log_level = log_level
        self._environment = dict(environment or {})

    @property
    @abstractmethod
    def broker(self) -> BrokerPart:
        """The broker."""

    @property
    @abstractmethod
    def network(self) -> Links:
        """What cuts and slows the nodes.

        Raises:
            ConfigurationError: this cluster has no network of its own, or is not started.
        """

    @abstractmethod
    async def start(self) -> None:
        """Start the broker, the orchestrator and the agents; returns when they run.

        Raises:
            BrokerError: the broker does not start, for instance since its port is taken.
            ConfigurationError: limits or networks were asked for and may not be had.
        """

    @abstractmethod
    async def stop(self) -> None:
        """End every part and leave nothing but the logs."""

    @abstractmethod
    async def start_orchestrator(self) -> Part:
        """Start the orchestrator; it finds the state of the one before."""

    @abstractmethod
    async def add_agent(
        self, name: str | None = None, cpu: float | None = None, *, arguments: Sequence[str] = ()
    ) -> Part:
        """Start one more agent, or one of a name that was there before.

        Args:
            name: the node's name; `agent-N` when None.
            cpu: its share; None for an equal part.
            arguments: further flags of `amp4ec agent`; they count more than what stands here.

        Raises:
            ConfigurationError: the share cannot be had, or that agent runs.
        """

    @abstractmethod
    async def restart_agent(self, name: str) -> Part:
        """Start an agent that ended again, with what it had: limits, cache, flags.

        Raises:
            ConfigurationError: there was none of that name, or it runs.
        """

    @abstractmethod
    async def limit_agent(
        self, name: str, *, cpus: float | None = None, memory_bytes: int | None = None
    ) -> None:
        """Give a running agent other limits; None leaves one as it is.

        Raises:
            ConfigurationError: there is no such agent, or it cannot be limited so.
        """

    @property
    def url(self) -> BrokerUrl:
        """The broker's address, as an operator has it."""
        return BrokerUrl.parse(self.address("operator"))

    @property
    def page(self) -> str | None:
        """Where the orchestrator's page is; None without one, and before it listens."""
        return None if self.orchestrator is None else page_address(self.orchestrator.log)

    def address(self, name: str) -> str:
        """The broker's address as `name` has it: an agent, `orchestrator`, `operator` or `client`."""
        del name  # an open broker asks nobody
        return self.broker.url

    def client(self) -> Client:
        """A client of this cluster, to be used with `async with`."""
        return Client(self.address("client"), root=self.root)

    async def kill_agent(self, name: str) -> None:
        """SIGKILL to an agent."""
        await self.agents[name].kill()

    async def stop_agent(self, name: str) -> int:
        """SIGTERM to an agent; its exit status."""
        return await self.agents[name].stop()

    async def restart_orchestrator(self, arguments: Sequence[str] | None = None) -> Part:
        """End the orchestrator as somebody who installs a new version would, and start it again.

        Args:
            arguments: its further flags from now on; None for those that it had.
        """
        if arguments is not None:
            self._orchestrator_arguments = tuple(arguments)
        if self.orchestrator is not None:
            await self.orchestrator.stop()
        return await self.start_orchestrator()

    async def kill_orchestrator(self) -> None:
        """SIGKILL to the orchestrator."""
        if self.orchestrator is not None:
            await self.orchestrator.kill()
            self.orchestrator = None

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
                orchestrator = self.orchestrator
                if orchestrator is not None and not self._any_orchestrator():
                    raise ChildEndedError(
                        f"the orchestrator ended with status {await orchestrator.ended()}; "
                        f"the end of its log:\n{orchestrator.log_tail()}"
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
            ChildEndedError: the time ran out, or one of all ended.
        """
        wanted = len(self.agents) if count is None else count

        def holds(status: ClusterStatus) -> bool:
            if count is None:
                self._all_alive()
            return (
                len(status.online) >= wanted
                and status.orchestrator is not None
                and status.orchestrator.state == "online"
            )

        await self.wait_for(f"{wanted} agents and an orchestrator online", holds, timeout_s)

    def _all_alive(self) -> None:
        for agent in self.agents.values():
            if not agent.alive:
                why = agent.why()
                raise ChildEndedError(
                    f"{agent.name} ended{f': {why}' if why else ''}; the end of its log:\n"
                    f"{agent.log_tail()}"
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
        return self.orchestrator is not None and self.orchestrator.alive

    def _common(self, name: str, log_level: str | None = None) -> list[str]:
        level = log_level or self._log_level
        return [
            *("--broker", self.address(name), "--root", self.root),
            *("--log-level", level, "--log-format", "json"),
        ]

    def _free_name(self) -> str:
        number = 1
        while f"agent-{number}" in self.agents:
            number += 1
        return f"agent-{number}"


def _brief(status: ClusterStatus) -> str:
    orchestrator = status.orchestrator.state if status.orchestrator else "none"
    nodes = ", ".join(f"{node.state.node} {node.state.state}" for node in status.nodes) or "none"
    models = ", ".join(f"{model.model} {model.state}" for model in status.models) or "none"
    return f"orchestrator: {orchestrator}; nodes: {nodes}; models: {models}"

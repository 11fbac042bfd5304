"""A whole cluster in containers, with the same face as `deploy.local`.

::

    profile = find_profile("paper").scaled(0.5)
    async with DockerCluster(directory, profile.nodes) as cluster:
        await cluster.serve("mobilenet_v2", ServeFlags(weights="none"))
        await cluster.kill_agent("high")

Broker, orchestrator and agents have a container each, on a network of their own from which nothing outside is
reached; the broker's port is published on this machine's loopback. What they write goes to files below
`directory` while they run. Leaving removes containers, network and volumes; what a command that was killed
left is removed by the next one (`deploy.containers.engine`).
"""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from docker import DockerClient
from docker.models.containers import Container as DockerContainer
from docker.models.networks import Network as DockerNetwork
from docker.types import LogConfig

from deploy.cluster import Cluster
from deploy.containers.container import Container, Limits
from deploy.containers.engine import (
    EngineError,
    asking,
    connect,
    labels,
    remove_cluster,
    remove_orphans,
)
from deploy.containers.images import AgentKind, Images, ensure_images
from deploy.containers.links import ContainerLinks
from deploy.containers.profile import Node
from orchestrator.web.address import HttpAddress
from shared.errors import BrokerError, ConfigurationError
from shared.topics import DEFAULT_ROOT

T = TypeVar("T")

_HOME: Final = "/var/lib/amp4ec"
_MQTT_PORT: Final = 1883
_PAGE_PORT: Final = 8080
_PORT_ATTEMPTS: Final = 8
_LOGS: Final = LogConfig(type="json-file", config={"max-size": "16m", "max-file": "2"})


@dataclass(frozen=True, slots=True)
class _Launch:
    """How an agent was started."""

    node: Node
    arguments: Sequence[str]


class DockerBroker:
    """The broker's container; `url` is its published port."""

    def __init__(self, cluster: DockerCluster, port: int) -> None:
        """Prepare; `port` on loopback, 0 for any."""
        self._cluster = cluster
        self._port = port
        self._container: Container | None = None

    @property
    def url(self) -> str:
        """How to reach it from this machine."""
        return f"mqtt://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """The port of that address; 0 before the start where any would do."""
        return self._port

    @property
    def log_file(self) -> Path:
        """Where what it writes goes."""
        return self._cluster.directory / "broker.log"

    @property
    def running(self) -> bool:
        """Whether it has not ended, as far as was noticed."""
        return self._container is not None and self._container.alive

    @property
    def container(self) -> Container:
        """Its container.

        Raises:
            BrokerError: it was never started.
        """
        if self._container is None:
            raise BrokerError("this broker was never started")
        return self._container

    async def start(self) -> None:
        """Start it; what it saved before is there again.

        Raises:
            BrokerError: its port is taken.
        """
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = self._port or _free_port()
            try:
                self._container = await self._cluster.run_broker(port)
            except EngineError as error:
                if (
                    "address already in use" not in error.message
                    and "allocated" not in error.message
                ):
                    raise
                # Somebody was quicker between our look for a free port and the engine's taking it.
                if self._port or attempt == _PORT_ATTEMPTS:
                    raise BrokerError(f"port {port} is in use") from error
            else:
                self._port = port
                return

    async def stop(self) -> None:
        """Stop it so that it saves what it holds; nothing when it does not run."""
        if self._container is not None:
            await self._container.stop()

    async def kill(self) -> None:
        """End it without giving it time to save, as a crash would."""
        await self.container.kill()

    async def restart(self) -> None:
        """Stop it, and start it again on the same port."""
        await self.stop()
        await self.start()

    async def wait(self) -> int:
        """Wait until it ends; its exit status, negative for a signal."""
        return await self.container.ended()


class DockerCluster(Cluster):
    """Broker, orchestrator and agents of one's own in containers. Use with `async with`."""

    agents: dict[str, Container]
    orchestrator: Container | None
    kill_command: ClassVar[str] = "amp4ec docker kill {name}"

    def __init__(
        self,
        directory: Path,
        nodes: Sequence[Node],
        *,
        kind: AgentKind = AgentKind.ONNXRUNTIME,
        port: int = 0,
        root: str = DEFAULT_ROOT,
        log_level: str = "info",
        agent_arguments: Sequence[str] = (),
        orchestrator_arguments: Sequence[str] = (),
        orchestrator_limits: Limits = Limits(),  # noqa: B008 - frozen
        http: HttpAddress | None = None,
        environment: Mapping[str, str] | None = None,
        base: str | None = None,
        broker_base: str | None = None,
        on_step: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            directory: for the logs; made when missing.
            nodes: the agents, each with its limits.
            kind: what the agents run stages with.
            port: the broker's, on this machine's loopback; 0 for any.
            root: the root topic.
            log_level: of every part.
            agent_arguments: further flags of `amp4ec agent`.
            orchestrator_arguments: further flags of `amp4ec orchestrator`.
            orchestrator_limits: what the orchestrator may use.
            http: where its page is published on this machine; None for no page.
            environment: further variables of every part.
            base: the image with Python to build upon, as in `ensure_images`.
            broker_base: the one with Mosquitto.
            on_step: gets what is being done before the start.
        """
        super().__init__(directory, root=root, log_level=log_level, environment=environment)
        self.id = uuid.uuid4().hex[:8]
        self.agents = {}
        self.orchestrator = None
        self._nodes = tuple(nodes)
        self._kind = kind
        self._base = (base, broker_base)
        self._on_step = on_step
        self._agent_arguments = tuple(agent_arguments)
        self._orchestrator_arguments = tuple(orchestrator_arguments)
        self._orchestrator_limits = orchestrator_limits
        self._http = http
        self._broker = DockerBroker(self, port)
        self._launches: dict[str, _Launch] = {}
        self._asked: set[asyncio.Task[Any]] = set()
        self._client: DockerClient | None = None
        self._images: Images | None = None
        self._docker_network: DockerNetwork | None = None
        self._links = ContainerLinks(self._pid_of)

    @property
    def broker(self) -> DockerBroker:
        """The broker, in a container."""
        return self._broker

    @property
    def network(self) -> ContainerLinks:
        """What cuts and slows containers, named like their agents, `orchestrator` or `broker`."""
        return self._links

    @property
    def images(self) -> Images:
        """What the containers are made from.

        Raises:
            ConfigurationError: it is not started.
        """
        if self._images is None:
            raise ConfigurationError("this cluster is not started")
        return self._images

    @property
    def engine(self) -> DockerClient:
        """The engine that it runs on.

        Raises:
            ConfigurationError: it is not started.
        """
        if self._client is None:
            raise ConfigurationError("this cluster is not started")
        return self._client

    @property
    def page(self) -> str | None:
        """Where the orchestrator's page is published."""
        return None if self._http is None else self._http.url

    async def start(self) -> None:
        """Remove what others left, build images where need be, and start every container.

        Raises:
            BrokerError: the broker's port is taken.
            ConfigurationError: there is no engine or no base image.
            EngineError: the engine refuses something.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        client = self._client = await self._ask(connect)
        for orphan in await self._ask(remove_orphans, client):
            self._on_step(f"removed what a killed command left: cluster {orphan}")
        base, broker_base = self._base
        self._images = await self._ask(
            lambda: ensure_images(
                client, self._kind, base=base, broker_base=broker_base, on_step=self._on_step
            )
        )
        self._docker_network = await self._ask(self._make_network)
        await self._broker.start()
        await self.start_orchestrator()
        for node in self._nodes:
            await self._start_agent(_Launch(node, ()))

    async def stop(self) -> None:
        """End every part, those that have something to say first, and leave nothing but the logs."""
        await asyncio.gather(*self._asked, return_exceptions=True)
        client = self._client
        if client is None:
            return
        try:
            parts = [*self.agents.values()]
            await asyncio.gather(*(part.stop() for part in parts), return_exceptions=True)
            if self.orchestrator is not None:
                await self.orchestrator.stop()
            await self._broker.stop()
        finally:
            await asyncio.to_thread(remove_cluster, client, self.id)
            await asyncio.to_thread(client.close)
            self._client = None

    async def start_orchestrator(self) -> Container:
        """Start the orchestrator; it finds the state of the one before."""
        arguments: list[str] = []
        options: dict[str, Any] = {}
        if self._http is not None:
            # One that is free, and the same after a restart.
            self._http = replace(self._http, port=self._http.port or _free_port())
            arguments = [f"--http=0.0.0.0:{_PAGE_PORT}", f"--http-name={self._http.host}"]
            options["ports"] = {f"{_PAGE_PORT}/tcp": (_ip(self._http.host), self._http.port)}
        self.orchestrator = await self._run(
            "orchestrator",
            self.images.orchestrator.name,
            ["orchestrator", *self._flags(), *arguments, *self._orchestrator_arguments],
            self._orchestrator_limits,
            **options,
        )
        return self.orchestrator

    async def add_agent(
        self,
        name: str | None = None,
        cpu: float | None = None,
        *,
        memory_bytes: int | None = None,
        arguments: Sequence[str] = (),
    ) -> Container:
        """Start one more agent, or one of a name that was there before.

        Args:
            name: the node's name; `agent-N` when None.
            cpu: its share; None for an equal part of the engine's CPUs.
            memory_bytes: its limit; None for none.
            arguments: further flags of `amp4ec agent`; they count more than what stands here.

        Raises:
            ConfigurationError: the limits cannot be had, or that agent runs.
        """
        name = name or self._free_name()
        if cpu is None:
            cpu = await self._ask(engine_cpus, self.engine) / max(len(self._nodes), 1)
        node = Node(name=name, cpus=cpu, memory_bytes=memory_bytes)
        return await self._start_agent(_Launch(node, tuple(arguments)))

    async def restart_agent(self, name: str) -> Container:
        """Start an agent that ended again, with what it had: limits, cache, flags.

        Raises:
            ConfigurationError: there was none of that name, or it runs.
        """
        if name not in self._launches:
            raise ConfigurationError(
                f"there was no agent {name}", expected=" or ".join(self._launches), got=name
            )
        return await self._start_agent(self._launches[name])

    async def limit_agent(
        self, name: str, *, cpus: float | None = None, memory_bytes: int | None = None
    ) -> None:
        """Give a running agent other limits; None leaves one as it is.

        Raises:
            ConfigurationError: there is no such agent.
            EngineError: the engine or the kernel does not take them.
        """
        if name not in self.agents:
            raise ConfigurationError(
                f"there is no agent {name}", expected=" or ".join(self.agents), got=name
            )
        await self._ask(self.agents[name].limit, Limits(cpus, memory_bytes))
        launch = self._launches[name]
        node = replace(
            launch.node,
            cpus=launch.node.cpus if cpus is None else cpus,
            memory_bytes=launch.node.memory_bytes if memory_bytes is None else memory_bytes,
        )
        self._launches[name] = replace(launch, node=node)

    async def run_broker(self, port: int) -> Container:
        """Start the broker's container with its port published; see `DockerBroker.start`."""
        return await self._run(
            "broker",
            self.images.broker.name,
            [],
            Limits(),
            ports={f"{_MQTT_PORT}/tcp": ("127.0.0.1", port)},
        )

    async def _start_agent(self, launch: _Launch) -> Container:
        node = launch.node
        earlier = self.agents.get(node.name)
        if earlier is not None and earlier.alive:
            raise ConfigurationError(
                f"agent {node.name} runs already", got=f"process {earlier.pid}"
            )
        line = ["agent", "--name", node.name, f"--zone={node.zone}", *self._flags()]
        self.agents[node.name] = await self._run(
            node.name,
            self.images.agent.name,
            [*line, *self._agent_arguments, *launch.arguments],
            Limits(node.cpus, node.memory_bytes),
        )
        self._launches[node.name] = launch
        return self.agents[node.name]

    def _flags(self) -> list[str]:
        return ["--root", self.root, "--log-level", self._log_level, "--log-format", "json"]

    def _called(self, node: str) -> str:
        return f"amp4ec-{self.id}-{node}"

    async def _run(
        self, node: str, image: str, command: list[str], limits: Limits, **options: Any
    ) -> Container:
        self._on_step(f"starting {node}")
        container = await self._ask(self._make, node, image, command, limits, options)
        log = self._broker.log_file.with_name(f"{node}.log")
        return Container(node, container, log, limits)

    def _make(
        self, node: str, image: str, command: list[str], limits: Limits, options: dict[str, Any]
    ) -> DockerContainer:
        assert self._docker_network is not None
        name, client = self._called(node), self.engine
        broker = f"mqtt://{self._called('broker')}:{_MQTT_PORT}"
        with asking(f"{node} cannot be started"):
            for earlier in client.containers.list(all=True, filters={"name": f"^{name}$"}):
                earlier.remove(force=True)
            volume = client.volumes.create(name=name, labels=labels(self.id, node))
            container = client.containers.create(
                image,
                command,
                name=name,
                hostname=node,
                labels=labels(self.id, node),
                network=self._docker_network.name,
                environment={**self._environment, "AMP4EC_BROKER": broker},
                volumes={volume.name: {"bind": _HOME, "mode": "rw"}},
                cap_drop=["ALL"],
                security_opt=["no-new-privileges:true"],
                log_config=_LOGS,
                **limits.options(),
                **options,
            )
            container.start()
            container.reload()
        return container

    def _make_network(self) -> DockerNetwork:
        with asking("the cluster's network cannot be made"):
            return self.engine.networks.create(
                f"amp4ec-{self.id}",
                driver="bridge",
                labels=labels(self.id, "network"),
                # Its own address stays its own: what a node sends to the world outside gets no answer.
                options={"com.docker.network.bridge.enable_ip_masquerade": "false"},
            )

    def _pid_of(self, node: str) -> int:
        parts = {**self.agents, "broker": self._broker.container}
        if self.orchestrator is not None:
            parts["orchestrator"] = self.orchestrator
        if node not in parts:
            raise ConfigurationError(
                f"the network has no node {node}", expected=" or ".join(parts), got=node
            )
        return parts[node].pid

    async def _ask(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call what blocks, in a thread; `stop` waits for it, so that it makes nothing after the end."""
        task = asyncio.create_task(
            asyncio.to_thread(function, *arguments), name=f"docker: {function.__name__}"
        )
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)
        return await asyncio.shield(task)


def engine_cpus(client: DockerClient) -> float:
    """The CPUs that an engine has.

    Raises:
        EngineError: it does not say.
    """
    with asking("the engine does not say how many CPUs it has"):
        return float(client.info()["NCPU"])


def _ip(host: str) -> str:
    """What an engine publishes ports on: it takes no names.

    Raises:
        ConfigurationError: nothing here has that name.
    """
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        raise ConfigurationError(
            "no address to listen on", expected="an address or a name of this machine", got=host
        ) from None


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port

"""Which cluster is meant: processes or containers, how many agents, with what limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy import settings
from deploy.cluster import Cluster
from deploy.containers.profile import Node, find_profile
from deploy.local import LocalCluster
from orchestrator.web.address import HttpAddress
from shared.errors import ConfigurationError
from shared.profile import DEFAULT_ZONE
from shared.topics import DEFAULT_ROOT

DEFAULT_AGENTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterShape:
    """What somebody asked for, as they wrote it.

    `cpus` is `0.5,0.3,0.2` or one number for all, `zones` likewise; `profile` is a name or a file, its CPUs
    are multiplied by `scale`; `runtime` is what models are served with: containers bring that along.

    Raises:
        ConfigurationError: what was asked for does not go together.
    """

    docker: bool = False
    profile: str | None = None
    scale: float = 1.0
    agents: int | None = None
    cpus: str | None = None
    zones: str | None = None
    runtime: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.profile is not None and not self.docker:
            raise ConfigurationError(
                "--profile limits memory, which only containers do here",
                expected="--docker beside it, or --cpus for processes",
                got=f"--profile {self.profile}",
            )
        others = {"--agents": self.agents, "--cpus": self.cpus, "--zones": self.zones}
        both = [flag for flag, value in others.items() if value is not None]
        if self.profile is not None and both:
            raise ConfigurationError(
                "a profile says itself which agents there are",
                expected="--profile alone",
                got=f"--profile and {' and '.join(both)}",
            )
        if self.profile is None and self.scale != 1.0:
            raise ConfigurationError(
                "--scale is of a profile", expected="--profile", got=f"--scale {self.scale:g}"
            )

    def shares(self) -> list[float] | None:
        """One CPU share per agent, where they were given.

        Raises:
            ConfigurationError: they do not fit the agents.
        """
        return None if self.cpus is None else settings.cpu_shares(self.cpus, self.count)

    def trust_zones(self) -> list[str]:
        """One zone per agent.

        Raises:
            ConfigurationError: they do not fit the agents.
        """
        return settings.zones_of(self.zones or DEFAULT_ZONE, self.count)

    @property
    def count(self) -> int:
        """How many agents, where no profile says."""
        return DEFAULT_AGENTS if self.agents is None else self.agents


def make_cluster(
    shape: ClusterShape,
    directory: Path,
    *,
    port: int = 0,
    root: str = DEFAULT_ROOT,
    log_level: str = "info",
    orchestrator_arguments: Sequence[str] = (),
    http: HttpAddress | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Cluster:
    """The cluster, not started yet; arguments as of `LocalCluster`.

    Args:
        shape: what was asked for.
        directory: for logs, and for processes' caches and state.
        port: the broker's, on loopback; 0 for any.
        root: the root topic.
        log_level: of every part.
        orchestrator_arguments: further flags of `amp4ec orchestrator`.
        http: where the orchestrator's page is to be on this machine; None for none.
        on_step: gets what is being done before the start, where that takes long.

    Raises:
        ConfigurationError: a profile or a share that makes no sense.
    """
    if not shape.docker:
        return LocalCluster(
            directory,
            agents=shape.count,
            cpus=shape.shares(),
            zones=shape.trust_zones(),
            port=port,
            root=root,
            log_level=log_level,
            orchestrator_arguments=[
                *orchestrator_arguments,
                *([] if http is None else [f"--http={http}"]),
            ],
        )
    # An extra: whoever runs processes needs no docker.
    from deploy.containers.cluster import DockerCluster
    from deploy.containers.images import AgentKind

    return DockerCluster(
        directory,
        _nodes(shape),
        kind=AgentKind.TORCH if shape.runtime == "torch" else AgentKind.ONNXRUNTIME,
        port=port,
        root=root,
        log_level=log_level,
        orchestrator_arguments=orchestrator_arguments,
        http=http,
        on_step=on_step,
    )


def _nodes(shape: ClusterShape) -> Sequence[Node]:
    if shape.profile is not None:
        return find_profile(shape.profile).scaled(shape.scale).nodes
    from deploy.containers.cluster import engine_cpus
    from deploy.containers.engine import connect

    zones = shape.trust_zones()
    shares = shape.shares() or [engine_cpus(connect()) / shape.count] * shape.count
    return [
        Node(name=f"agent-{number}", cpus=share, zone=zone)
        for number, (share, zone) in enumerate(zip(shares, zones, strict=True), 1)
    ]

"""The Docker engine, and what of ours is on it: found by label, removed by label.

Everything that a cluster makes carries the cluster's id and who made it, so that what a killed command left
is known for what it is: the next `amp4ec up --docker` or `amp4ec docker down` removes it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import docker
import psutil
from docker import DockerClient
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container as DockerContainer
from requests.exceptions import RequestException

from shared.errors import Amp4ecError, ConfigurationError

CLUSTER: Final = "amp4ec.cluster"
"""The label with a cluster's id."""
OWNER: Final = "amp4ec.owner"
"""The label with the process that made it, as `owner` writes it; what compose made has none."""
NODE: Final = "amp4ec.node"
"""The label with the name of the node, or `broker` or `orchestrator`."""
IMAGE: Final = "amp4ec.image"
"""The label of images: what they were made from."""


class EngineError(Amp4ecError):
    """The Docker engine did not do what it was asked for; the message has what it said."""


def connect() -> DockerClient:
    """The engine that the environment names (`DOCKER_HOST`), or the one of this machine.

    Raises:
        ConfigurationError: none answers.
    """
    try:
        client = docker.from_env()
        client.ping()
    except (DockerException, RequestException) as error:
        raise ConfigurationError(
            "no Docker engine answers",
            expected="a dockerd that runs and that this user may speak to, or DOCKER_HOST",
            got=str(error),
        ) from error
    return client


@contextlib.contextmanager
def asking(what: str) -> Iterator[None]:
    """Around calls of the engine: what it refuses becomes an `EngineError` that says what was asked.

    Raises:
        EngineError: see above.
    """
    try:
        yield
    except APIError as error:
        raise EngineError(f"{what}: {error.explanation or error}") from error
    except (DockerException, RequestException) as error:
        raise EngineError(f"{what}: {error}") from error


def owner() -> str:
    """This process, told from any other that had or will have its number, here or elsewhere."""
    return _identity(psutil.Process())


def owner_lives(text: str) -> bool:
    """Whether the process of an `owner` is there; one of another machine is taken to be."""
    pid, _, rest = text.partition("@")
    if not pid.isdigit() or rest.rpartition("@")[2] != socket.gethostname():
        return True
    try:
        return _identity(psutil.Process(int(pid))) == text
    except psutil.Error:
        return False


def _identity(process: psutil.Process) -> str:
    return f"{process.pid}@{process.create_time():.2f}@{socket.gethostname()}"


def labels(cluster: str, node: str) -> dict[str, str]:
    """What everything carries that a cluster makes for a node."""
    return {CLUSTER: cluster, NODE: node, OWNER: owner()}


def remove_cluster(client: DockerClient, cluster: str) -> int:
    """Remove a cluster's containers, networks and volumes, whatever they do; how many there were.

    Raises:
        EngineError: one cannot be removed.
    """
    wanted: dict[str, str | list[str] | bool] = {"label": f"{CLUSTER}={cluster}"}
    removed = 0
    with asking(f"cluster {cluster} cannot be removed"):
        for container in client.containers.list(all=True, filters=wanted, ignore_removed=True):
            _remove_container(container)
            removed += 1
        for network in client.networks.list(filters=wanted):
            with contextlib.suppress(NotFound):
                network.remove()
            removed += 1
        for volume in client.volumes.list(filters=wanted):
            with contextlib.suppress(NotFound):
                volume.remove(force=True)
            removed += 1
    return removed


def _remove_container(container: DockerContainer) -> None:
    try:
        container.remove(force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        # Somebody else removes it at this moment: wait for that.
        if error.status_code != 409:
            raise
        with contextlib.suppress(NotFound):
            container.wait(condition="removed", timeout=30)


def clusters(client: DockerClient) -> dict[str, bool]:
    """The clusters that commands of ours made, and whether each one's command is there to end it.

    Raises:
        EngineError: the engine does not say.
    """
    found: dict[str, bool] = {}
    ours: dict[str, str | list[str] | bool] = {"label": OWNER}
    with asking("clusters cannot be listed"):
        carried = [
            container.labels
            for container in client.containers.list(all=True, filters=ours, ignore_removed=True)
        ]
        made = [*client.networks.list(filters=ours), *client.volumes.list(filters=ours)]
        carried += [each.attrs["Labels"] for each in made]
    for labelled in carried:
        found[labelled[CLUSTER]] = owner_lives(labelled[OWNER])
    return found


def remove_orphans(client: DockerClient) -> list[str]:
    """Remove the clusters whose commands ended without doing it (SIGKILL); their ids.

    Raises:
        EngineError: one cannot be removed.
    """
    orphans = [cluster for cluster, owned in clusters(client).items() if not owned]
    for cluster in orphans:
        remove_cluster(client, cluster)
    return orphans

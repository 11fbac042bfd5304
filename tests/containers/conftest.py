"""A real Docker engine, the images built from what is here, and the paper's test bed at half its CPUs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from docker import DockerClient

from deploy.cluster import Cluster
from deploy.containers.cluster import DockerCluster
from deploy.containers.engine import CLUSTER, connect
from deploy.containers.images import Images, ensure_images
from deploy.containers.profile import find_profile
from deploy.flags import ServeFlags
from deploy.supervisor import child_environment, command
from orchestrator.models.zoo import build
from shared.client import Client
from shared.tensor import Array

MODEL = "mobilenet_v2"
FLAGS = ServeFlags(weights="none", min_stages=3, max_stages=3, timeout_s=200)
NODES = ("high", "low", "medium")
INPUT: Array = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerClient]:
    """The engine. Where there is none the layer fails, with the reason: skipped, it would prove nothing."""
    client = connect()
    yield client
    client.close()


@pytest.fixture(scope="session")
def images(engine: DockerClient) -> Images:
    """Built once for all tests; wheels are kept where a user's are, so that a second run has them."""
    return ensure_images(engine, on_step=print)


@pytest.fixture(scope="session", autouse=True)
def cache(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Models are imported once per run of the tests, and nothing is left in the user's cache."""
    before = os.environ.get("XDG_CACHE_HOME")
    directory = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(directory)
    yield directory
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DockerCluster]:
    """Three containers and one model in three stages."""
    nodes = find_profile("paper").scaled(0.5).nodes
    async with DockerCluster(tmp_path_factory.mktemp("containers"), nodes) as cluster:
        await cluster.wait_for_nodes()
        await cluster.serve(MODEL, FLAGS)
        yield cluster


@pytest_asyncio.fixture(loop_scope="module")
async def client(cluster: DockerCluster) -> AsyncIterator[Client]:
    """A client, and all three nodes at work when the test begins."""
    await all_at_work(cluster)
    async with cluster.client() as client:
        yield client


async def all_at_work(cluster: Cluster) -> None:
    """Until the model has three stages again: what a test did to a node is undone and over."""
    await cluster.wait_for(
        "three stages",
        lambda status: (
            (state := status.model(MODEL)) is not None
            and state.state == "serving"
            and [len(pipeline.stages) for pipeline in state.pipelines] == [3]
            and len(status.online) == 3
        ),
        90.0,
    )


@pytest.fixture(scope="session")
def expected() -> Array:
    """What the whole model answers to `INPUT`, in this process."""
    module = build(MODEL, "none", 0).module
    with torch.inference_mode():
        answer: Array = module(torch.from_numpy(INPUT)).numpy()
    return answer


async def answered(client: Client, expected: Array) -> list[str]:
    """Ask, look whether the answer is exact; the nodes that it came through, by stage."""
    result = await client.infer(MODEL, INPUT, tensors=True, timeout_s=60)
    assert result.tensors is not None
    (got,) = result.tensors.values()
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    return [step.node for step in result.trace]


def amp4ec(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a person types it."""
    return subprocess.run(
        command(*arguments),
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


async def told(*arguments: str) -> None:
    """The command in a thread; it has to go well."""
    done = await asyncio.to_thread(amp4ec, *arguments)
    assert done.returncode == 0, done.stderr


def listed(cluster: str) -> dict[str, dict[str, Any]]:
    """What `amp4ec docker ps` says of a cluster's nodes."""
    done = amp4ec("docker", "ps", "--json", "--cluster", cluster)
    assert done.returncode == 0, done.stderr
    return {each["node"]: each for each in json.loads(done.stdout)}


def left(engine: DockerClient, cluster: str) -> list[str]:
    """The containers, networks and volumes that there are of a cluster."""
    of: dict[str, str | list[str] | bool] = {"label": f"{CLUSTER}={cluster}"}
    containers = engine.containers.list(all=True, filters=of, ignore_removed=True)
    names = [container.name for container in containers]
    names += [network.name for network in engine.networks.list(filters=of)]
    names += [volume.name for volume in engine.volumes.list(filters=of)]
    return [str(name) for name in names]

"""Artifacts that are not what the signed order names: on the way, in the caches, on every path to a stage."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.library import Library
from shared.artifact_store import ArtifactStore
from shared.codec import decode_json, encode_json
from shared.errors import ArtifactError
from shared.graph import Graph, GraphBuilder
from shared.messages.stage import StageAssignment
from shared.package import read_package
from shared.transfer import Transfers
from shared.transform import IMAGENET
from tests.fakes.cluster import Model, until
from tests.fakes.wire import FakeBroker
from tests.shell.orchestrator_world import world_in
from tests.shell.test_agent_service import ONES, FakeRuntime, World, runtime

__all__ = ["runtime"]

WEIGHTS = b"weights, or so the runtime of these tests believes"
KINDS = ("graph", "weights", "preprocess")


@pytest.fixture
async def world(tmp_path: Path, runtime: FakeRuntime) -> AsyncIterator[World]:
    world = World(tmp_path, FakeBroker())
    async with world.orchestrator():
        yield world


def stage_of(world: World, generation: int = 1) -> StageAssignment:
    """A first stage with every kind of artifact."""
    weights = world.blob(WEIGHTS)
    builder = GraphBuilder(f"g{generation}s0")
    x = builder.input("x", (1, 8))
    builder.weight("w", (2,), blob=weights.digest)
    graph = builder.build(builder.node("relu", x, shape=(1, 8), name="y"))
    return replace(
        world.stage(generation, graph=graph),
        weights=[weights],
        preprocess=world.blob(encode_json(IMAGENET)),
    )


def digest_of(stage: StageAssignment, kind: str) -> str:
    assert stage.preprocess is not None
    return {
        "graph": stage.graph.digest,
        "weights": stage.weights[0].digest,
        "preprocess": stage.preprocess.digest,
    }[kind]


def tampered(data: bytes) -> bytes:
    """Other bytes of the same size, and still JSON where it was."""
    changed = data.replace(b"relu", b"gelu").replace(b"0.485", b"0.999")
    return changed if changed != data else data[:-1] + bytes((data[-1] ^ 1,))


def give(blobs: dict[str, bytes], transfers: Transfers, digest: str, data: bytes) -> None:
    """What is given from now on under that digest."""
    blobs[digest] = data
    assert transfers.shelf is not None
    transfers.shelf.clear()


@pytest.mark.parametrize("kind", KINDS)
async def test_what_comes_otherwise_than_named_is_not_run(
    world: World, runtime: FakeRuntime, kind: str
) -> None:
    """A broker in the middle, which makes the pieces' own digests fit what it puts in."""
    async with world.agent():
        world.assign(world.stage(1))
        await world.ready((1, 0))
        stage = stage_of(world, 2)
        digest = digest_of(stage, kind)
        right = world.blobs[digest]
        world.blobs[digest] = tampered(right)
        world.assign(world.stage(1), stage)
        await until(lambda: (2, 0, "failed") in world.states())
        failed = next(row for row in world.reports[-1].stages if row.generation == 2)
        assert digest in failed.reason
        assert "the whole blob is wrong" in failed.reason
        assert runtime.loaded == ["g1s0"]
        world.send("j", ONES)
        await until(lambda: world.results)
        assert world.results[0].failure is None
        # An honest provider is all that was missing.
        give(world.blobs, world.transfers, digest, right)
        world.assign(world.stage(1), stage)
        await world.ready((1, 0), (2, 0))


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_changed_in_the_cache_is_fetched_again(world: World, kind: str) -> None:
    stage = stage_of(world)
    async with world.agent(5):
        world.assign(stage)
        await world.ready((1, 0))
    digest = digest_of(stage, kind)
    assert world.options.cache_dir is not None
    path = world.options.cache_dir / "blobs" / digest[:2] / digest
    right = path.read_bytes()
    path.write_bytes(tampered(right))
    world.reports.clear()
    async with world.agent(6):
        world.assign(stage)
        await world.ready((1, 0))
        assert path.read_bytes() == right
        world.send("j", ONES)
        await until(lambda: world.results)
        assert world.results[0].failure is None


async def test_a_prefetch_is_not_believed_either(world: World) -> None:
    async with world.agent() as agent:
        stage = stage_of(world, 2)
        digest = digest_of(stage, "weights")
        right = world.blobs[digest]
        world.blobs[digest] = tampered(right)
        order = replace(world.stage(1))
        world.revision += 1
        world.publish(
            "test/node/n1/assignment",
            encode_json(
                {"node": "n1", "revision": world.revision, "stages": [order],
                 "prefetch": stage.weights, "v": 1}
            ),
            retain=True,
        )  # fmt: skip
        await world.ready((1, 0))
        await until(lambda: not agent._keeper._core._prefetch)
        assert not agent._store.has(digest)
        give(world.blobs, world.transfers, digest, right)
        world.assign(stage)
        await world.ready((2, 0))
        path = agent._store.path(digest)
        assert path is not None
        assert path.read_bytes() == right


# --- the orchestrator's own store


@pytest.mark.parametrize("which", ["package", "weights"])
def test_what_was_changed_in_the_orchestrators_store_is_not_served(
    tmp_path: Path, which: str
) -> None:
    """The package holds graph, transform and labels: what it says is what was asked for, or nothing."""
    model = Model()
    with ArtifactStore(tmp_path, 10**6) as store:
        for data in model.blobs.values():
            store.put(data)
    digest = model.manifest.digest if which == "package" else model.package.weights[0].digest
    path = tmp_path / digest[:2] / digest
    right = path.read_bytes()
    wrong = right.replace(b'"dog"', b'"cat"') if which == "package" else tampered(right)
    assert wrong != right
    path.write_bytes(wrong)
    with ArtifactStore(tmp_path, 10**6) as store:
        with pytest.raises(ArtifactError):
            Library(store).open(model.manifest.digest)
        store.put(right)
        labels = Library(store).open(model.manifest.digest).manifest.labels
        assert labels == model.package.manifest.labels


async def test_labels_changed_on_the_way_to_the_orchestrator(tmp_path: Path) -> None:
    """An upload through a broker that would have a dog called a cat."""
    async with world_in(tmp_path) as world, world.orchestrator(), world.agents("a"):
        model = Model()
        right = model.blobs[model.manifest.digest]
        wrong = right.replace(b'"dog"', b'"cat"')
        assert read_package(wrong).manifest.labels != model.package.manifest.labels
        model.blobs[model.manifest.digest] = wrong
        response = await world.operator.serve(model, "forged")
        assert response.error is not None
        assert model.manifest.digest in response.error.message
        give(model.blobs, world.operator._transfers, model.manifest.digest, right)
        assert (await world.operator.serve(model, "right")).status == "ok"
        assert (await world.answer())["top"][0]["label"] == "dog"


def test_tampered_is_tampered() -> None:
    graph = GraphBuilder("g")
    x = graph.input("x", (1, 8))
    data = encode_json(graph.build(graph.node("relu", x, shape=(1, 8), name="y")))
    changed = tampered(data)
    assert len(changed) == len(data)
    assert decode_json(changed, Graph).nodes[0].op == "gelu"
    assert hashlib.sha256(changed).digest() != hashlib.sha256(data).digest()

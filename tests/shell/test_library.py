"""Packages and the stages cut out of them: same digests each time, pinned while in use."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.core.cluster_events import StageRef
from orchestrator.library import MOST_STAGES, Library, choose_runtime, entry_of
from shared.artifact_store import ArtifactStore
from shared.codec import decode_json
from shared.errors import ArtifactError, ConfigurationError
from shared.graph import StageGraph
from shared.messages.model import ServeOptions
from tests.fakes.cluster import Model


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ArtifactStore]:
    with ArtifactStore(tmp_path, 10**6) as store:
        yield store


def fill(store: ArtifactStore, model: Model) -> None:
    for data in model.blobs.values():
        store.put(data)


def stage(model: Model, blocks: tuple[int, int], index: int = 0) -> StageRef:
    entry = entry_of(model.package, model.manifest.digest, ServeOptions(), "torch")
    return StageRef(entry, "m-0", 1, index, 2, blocks)


def test_a_stage_names_its_graph_and_its_weights_only(store: ArtifactStore) -> None:
    model = Model()
    fill(store, model)
    assignment = Library(store).assignment(stage(model, (1, 3), 1))
    weights = model.package.weights
    assert assignment.weights == list(weights[1:3])
    assert assignment.preprocess is None
    path = store.path(assignment.graph.digest)
    assert path is not None
    graph = decode_json(path.read_bytes(), StageGraph)
    assert [node.name for node in graph.nodes] == ["c1", "c2"]
    assert {weight.blob for weight in graph.weights.values()} == {w.digest for w in weights[1:3]}


def test_the_same_stage_has_the_same_digests(store: ArtifactStore, tmp_path: Path) -> None:
    model = Model()
    fill(store, model)
    library, other = Library(store), Library(store)
    first = library.assignment(stage(model, (0, 2)))
    assert library.assignment(stage(model, (0, 2))) == first
    library.keep_only(())
    assert library.assignment(stage(model, (0, 2))) == first
    assert other.assignment(stage(model, (0, 2))) == first
    with ArtifactStore(tmp_path / "elsewhere", 10**6) as elsewhere:
        fill(elsewhere, model)
        assert Library(elsewhere).assignment(stage(model, (0, 2))) == first


def test_what_is_in_use_is_pinned_and_let_go_after(store: ArtifactStore) -> None:
    model, other = Model(), Model("other")
    fill(store, model)
    fill(store, other)
    library = Library(store)
    graph = library.assignment(stage(model, (0, 4))).graph
    library.open(other.manifest.digest)
    library.open(other.manifest.digest)
    assert set(store._pins) == {*model.blobs, *other.blobs, graph.digest}
    library.keep_only({model.manifest.digest})
    assert set(store._pins) == {*model.blobs, graph.digest}
    library.keep_only(set())
    assert not store._pins


def test_plans_that_move_hold_no_more_and_more_files(store: ArtifactStore) -> None:
    model = Model(blocks=20)
    fill(store, model)
    library = Library(store)
    ranges = [(start, stop) for start in range(20) for stop in range(start + 1, 21)]
    assert len(ranges) > MOST_STAGES
    first = library.assignment(stage(model, ranges[0]))
    for blocks in ranges[1:]:
        library.assignment(stage(model, ranges[1]))
        library.assignment(stage(model, blocks))
    assert len(store._pins) == len(model.blobs) + MOST_STAGES
    kept = library.assignment(stage(model, ranges[1])).graph
    assert kept.digest in store._pins, "what is asked for stays"
    assert library.assignment(stage(model, ranges[0])) == first, "and what went is cut again"
    library.keep_only(())
    assert not store._pins


@pytest.mark.parametrize("which", ["package", "weights"])
def test_a_missing_artifact_is_named_and_nothing_stays_pinned(
    store: ArtifactStore, which: str
) -> None:
    model = Model()
    fill(store, model)
    gone = model.manifest if which == "package" else model.package.weights[2]
    store.remove(gone.digest)
    library = Library(store)
    with pytest.raises(ArtifactError) as caught:
        library.open(model.manifest.digest)
    assert caught.value.expected == gone.digest
    assert not store._pins
    assert library.missing([model.manifest, *model.package.weights]) == [gone]


def test_opened_by_several_threads_at_once(store: ArtifactStore) -> None:
    model = Model()
    fill(store, model)
    library = Library(store)
    with ThreadPoolExecutor(8) as pool:
        packages = list(pool.map(library.open, [model.manifest.digest] * 32))
    assert all(package is packages[0] for package in packages)
    assert all(count == 1 for _, count in store._pins.values())


def test_the_runtime() -> None:
    package = Model().package
    assert choose_runtime(package, "auto", lambda: {"torch", "onnx"}) == "torch"
    assert choose_runtime(package, "auto", set) == "torch"
    assert choose_runtime(package, "torch", set) == "torch"
    with pytest.raises(ConfigurationError, match="onnx"):
        choose_runtime(package, "onnx", set)

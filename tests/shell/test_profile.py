"""Timing a model's blocks, and the models kept on disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deploy.library import ModelLibrary, read_labels, read_transform
from deploy.photo import PHOTO, photo_to_type
from deploy.profile import (
    BlockTimes,
    block_shares,
    time_blocks,
    time_input,
    without_entry_cost,
)  # fmt: skip
from deploy.profile_cuts import measure_cuts
from edge_agent.runtimes import open_runtime
from orchestrator.models.importer import ImportedModel, import_module
from orchestrator.models.source import parse_source
from shared.codec import encode_json
from shared.compression import Compression
from shared.errors import ConfigurationError, ModelError
from shared.graph import CostClass
from shared.package import read_package
from shared.transform import IMAGENET


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This machine counts as not calibrated yet, and nothing is left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def imported() -> ImportedModel:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(64, 64, 3, padding=1, groups=64),
        torch.nn.ReLU(),
        torch.nn.Conv2d(64, 8, 1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    )
    return import_module(module, torch.zeros(1, 3, 96, 96), "tiny")


def test_blocks_are_timed(imported: ImportedModel) -> None:
    times = time_blocks(imported.manifest, imported.blobs, open_runtime("torch"))
    assert len(times.blocks) == len(imported.manifest.blocks) > 2
    assert len(times.pairs) == len(times.blocks) - 1
    assert all(seconds > 0 for seconds in (*times.blocks, *times.pairs))
    seconds = without_entry_cost(times)
    assert sum(seconds) == pytest.approx(times.whole)
    # 64 times the multiply-adds of the last block: no noise turns that round.
    assert seconds[0] > seconds[-1]


@pytest.mark.parametrize(
    ("blocks", "pairs", "whole", "expected"),
    [
        ((1.0,), (), 2.0, (2.0,)),
        ((1.0, 2.0), (3.0,), 3.0, (1.0, 2.0)),
        ((1.5, 2.5), (3.0,), 3.0, (1.0, 2.0)),
        ((0.2, 3.0), (2.0,), 2.0, (2.0 * 0.01 / 2.41, 2.0 * 2.4 / 2.41)),  # the least share is kept
        ((1.0, 1.0), (4.0,), 4.0, (2.0, 2.0)),  # slower as one: caches, or a busy neighbour
        ((1.0, 3.0, 2.0), (4.0, 3.0), 4.0, (1.0, 2.0, 1.0)),  # one cut costs, the other nothing
    ],
)
def test_entry_cost(
    blocks: tuple[float, ...], pairs: tuple[float, ...], whole: float, expected: tuple[float, ...]
) -> None:
    assert without_entry_cost(BlockTimes(blocks, pairs, whole)) == pytest.approx(expected)


REFERENCE = {
    "conv_dense": 0.004,
    "conv_depthwise": 0.001,
    "matmul": 0.001,
    "memory": 0.002,
    "overhead": 0.0001,
}


def test_block_shares_say_what_bounds_a_block(imported: ImportedModel) -> None:
    rows = block_shares(imported.manifest, REFERENCE)
    assert len(rows) == len(imported.manifest.blocks)
    names = [name.value for name in CostClass]
    for block, row in zip(imported.manifest.blocks, rows, strict=True):
        assert sum(row) == pytest.approx(1.0, abs=1e-4)
        operators = {node.op for node in imported.manifest.graph.nodes[slice(*block.nodes)]}
        shares = dict(zip(names, row, strict=True))
        assert (shares["matmul"] > 0) == ("linear" in operators)
        assert shares["overhead"] > 0
    assert max(dict(zip(names, rows[0], strict=True)).items(), key=lambda pair: pair[1])[0] in (
        "conv_dense",
        "memory",
    )


def test_a_slower_class_has_a_larger_share(imported: ImportedModel) -> None:
    column = list(CostClass).index(CostClass.CONV_DEPTHWISE)
    before = block_shares(imported.manifest, REFERENCE)
    after = block_shares(imported.manifest, REFERENCE | {"conv_depthwise": 0.1})
    changed = [b[column] < a[column] for b, a in zip(before, after, strict=True)]
    assert changed == [row[column] > 0 for row in before]
    assert any(changed)


def test_block_shares_without_a_reference(imported: ImportedModel) -> None:
    assert set(block_shares(imported.manifest, {})) == {(0.2,) * 5}


def test_input_is_timed() -> None:
    assert 0 < time_input(IMAGENET) < 1.0


def test_every_way_to_send_a_cut_is_measured(imported: ImportedModel) -> None:
    inputs = imported.references[-1].inputs
    cuts = measure_cuts(imported.manifest, imported.blobs, "torch", inputs)
    assert [cut.index for cut in cuts] == [cut.index for cut in imported.manifest.cuts]
    for cut in cuts:
        ways = {way.compression: way for way in cut.packed}
        assert ways["fp16"].bytes * 2 == cut.bytes
        assert ways["uint8"].bytes * 4 == cut.bytes + 4 * 8, "and one scale and zero"
        # Rounding is measured in what comes out at the end: finer steps, less of it.
        assert 0 < ways["fp16"].error < ways["uint8"].error < 0.2
        assert ways["uint8+zstd"].error == ways["uint8"].error
        for way in cut.packed:
            assert Compression.parse(way.compression).exact == (way.error == 0.0)
            assert way.bytes < cut.bytes
            assert way.pack_s > 0
    # The ReLU's output is half zeros, which travel for nothing.
    after_relu = next(cut for cut in cuts if "zstd" in {way.compression for way in cut.packed})
    assert after_relu.way("zstd").bytes < 0.8 * after_relu.bytes


def test_photograph_is_ours() -> None:
    assert PHOTO.read_bytes()[:3] == b"\xff\xd8\xff"
    assert "Stefan van der Walt" in (PHOTO.parent / "LICENCE.txt").read_text()
    assert Path(photo_to_type()).resolve() == PHOTO.resolve()


MODEL = parse_source("squeezenet1_1", weights="none")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def prepare(directory: Path) -> tuple[list[str], str]:
    """The steps, and the package's digest."""
    steps: list[str] = []
    library = ModelLibrary(directory)
    try:
        return steps, library.prepare(MODEL, steps.append, runtime="torch").manifest.digest
    finally:
        library.close()


def test_second_time_is_read_from_disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, digest = prepare(directory)
    assert [step.split()[0] for step in steps] == ["timing", "importing", "timing", "trying"]
    monkeypatch.setitem(sys.modules, "orchestrator.models.importer", None)
    assert prepare(directory) == ([f"{MODEL.name} was imported and timed here before"], digest)


def test_package_holds_all_that_is_needed(directory: Path) -> None:
    library = ModelLibrary(directory)
    prepared = library.prepare(
        replace(MODEL, name="mine"), lambda _: None, runtime="torch", preprocess="imagenet"
    )
    path = library.store.path(prepared.manifest.digest)
    assert path is not None
    package = read_package(path.read_bytes())
    assert package.manifest.model == "mine"
    assert package.manifest.preprocess == IMAGENET
    measured = package.measured["torch"]
    assert len(measured.block_seconds) == len(package.manifest.blocks)
    assert measured.input_seconds > 0
    assert measured.runtime_bytes > 50e6
    assert set(measured.reference) >= {"conv_dense", "matmul", "memory"}
    assert package.profile("torch").work_s > 0
    library.close()


def test_every_runtime_is_timed(directory: Path) -> None:
    library = ModelLibrary(directory)
    package = library.prepare(MODEL, lambda _: None).package
    assert set(package.measured) == {"torch", "onnxruntime"}
    for measured in package.measured.values():
        assert len(measured.block_seconds) == len(package.manifest.blocks)
        assert set(measured.reference) >= {"conv_dense", "matmul", "memory"}
    library.close()


def test_labels_and_transform_from_files(directory: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\n\n dog \n")
    assert read_labels(labels) == ("cat", "dog")
    labels.write_text('["cat", "a\\nb"]')
    assert read_labels(labels) == ("cat", "a\nb")
    transform = tmp_path / "transform.json"
    transform.write_bytes(encode_json(replace(IMAGENET, crop=64)))
    assert read_transform(str(transform)).crop == 64
    library = ModelLibrary(directory)
    manifest = library.prepare(
        MODEL, lambda _: None, runtime="torch", preprocess=str(transform), labels=labels
    ).package.manifest
    assert manifest.labels == ("cat", "a\nb")
    assert manifest.preprocess is not None
    assert manifest.preprocess.crop == 64
    library.close()


@pytest.mark.parametrize("content", [b"", b"  \n", b"[1, 2]", b"\xff\xfe"])
def test_labels_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="--labels"):
        read_labels(path)


@pytest.mark.parametrize("content", [None, b"{}", b"resize: 3"])
def test_transform_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "transform"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="--preprocess"):
        read_transform(str(path))


def test_damaged_cache_is_made_anew(directory: Path) -> None:
    _, digest = prepare(directory)
    largest = max((directory / "blobs").glob("??/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"damaged")
    steps, again = prepare(directory)
    assert any(step.startswith("importing") for step in steps)
    # The weights come from the same seed; times differ, and with them the package's digest.
    assert largest.stat().st_size > 7
    assert len(again) == len(digest)


def test_a_file_is_known_by_its_content(directory: Path, tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
    first, second = tmp_path / "first.pt2", tmp_path / "second.pt2"
    torch.export.save(torch.export.export(net, (torch.zeros(1, 8),)), first)
    second.write_bytes(first.read_bytes())
    library = ModelLibrary(directory)
    steps: list[str] = []
    found = [
        library.prepare(parse_source(str(path)), steps.append, runtime="torch").package
        for path in (first, second)
    ]
    assert steps[-1] == f"{second} was imported and timed here before"
    assert [package.manifest.model for package in found] == ["first", "second"]
    assert found[0].measured == found[1].measured
    with pytest.raises(ModelError, match="cannot be read"):
        library.prepare(parse_source(str(tmp_path / "third.pt2")), steps.append)
    library.close()


def test_unknown_model_and_weights(directory: Path, tmp_path: Path) -> None:
    library = ModelLibrary(directory)
    with pytest.raises(ModelError, match="squeezenet1_1"):
        library.prepare(parse_source("squeezenet1_2", weights="none"), lambda _: None)
    missing = replace(MODEL, weights=str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="cannot be read"):
        library.prepare(missing, lambda _: None)
    with pytest.raises(ConfigurationError, match="not installed"):
        library.prepare(MODEL, lambda _: None, runtime="steam")
    library.close()

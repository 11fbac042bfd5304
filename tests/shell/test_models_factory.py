"""`module:factory`: called here, imported exactly, and refused with a reason."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.exactness import compare
from deploy.library import ModelLibrary
from edge_agent.runtimes import open_runtime
from orchestrator.models.importer import ImportedModel
from orchestrator.models.resolve import open_source
from orchestrator.models.slice import slice_stage
from orchestrator.models.source import InputShape, parse_source
from shared.errors import ModelError, StageError
from shared.graph import Kernels
from shared.manifest import WeightsMark
from tests.fakes import nets

IDS, MASK = (InputShape.parse(f"{name}:1x12:int64") for name in ("ids", "mask"))
ENCODER = parse_source("tests.fakes.nets:encoder", inputs=(IDS, MASK))
IMAGE = InputShape((1, 3, 16, 16))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with a module `bring` to be written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    sys.modules.pop("bring", None)


def imported(reference: str, *inputs: InputShape) -> ImportedModel:
    return open_source(parse_source(reference, inputs=inputs))(Kernels.FAST)


def test_an_encoder_of_token_ids_and_a_mask_is_exact_in_both_runtimes() -> None:
    model = open_source(ENCODER)(Kernels.FAST)
    graph = model.manifest.graph
    assert [(v.name, str(v.spec)) for v in graph.inputs] == [
        ("ids", "int64[1, 12]"),
        ("mask", "int64[1, 12]"),
    ]
    assert len(model.manifest.blocks) > 4
    assert model.manifest.weights is WeightsMark.FILE
    assert {leaf.type for leaf in model.manifest.leaves} >= {"Embedding", "Linear", "LayerNorm"}
    # Nothing that only the first token could show: many are asked for, and parts are masked out.
    ids = np.concatenate([reference.inputs["ids"].ravel() for reference in model.references])
    assert len(set(ids.tolist())) > 10
    assert all(0 < reference.inputs["mask"].mean() < 1 for reference in model.references)
    for runtime in ("torch", "onnxruntime"):
        assert compare(model, runtime).error < 2e-6


def test_tokens_beyond_the_vocabulary_are_an_error_of_the_stage() -> None:
    model = open_source(ENCODER)(Kernels.FAST)
    graph = slice_stage(model.manifest, 0, len(model.manifest.blocks))
    ones = np.ones((1, 12), np.int64)
    for runtime in ("torch", "onnxruntime"):
        stage = open_runtime(runtime).load(graph, model.blobs)
        with pytest.raises(StageError):
            stage.run({"ids": ones * 50, "mask": ones})
        assert stage.run({"ids": ones * 49, "mask": ones}).keys() == set(graph.outputs)


def test_the_current_directory_is_looked_in_and_weights_are_the_same_every_time(
    folder: Path,
) -> None:
    (folder / "bring.py").write_text(
        "from torch import nn\nclass Zoo:\n    @staticmethod\n    def small(): return nn.Linear(6, 3)\n"
    )
    state = torch.random.get_rng_state()
    first, second = (imported("bring:Zoo.small", InputShape((1, 6))) for _ in range(2))
    assert first.manifest.model == "small"
    assert first.blobs.keys() == second.blobs.keys()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weights_from_a_file(folder: Path) -> None:
    torch.save(nets.Convolutional().state_dict(), folder / "w.pth")
    source = parse_source("tests.fakes.nets:Convolutional", weights="w.pth", inputs=(IMAGE,))
    fixed = open_source(source)(Kernels.FAST)
    assert fixed.blobs.keys() != imported("tests.fakes.nets:Convolutional", IMAGE).blobs.keys()
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "w.pth")
    with pytest.raises(ModelError, match="do not fit"):
        open_source(source)


@pytest.mark.parametrize(
    ("code", "reference", "match"),
    [
        ("", "nobody_has_this:make", "no Python module 'nobody_has_this'"),
        ("", "bring.sub:make", "no Python module 'bring.sub'"),
        ("import nobody_has_this", "bring:make", "importing bring failed: ModuleNotFoundError"),
        ("x = 1 / 0", "bring:make", "importing bring failed: ZeroDivisionError"),
        ("raise SystemExit(3)", "bring:make", "importing bring failed: SystemExit"),
        ("def other(): pass", "bring:make", "bring has no 'make'; expected .*other"),
        ("make = 3", "bring:make", "cannot be called"),
        ("def make(size): pass", "bring:make", "calling bring:make without arguments failed"),
        ("def make(): return 'net'", "bring:make", "expected a torch.nn.Module; got str"),
    ],
)
def test_what_makes_no_model_is_named(folder: Path, code: str, reference: str, match: str) -> None:
    (folder / "bring.py").write_text(code)
    with pytest.raises(ModelError, match=match):
        imported(reference, IMAGE)


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        ("ids:1x12:int64 nope:1x12:int64", "no input 'nope'.*expected .*ids, mask"),
        ("ids:1x12:int64 1x12:int64", "some have names and some have none"),
        ("1x12:int64", "cannot be traced.*mask"),
        ("ids:1x12:int64 mask:1x13:int64", "cannot be traced"),
        ("1x12 1x12", "cannot be traced"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shapes: str, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        imported("tests.fakes.nets:encoder", *map(InputShape.parse, shapes.split()))


def test_what_a_factory_made_before_is_not_timed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digests: list[str] = []
    steps: list[list[str]] = []
    for _ in range(2):
        library = ModelLibrary(tmp_path / "models")
        steps.append([])
        prepared = library.prepare(ENCODER, steps[-1].append, runtime="onnxruntime")
        digests.append(prepared.manifest.digest)
        library.close()
    assert digests[0] == digests[1]
    assert any("timing" in step and "blocks" in step for step in steps[0])
    assert not any("timing" in step for step in steps[1])

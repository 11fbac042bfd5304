"""The torch runtime: exact on whole models and on stages, at home with odd arrays, strict about the rest."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from edge_agent.runtimes import LoadedStage, available_runtimes, open_runtime, threads_for
from edge_agent.runtimes import torch_runtime as module
from edge_agent.runtimes.torch_ops import supported
from edge_agent.runtimes.torch_weights import _cache
from orchestrator.models.importer import ImportedModel, import_module, import_torchvision
from orchestrator.models.slice import slice_stage
from orchestrator.models.zoo import build
from shared.errors import GraphError, StageError
from shared.graph import Graph, GraphBuilder, TensorSpec
from shared.operators import OPS, QUANTISED, WHOLE

Arrays = dict[str, np.ndarray[Any, Any]]


def load(model: ImportedModel, start: int, stop: int) -> LoadedStage:
    return open_runtime("torch").load(slice_stage(model.manifest, start, stop), model.blobs)


def run_plan(model: ImportedModel, bounds: list[int], inputs: Arrays) -> np.ndarray[Any, Any]:
    values: dict[str, Any] = dict(inputs)
    for start, stop in pairwise(bounds):
        values = load(model, start, stop).run(values)
    (result,) = values.values()
    return result


def error_of(result: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    return float(np.abs(result - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def mobilenet() -> ImportedModel:
    return import_torchvision("mobilenet_v2", "none")


@pytest.fixture(scope="module")
def reference() -> tuple[Arrays, np.ndarray[Any, Any]]:
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    with torch.inference_mode():
        return {"x": x}, build("mobilenet_v2", "none", 0).module(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize(
    "bounds", [[0, 53], [0, 1, 53], [0, 7, 53], [0, 30, 53], [0, 17, 18, 40, 53]]
)
def test_any_cut_gives_the_whole_model_s_answer(
    mobilenet: ImportedModel, reference: tuple[Arrays, np.ndarray[Any, Any]], bounds: list[int]
) -> None:
    inputs, expected = reference
    assert error_of(run_plan(mobilenet, bounds, inputs), expected) < 1e-5


class Tangle(nn.Module):
    """Many tensors live at once: skips over several layers, a concatenation, a gate, a reused input."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(5))
        self.gate = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(18, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.convs[0](x).relu_()
        b = nn.functional.silu(self.convs[1](a))
        c = (self.convs[2](b) + a).relu_()
        d = nn.functional.hardtanh_(self.convs[3](c) + x, 0.0, 6.0)
        g = torch.sigmoid(self.gate(d.mean((2, 3), keepdim=True)))
        e = self.convs[4](d) * g + b
        return self.head(torch.cat([e, a, c], 1).mean((2, 3)))


class Pointwise(nn.Module):
    """Convolutions of one pixel in every surrounding: activations, an addition, groups, a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(5))
        self.bare = nn.Conv2d(8, 8, 1, bias=False)
        self.groups = nn.Conv2d(8, 8, 1, groups=2)
        self.stride = nn.Conv2d(8, 8, 1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.relu6(self.convs[0](x))
        y = self.convs[1](y) + y
        y = torch.relu(self.convs[2](y) + y)
        y = nn.functional.hardswish(self.convs[3](y))
        y = nn.functional.silu(self.bare(y)) + self.groups(y)
        gate = torch.sigmoid(self.convs[4](y.mean((2, 3), keepdim=True)))
        return self.stride(y * gate)


@pytest.mark.parametrize("batch", [1, 3])
def test_convolutions_of_one_pixel(batch: int) -> None:
    torch.manual_seed(0)
    net = Pointwise().eval()
    x = torch.randn(batch, 8, 6, 5)
    model = import_module(net, torch.zeros_like(x), "pointwise")
    with torch.inference_mode():
        expected = net(x.clone()).numpy()
    count = len(model.manifest.blocks)
    for bounds in ([0, count], list(range(count + 1))):
        assert error_of(run_plan(model, bounds, {"x": x.numpy()}), expected) < 2e-6


@pytest.mark.parametrize("onednn", [True, False])
def test_every_cut_of_a_tangle(monkeypatch: pytest.MonkeyPatch, onednn: bool) -> None:
    if not onednn:
        monkeypatch.setattr(module, "is_available", lambda: False)
    torch.manual_seed(0)
    net = Tangle().eval()
    model = import_module(net, torch.zeros(1, 6, 9, 9), "tangle")
    x = torch.randn(1, 6, 9, 9)
    with torch.inference_mode():
        expected = net(x.clone()).numpy()
    count = len(model.manifest.blocks)
    assert max(cut.tensors for cut in model.manifest.cuts) >= 3
    before = x.numpy().copy()
    for cut in range(1, count):
        assert error_of(run_plan(model, [0, cut, count], {"x": x.numpy()}), expected) < 1e-5
    assert error_of(run_plan(model, list(range(count + 1)), {"x": x.numpy()}), expected) < 1e-5
    np.testing.assert_array_equal(x.numpy(), before)


def test_every_operator_of_the_graph_is_bound() -> None:
    assert supported() == OPS.keys() - QUANTISED - {WHOLE}


def add_one(shape: tuple[int, ...] = (1, 2, 3, 3)) -> Graph:
    b = GraphBuilder("add-one")
    x = b.input("x", shape)
    y = b.node("add_scalar", x, shape=shape, value=1.0)
    return b.build(b.node("mul_scalar", y, shape=shape, value=2.0, name="y"))


def stage(graph: Graph) -> LoadedStage:
    return open_runtime("torch").load(graph, {})


BASE = np.arange(18, dtype=np.float32).reshape(1, 2, 3, 3)


def read_only() -> np.ndarray[Any, Any]:
    return np.frombuffer(BASE.tobytes(), np.float32).reshape(BASE.shape)


def unaligned() -> np.ndarray[Any, Any]:
    return np.frombuffer(b"!" + BASE.tobytes(), np.float32, offset=1).reshape(BASE.shape)


def channels_last() -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(BASE.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def reversed_twice() -> np.ndarray[Any, Any]:
    return BASE[:, ::-1].copy()[:, ::-1]


@pytest.mark.parametrize("make", [BASE.copy, read_only, unaligned, channels_last, reversed_twice])
def test_arrays_of_every_kind_are_taken_and_left_alone(make: Any) -> None:
    array = make()
    # Warnings are errors here: torch warns about read-only arrays.
    result = stage(add_one()).run({"x": array})["y"]
    np.testing.assert_array_equal(result, (BASE + 1) * 2)
    np.testing.assert_array_equal(array, BASE)


def test_channels_last_goes_in_and_comes_out_without_a_copy() -> None:
    b = GraphBuilder("conv")
    x = b.input("x", (1, 4, 8, 8))
    w = b.weight("w", (4, 4, 1, 1), blob="b")
    attributes: dict[str, Any] = {
        "stride": (1, 1),
        "padding": (0, 0),
        "dilation": (1, 1),
        "groups": 1,
    }
    y = b.node("conv2d", x, w, None, shape=(1, 4, 8, 8), **attributes)
    blob = safetensors.torch.save({"w": torch.eye(4).reshape(4, 4, 1, 1)})
    loaded = open_runtime("torch").load(b.build("x", y), {"b": blob})
    array = np.random.default_rng(0).standard_normal((1, 8, 8, 4), np.float32).transpose(0, 3, 1, 2)
    result = loaded.run({"x": array})
    assert result["x"] is array
    np.testing.assert_array_equal(result[y], array)
    assert result[y].strides == array.strides
    program = loaded._program  # type: ignore[attr-defined]
    tensor = loaded._tensor(program.inputs[0], {"x": array})  # type: ignore[attr-defined]
    assert tensor.data_ptr() == array.ctypes.data


def test_an_output_pins_no_larger_memory() -> None:
    b = GraphBuilder("cut-out")
    x = b.input("x", (1, 1000))
    y = b.node("add_scalar", x, shape=(1, 1000), value=1.0)
    z = b.node("slice", y, shape=(1, 1), dim=1, start=0, stop=1, step=1)
    result = stage(b.build(z)).run({"x": np.zeros((1, 1000), np.float32)})[z]
    assert result.tolist() == [[1.0]]
    base = result
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert base.nbytes == 4


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "an array 'x'; got none"),
        ({"z": BASE}, "an array 'x'; got z"),
        ({"x": BASE, "z": BASE}, "expected x; got x, z"),
        ({"x": BASE.astype(np.float64)}, r"float32\[1, 2, 3, 3\]; got float64\[1, 2, 3, 3\]"),
        ({"x": BASE[0]}, r"got float32\[2, 3, 3\]"),
    ],
)
def test_inputs_are_checked(inputs: Any, message: str) -> None:
    with pytest.raises(StageError, match=message):
        stage(add_one()).run(inputs)


def linear(shape: tuple[int, int] = (3, 4), blob: str = "b") -> Graph:
    b = GraphBuilder("linear")
    x = b.input("x", (1, 4))
    w = b.weight("w", shape, blob=blob)
    return b.build(b.node("linear", x, w, None, shape=(1, 3)))


@pytest.mark.parametrize(
    ("blobs", "message"),
    [
        ({}, "expected blob b"),
        ({"b": b"not safetensors"}, "expected safetensors"),
        ({"b": Path("/nowhere/blob")}, "expected safetensors"),
        ({"b": safetensors.torch.save({"v": torch.zeros(3, 4)})}, "a weight 'w'"),
        ({"b": safetensors.torch.save({"w": torch.zeros(4, 3)})}, r"got float32\[4, 3\]"),
        ({"b": safetensors.torch.save({"w": torch.zeros(3, 4).half()})}, r"got float16\[3, 4\]"),
    ],
)
def test_weights_are_checked(blobs: Any, message: str) -> None:
    with pytest.raises(StageError, match=message):
        open_runtime("torch").load(linear(), blobs)


def test_a_graph_that_lies_about_shapes_is_refused_at_load() -> None:
    graph = add_one()
    lying = replace(graph.nodes[-1], spec=TensorSpec("float32", (1, 2)))
    with pytest.raises(StageError, match=r"expected float32\[1, 2\]; got float32\[1, 2, 3, 3\]"):
        stage(replace(graph, nodes=(*graph.nodes[:-1], lying)))
    wrong = replace(graph.nodes[-1], op="reshape", kwargs={"shape": (5, 5)})
    with pytest.raises(StageError, match="operator y: "):
        stage(replace(graph, nodes=(*graph.nodes[:-1], wrong)))
    with pytest.raises(GraphError):
        stage(replace(graph, outputs=("gone",)))


def test_weights_are_shared_by_digest_and_freed_with_the_last_stage(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    safetensors.torch.save_file({"w": torch.ones(3, 4)}, path)
    graph = linear(blob="shared-digest")
    old = open_runtime("torch").load(graph, {"shared-digest": path})
    path.unlink()
    # The new generation needs no file: the old one holds the weight.
    new = open_runtime("torch").load(graph, {})
    old.unload()
    x = {"x": np.ones((1, 4), np.float32)}
    with pytest.raises(StageError, match="was unloaded"):
        old.run(x)
    assert new.run(x)[graph.outputs[0]].tolist() == [[4.0] * 3]
    new.unload()
    gc.collect()
    assert not [key for key in _cache if key[0] == "shared-digest"]


def test_a_stage_may_be_run_in_another_thread_than_it_was_loaded_in() -> None:
    loaded, results = stage(add_one()), []
    thread = threading.Thread(target=lambda: results.append(loaded.run({"x": BASE})["y"]))
    thread.start()
    thread.join(20)
    np.testing.assert_array_equal(results[0], (BASE + 1) * 2)


def test_runtimes_are_listed_without_importing_one_and_torchvision_is_never_imported() -> None:
    assert available_runtimes()["torch"].startswith("2.")
    with pytest.raises(StageError, match=r"runtime 'abacus' is not installed; expected .*torch"):
        open_runtime("abacus")
    code = (
        "import sys; from edge_agent.runtimes import available_runtimes, open_runtime;"
        "available_runtimes(); before = 'torch' in sys.modules; open_runtime('torch');"
        "sys.exit(before or 'torchvision' in sys.modules or 'torch' not in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("share", "threads"), [(0.2, 1), (1.0, 1), (1.9, 1), (2.0, 2), (4.5, 4)])
def test_threads_follow_the_quota(share: float, threads: int) -> None:
    assert threads_for(share) == threads

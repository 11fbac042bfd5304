"""The ONNX Runtime runtime: what the torch runtime gives, for every operator and on models; without torch."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
from torch import nn

from edge_agent.calibration import calibrate
from edge_agent.runtimes import LoadedStage, available_runtimes, open_runtime
from edge_agent.runtimes.onnx_ops import supported
from orchestrator.models.importer import ImportedModel, import_module, import_torchvision
from orchestrator.models.slice import slice_stage
from orchestrator.models.zoo import build
from shared.errors import GraphError, StageError
from shared.graph import Graph, GraphBuilder, Kernels, Node, TensorSpec, Value, Weight
from shared.operators import OPS, QUANTISED, WHOLE
from tests.shell.test_torch_runtime import (
    BASE,
    Tangle,
    add_one,
    channels_last,
    error_of,
    linear,
    read_only,
    reversed_twice,
    unaligned,
)

Arrays = dict[str, np.ndarray[Any, Any]]
FULL = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
POOL = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": False}
IMAGE, ROWS = (2, 4, 7, 6), (2, 3, 8)

Case = tuple[str, tuple[Any, ...], dict[str, Any]]
"""An operator, operands (a shape: a random input; "w", "bool" or "int" and a shape: a weight, booleans or
whole numbers from 0 to 3; a list; None), attributes."""

CASES: list[Case] = [
    ("conv2d", (IMAGE, ("w", 6, 4, 3, 3), ("w", 6)), FULL),
    ("conv2d", (IMAGE, ("w", 4, 1, 3, 2), None), {**FULL, "groups": 4, "stride": (2, 1)}),
    ("conv2d", (IMAGE, ("w", 6, 2, 3, 3), ("w", 6)), {**FULL, "groups": 2, "dilation": (2, 1)}),
    ("linear", ((3, 8), ("w", 5, 8), ("w", 5)), {}),
    ("linear", ((3, 8), ("w", 5, 8), None), {}),
    ("linear", (ROWS, ("w", 5, 8), ("w", 5)), {}),
    ("repeat", ((3, 1, 4), (3, 5, 4)), {"dim": 1}),
    ("matmul", (ROWS, (2, 8, 4)), {}),
    ("matmul", ((2, 5, 3, 8), ("w", 8, 4)), {}),
    ("einsum", ([(2, 3, 4), (2, 5, 4)],), {"equation": "bij,bkj->bik"}),
    *(
        (
            "scaled_dot_product_attention",
            ((2, 2, 5, 4), (2, 2, keys, 4), (2, 2, keys, 3), mask),
            {"is_causal": causal, "scale": scale},
        )
        for keys, mask, causal, scale in (
            (6, None, False, None),
            (5, None, True, 0.3),
            (6, (1, 2, 5, 6), False, None),
            (6, ("bool", 5, 6), False, None),
        )
    ),
    ("batch_norm", (IMAGE, ("w", 4), ("w", 4), ("w", 4), ("w", 4)), {"eps": 1e-3}),
    ("batch_norm", (IMAGE, None, None, ("w", 4), ("w", 4)), {"eps": 1e-5}),
    ("layer_norm", (ROWS, ("w", 8), ("w", 8)), {"normalized_shape": (8,), "eps": 1e-6}),
    ("layer_norm", (ROWS, None, None), {"normalized_shape": (3, 8), "eps": 1e-5}),
    ("group_norm", (IMAGE, ("w", 4), ("w", 4)), {"groups": 2, "eps": 1e-5}),
    ("group_norm", (IMAGE, None, None), {"groups": 4, "eps": 1e-5}),
    *(
        (name, (IMAGE,), {})
        for name in (
            *("relu", "silu", "sigmoid", "hardswish", "hardsigmoid", "mish", "tanh", "exp", "neg"),
            "abs",
        )
    ),
    *((name, ("positive",), {}) for name in ("sqrt", "rsqrt", "reciprocal", "log")),
    ("erf", (IMAGE,), {}),
    ("logical_not", (("bool", 5, 6),), {}),
    *(
        ("cast", (form,), {"dtype": to})
        for form, to in ((IMAGE, "int64"), (("int", 5), "float32"), (("bool", 5, 6), "float32"))
    ),
    *((name, (IMAGE, IMAGE), {}) for name in ("maximum", "minimum", "less", "less_equal")),
    *((name, (IMAGE, ("w", 6)), {}) for name in ("maximum", "minimum", "less", "less_equal")),
    *((name, (("int", 5, 6), ("int", 6)), {}) for name in ("equal", "less", "less_equal")),
    *((name, (("bool", 5, 6), ("bool", 1, 6)), {}) for name in ("equal", "logical_or")),
    ("logical_and", (("bool", 5, 6), ("bool", 6)), {}),
    ("where", (("bool", 7, 6), IMAGE, ("w", 1)), {}),
    ("where", (("bool", 7, 6), ("w", 6), (7, 6)), {}),
    ("take", (("w", 4, 8), ("int", 2, 3)), {"dim": 0}),
    ("take", (("w", 4, 8), ("int",)), {"dim": 0}),
    ("take", (IMAGE, ("int", 5)), {"dim": 1}),
    ("take", (ROWS, ("int", 2, 2)), {"dim": 2}),
    ("hardtanh", (IMAGE,), {"min": 0.0, "max": 6.0}),
    ("gelu", (IMAGE,), {"approximate": "none"}),
    ("gelu", (IMAGE,), {"approximate": "tanh"}),
    ("leaky_relu", (IMAGE,), {"slope": 0.2}),
    ("elu", (IMAGE,), {"alpha": 0.7}),
    ("softmax", (IMAGE,), {"dim": 1}),
    ("softmax", (ROWS,), {"dim": -1}),
    ("log_softmax", (ROWS,), {"dim": -1}),
    ("clamp", (IMAGE,), {"min": -0.5, "max": None}),
    ("clamp", (IMAGE,), {"min": None, "max": 0.5}),
    ("clamp", (IMAGE,), {"min": None, "max": None}),
    ("add", (IMAGE, (1, 4, 1, 1)), {"alpha": 1.0}),
    ("add", (IMAGE, IMAGE), {"alpha": 0.5}),
    ("sub", (IMAGE, IMAGE), {"alpha": 2.0}),
    ("mul", (IMAGE, ("w", 6)), {}),
    ("div", (IMAGE, "positive"), {}),
    ("add_scalar", (IMAGE,), {"value": 1.5}),
    ("mul_scalar", (IMAGE,), {"value": -2.0}),
    ("div_scalar", (IMAGE,), {"value": 3.0}),
    ("pow_scalar", (IMAGE,), {"value": 2.0}),
    ("pow_scalar", ("positive",), {"value": 0.5}),
    ("max_pool2d", (IMAGE,), {**POOL, "dilation": (1, 1)}),
    ("max_pool2d", (IMAGE,), {**POOL, "dilation": (1, 1), "ceil_mode": True}),
    ("max_pool2d", (IMAGE,), {**POOL, "dilation": (2, 1), "stride": (1, 1)}),
    ("max_pool2d", (IMAGE,), {**POOL, "padding": (0, 0), "dilation": (1, 1), "ceil_mode": True}),
    *(
        (
            "avg_pool2d",
            (IMAGE,),
            {**POOL, "ceil_mode": ceil, "count_include_pad": include, "divisor": divisor},
        )
        for ceil, include, divisor in (
            (False, True, None),
            (False, False, None),
            (True, True, None),
            (True, False, None),
            (False, True, 5),
        )
    ),
    *(
        ("adaptive_avg_pool2d", (IMAGE,), {"output_size": s})
        for s in ((1, 1), (7, 3), (3, 4), (7, 6))
    ),
    *(
        (name, (IMAGE,), {"dims": dims, "keepdim": keepdim})
        for name in ("mean", "sum", "amax")
        for dims, keepdim in (((2, 3), True), ((-1, -2), False), ((1,), False))
    ),
    *(
        ("vector_norm", (IMAGE,), {"ord": order, "dims": (-1,), "keepdim": True})
        for order in (1.0, 2.0, 3.0)
    ),
    ("reshape", (IMAGE,), {"shape": (2, -1)}),
    ("permute", (IMAGE,), {"dims": (0, -1, 1, 2)}),
    ("expand", ((1, 4, 1),), {"shape": (3, -1, 5)}),
    ("select", (IMAGE,), {"dim": 1, "index": -1}),
    ("slice", (IMAGE,), {"dim": 2, "start": 1, "stop": 2**31 - 1, "step": 2}),
    ("slice", (IMAGE,), {"dim": -1, "start": -3, "stop": -1, "step": 1}),
    ("concat", ([IMAGE, IMAGE, (2, 1, 7, 6)],), {"dim": 1}),
    ("concat", ([ROWS, ROWS],), {"dim": -1}),
    *(
        ("pad", (IMAGE,), {"pads": pads, "mode": mode, "value": 0.5})
        for pads, mode in (
            ((1, 2), "constant"),
            ((0, 1, 2, 0), "constant"),
            ((0, -1, 2, 0), "constant"),
            ((1, 2, 0, 3), "reflect"),
            ((1, 2, 0, 3), "replicate"),
            ((1, 2, 0, 3), "circular"),
        )
    ),
    ("roll", (IMAGE,), {"shifts": (-2, 3), "dims": (2, 3)}),
    ("roll", (IMAGE,), {"shifts": (5,), "dims": ()}),
    ("roll", (IMAGE,), {"shifts": (7,), "dims": (2,)}),
]


def one(case: Case) -> tuple[Graph, Arrays, dict[str, bytes]]:
    """A graph of one operator, inputs and blobs. The result's form is the torch runtime's."""
    op, operands, attributes = case
    random = np.random.default_rng(0)
    inputs: Arrays = {}
    weights: Arrays = {}

    def operand(form: Any) -> Any:
        name = f"x{len(inputs) + len(weights)}"
        if form is None:
            return None
        if isinstance(form, list):
            return tuple(operand(item) for item in form)
        if form[0] == "w":
            # Between 0.5 and 1.5: some of them are variances.
            weights[name] = random.random(form[1:], np.float32) + 0.5
            return name
        array: np.ndarray[Any, Any]
        if form == "positive":
            array = random.random(IMAGE, np.float32) + 0.1
        elif form[0] == "bool":
            array = np.arange(form[1]) % 2 == 0 if len(form) == 2 else np.tri(*form[1:], dtype=bool)
        elif form[0] == "int":
            array = random.integers(0, 4, form[1:])
        else:
            array = 2 * random.standard_normal(form, np.float32)
        inputs[name] = array
        return name

    args = tuple(operand(form) for form in operands)
    data = safetensors.torch.save({n: torch.from_numpy(a) for n, a in weights.items()})
    digest = hashlib.sha256(data).hexdigest()
    # A lie, but of the rank of all that is sliced, which that operator goes by.
    node = Node("y", op, args, attributes, TensorSpec("float32", (1, 1, 1, 1)))
    graph = Graph(
        op,
        tuple(Value(n, TensorSpec(str(a.dtype), a.shape)) for n, a in inputs.items()),
        (node,),
        ("y",),
        {n: Weight(TensorSpec("float32", a.shape), digest, n) for n, a in weights.items()},
    )
    blobs = {digest: data}
    with pytest.raises(StageError) as found:
        open_runtime("torch").load(graph, blobs)
    # "float32[2, 3]", of which the torch runtime says that it is not the lie.
    dtype, _, sizes = str(found.value.got)[:-1].partition("[")
    shape = tuple(int(size) for size in sizes.split(","))
    node = replace(node, spec=TensorSpec(dtype, shape))
    return replace(graph, nodes=(node,)), inputs, blobs


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def test_operators_give_what_torch_s_give(case: Case) -> None:
    graph, inputs, blobs = one(case)
    expected = open_runtime("torch").load(graph, blobs).run(inputs)["y"]
    result = open_runtime("onnxruntime").load(graph, blobs).run(inputs)["y"]
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    if expected.dtype.kind == "f":
        assert error_of(result, expected) < 2e-6
    else:
        np.testing.assert_array_equal(result, expected)


def test_every_operator_is_converted_and_tested() -> None:
    assert supported() == OPS.keys() - {WHOLE}
    # Those of int8 graphs have no counterpart in torch: test_onnx_quantised.py.
    assert {case[0] for case in CASES} == OPS.keys() - QUANTISED - {WHOLE}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            ("pad", (IMAGE,), {"pads": (1, 1), "mode": "wrapped", "value": 0.0}),
            r"y \(pad\): mode; expected constant \| reflect \| .*; got wrapped",
        ),
        (
            ("vector_norm", (IMAGE,), {"ord": 0.0, "dims": (1,), "keepdim": True}),
            r"y \(vector_norm\): ord; ",
        ),
        (("gelu", (IMAGE,), {"approximate": "rough"}), r"y \(gelu\): approximation; "),
    ],
)
def test_what_onnx_lacks_is_refused_at_load(case: Case, message: str) -> None:
    op, (shape,), attributes = case
    b = GraphBuilder(op)
    graph = b.build(b.node(op, b.input("x", shape), shape=shape, name="y", **attributes))
    with pytest.raises(StageError, match=message):
        stage(graph)


def load(model: ImportedModel, start: int, stop: int) -> LoadedStage:
    return open_runtime("onnxruntime").load(slice_stage(model.manifest, start, stop), model.blobs)


def run_plan(model: ImportedModel, bounds: list[int], inputs: Arrays) -> np.ndarray[Any, Any]:
    values: dict[str, Any] = dict(inputs)
    for start, stop in pairwise(bounds):
        values = load(model, start, stop).run(values)
    (result,) = values.values()
    return result


def test_mobilenet_v2_whole_and_cut() -> None:
    model = import_torchvision("mobilenet_v2", "none")
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    with torch.inference_mode():
        expected = build("mobilenet_v2", "none", 0).module(torch.from_numpy(x)).numpy()
    for bounds in ([0, 53], [0, 17, 18, 40, 53], list(range(54))):
        assert error_of(run_plan(model, bounds, {"x": x}), expected) < 1e-5


class Attentive(nn.Module):
    """Images to rows, norms and attention: what vision transformers are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.patches(x).flatten(2).transpose(1, 2)
        rows = self.norm(rows + torch.roll(rows, 1, 1))
        return self.head(self.layer(rows)[:, 0])


@pytest.mark.parametrize(("make", "edge"), [(Tangle, 9), (Attentive, 12)])
def test_every_cut_of_small_nets(make: Callable[[], nn.Module], edge: int) -> None:
    torch.manual_seed(0)
    net = make().eval()
    x = torch.randn(1, 6 if make is Tangle else 3, edge, edge)
    model = import_module(net, torch.zeros_like(x), "small")
    with torch.inference_mode():
        expected = net(x.clone()).numpy()
    count = len(model.manifest.blocks)
    before = x.numpy().copy()
    plans = [[0, count], *([0, cut, count] for cut in range(1, count)), list(range(count + 1))]
    for bounds in plans:
        assert error_of(run_plan(model, bounds, {"x": x.numpy()}), expected) < 1e-5
    np.testing.assert_array_equal(x.numpy(), before)


def stage(graph: Graph) -> LoadedStage:
    return open_runtime("onnxruntime").load(graph, {})


@pytest.mark.parametrize("make", [BASE.copy, read_only, unaligned, channels_last, reversed_twice])
def test_arrays_of_every_kind_are_taken_and_left_alone(make: Any) -> None:
    array = make()
    result = stage(add_one()).run({"x": array})["y"]
    np.testing.assert_array_equal(result, (BASE + 1) * 2)
    np.testing.assert_array_equal(array, BASE)


def test_what_passes_through_is_the_caller_s_array() -> None:
    graph = add_one()
    array = BASE.copy()
    results = stage(replace(graph, outputs=("y", "x"))).run({"x": array})
    assert list(results) == ["y", "x"]
    assert results["x"] is array
    # Nothing that the stage computes is asked for.
    assert stage(replace(graph, outputs=("x",))).run({"x": array})["x"] is array


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


SAVED = safetensors.torch.save({"w": torch.zeros(3, 4)})


@pytest.mark.parametrize(
    ("blobs", "message"),
    [
        ({}, "expected blob b"),
        ({"b": b""}, "expected safetensors"),
        ({"b": b"not safetensors"}, "expected safetensors"),
        ({"b": b"\2\0\0\0\0\0\0\0[]"}, "expected safetensors"),
        ({"b": SAVED[:-1]}, "expected safetensors"),
        ({"b": SAVED.replace(b"[0,48]", b"[4,48]")}, "expected safetensors"),
        ({"b": SAVED.replace(b"[0,48]", b"[-1,4]")}, "expected safetensors"),
        ({"b": SAVED.replace(b"[3,4]", b"[3,x]")}, "expected safetensors"),
        ({"b": SAVED.replace(b'"F32"', b"32   ")}, r"got 32\[3, 4\]"),
        ({"b": Path("/nowhere/blob")}, "expected safetensors"),
        ({"b": safetensors.torch.save({"v": torch.zeros(3, 4)})}, "a weight 'w'; got v"),
        ({"b": safetensors.torch.save({"w": torch.zeros(4, 3)})}, r"got float32\[4, 3\]"),
        ({"b": safetensors.torch.save({"w": torch.zeros(3, 4).half()})}, r"got float16\[3, 4\]"),
    ],
)
def test_weights_are_checked(blobs: Any, message: str) -> None:
    with pytest.raises(StageError, match=message):
        open_runtime("onnxruntime").load(linear(), blobs)


def test_a_file_may_go_while_its_weights_are_used(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    safetensors.torch.save_file({"w": torch.ones(3, 4)}, path)
    graph = linear()
    loaded = open_runtime("onnxruntime").load(graph, {"b": path})
    path.unlink()
    x = {"x": np.ones((1, 4), np.float32)}
    assert loaded.run(x)[graph.outputs[0]].tolist() == [[4.0] * 3]
    loaded.unload()
    with pytest.raises(StageError, match="was unloaded"):
        loaded.run(x)


def test_a_graph_that_lies_is_refused_at_load() -> None:
    graph = add_one()
    lying = replace(graph.nodes[-1], spec=TensorSpec("float32", (1, 2)))
    with pytest.raises(StageError, match=r"expected float32\[1, 2\]; got float32\[1, 2, 3, 3\]"):
        stage(replace(graph, nodes=(*graph.nodes[:-1], lying)))
    wrong = replace(graph.nodes[-1], op="reshape", kwargs={"shape": (5, 5)})
    with pytest.raises(StageError, match=r"add-one.*'y'"):
        stage(replace(graph, nodes=(*graph.nodes[:-1], wrong)))
    with pytest.raises(GraphError):
        stage(replace(graph, outputs=("gone",)))
    with pytest.raises(StageError, match="no plain kernels; expected fast; got plain"):
        stage(replace(graph, kernels=Kernels.PLAIN))


def test_an_agent_without_torch_runs_and_calibrates() -> None:
    assert "onnxruntime" in available_runtimes()
    code = (
        "import sys; from edge_agent.runtimes import available_runtimes, open_runtime;"
        "available_runtimes(); assert 'onnxruntime' not in sys.modules;"
        "sys.modules['torch'] = sys.modules['safetensors'] = None;"
        "assert list(available_runtimes()) == ['onnxruntime'];"
        "import edge_agent.service; from edge_agent.calibration import calibrate;"
        "assert calibrate('onnxruntime').seconds['overhead'] > 0"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_calibration() -> None:
    result = calibrate("onnxruntime")
    assert set(result.seconds) == {"conv_dense", "conv_depthwise", "matmul", "memory", "overhead"}
    assert all(seconds > 0 for seconds in result.seconds.values())


@pytest.mark.parametrize(
    "module", ["edge_agent.runtimes.onnx_runtime", "orchestrator.models.onnx_values"]
)
def test_nothing_is_written_about_the_device(tmp_path: Path, module: str) -> None:
    """ONNX Runtime's telemetry keeps a database in the user's cache as soon as it is imported."""
    environment = {
        key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"
    }
    subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        env={**environment, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        check=True,
    )
    assert list(tmp_path.iterdir()) == []


def test_weights_that_were_repacked_are_not_held_twice(tmp_path: Path) -> None:
    model = import_module(nn.Conv2d(256, 512, 3), torch.zeros(1, 256, 8, 8), "large")
    paths = {digest: tmp_path / digest for digest in model.blobs}
    for digest, data in model.blobs.items():
        paths[digest].write_bytes(data)
    graph = slice_stage(model.manifest, 0, len(model.manifest.blocks))
    x = np.random.default_rng(0).standard_normal((1, 256, 8, 8)).astype(np.float32)
    stage = open_runtime("onnxruntime").load(graph, paths)
    before = stage.run({graph.inputs[0].name: x})[graph.outputs[0]]
    (path,) = paths.values()
    assert resident_bytes(path) < path.stat().st_size / 4
    # What is let go of is still there to be read.
    again = open_runtime("onnxruntime").load(graph, paths).run({graph.inputs[0].name: x})
    np.testing.assert_array_equal(again[graph.outputs[0]], before)


def test_memory_of_many_items_is_let_go_once_there_are_few() -> None:
    builder, shape = GraphBuilder("wide"), (1, 64, 112, 112)
    x = builder.input("x", shape)
    roots, powers = builder.node("sqrt", x, shape=shape), builder.node("exp", x, shape=shape)
    graph = builder.build(builder.node("add", roots, powers, alpha=1.0, shape=shape))
    loaded, process = stage(replace(graph, open_batch=True)), psutil.Process()
    one, many = (np.full((items, *shape[1:]), 0.5, np.float32) for items in (1, 32))
    expected = loaded.run({"x": one})
    before = process.memory_info().rss
    loaded.run({"x": many})
    grown = process.memory_info().rss - before
    assert grown > many.nbytes, "else this test shows nothing"
    for _ in range(64):
        results = loaded.run({"x": one})
    assert process.memory_info().rss - before < grown / 2
    for name, result in results.items():
        np.testing.assert_array_equal(result, expected[name])


def resident_bytes(path: Path) -> int:
    """What this process has in memory of a mapped file."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found

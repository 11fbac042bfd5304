"""ONNX files: every operator against ONNX Runtime, whole models, and what is refused at the door."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from deploy.exactness import compare, exact_model
from orchestrator.models.importer import ImportedModel
from orchestrator.models.onnx_rules import RULES
from orchestrator.models.resolve import files_beside, open_source
from orchestrator.models.source import InputShape, parse_source
from shared.errors import ModelError
from shared.graph import Kernels
from shared.manifest import validate_manifest
from tests.fakes import nets

Array = np.ndarray[Any, Any]
IMAGE, ROWS = (2, 4, 7, 6), (2, 3, 8)
RANDOM = np.random.default_rng(0)


def const(*shape: int) -> Array:
    """A weight; between 0.5 and 1.5, for some are variances."""
    return RANDOM.random(shape, np.float32) + np.float32(0.5)


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


@dataclass(frozen=True, slots=True)
class Case:
    """An operator: shapes are inputs, arrays constants, None is left out."""

    op: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 20
    outputs: int = 1


CASES = [
    *(
        Case(op, (IMAGE,))
        for op in (
            *("Relu", "Sigmoid", "Tanh", "Exp", "Neg", "Abs", "Erf", "Mish", "HardSwish", "Elu"),
            *("Identity", "Gelu", "LeakyRelu", "HardSigmoid", "Selu", "LogSoftmax", "Softmax"),
            *("Dropout", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Transpose"),
        )
    ),
    Case("LeakyRelu", (IMAGE,), {"alpha": 0.3}),
    Case("HardSigmoid", (IMAGE,), {"alpha": 1 / 6}),
    Case("Gelu", (IMAGE,), {"approximate": "tanh"}),
    Case("PRelu", (IMAGE, const(4, 1, 1))),
    Case("Softmax", (ROWS,), {"axis": 1}, 11),
    Case("Softmax", (ROWS,), {"axis": 1}, 13),
    Case("Clip", (IMAGE, np.float32(-0.5), np.float32(0.5))),
    Case("Clip", (IMAGE, None, np.float32(0.5))),
    Case("Clip", (IMAGE,), {"min": 0.0, "max": 6.0}, 10),
    Case("Cast", (IMAGE,), {"to": TensorProto.DOUBLE}),
    Case("Cast", (IMAGE,), {"to": TensorProto.FLOAT}),
    *(Case(op, (IMAGE, IMAGE)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(Case(op, (IMAGE, np.float32(1.5))) for op in ("Add", "Sub", "Mul", "Div")),
    *(Case(op, (np.float32(1.5), IMAGE)) for op in ("Add", "Sub", "Mul", "Div")),
    *(Case(op, ((6,), const(1, 1))) for op in ("Add", "Mul")),  # of more axes than the input
    Case("Mul", (IMAGE, const(4, 1, 1))),
    Case("Sum", (IMAGE, IMAGE, const(6))),
    Case("Mean", (IMAGE, const(7, 1), IMAGE)),
    Case("Max", (IMAGE,)),
    Case("Pow", (IMAGE, np.float32(2.0))),
    Case("MatMul", (ROWS, const(8, 5))),
    Case("MatMul", (ROWS, (2, 8, 5))),
    Case("MatMul", (const(4, 3), ROWS)),
    Case("MatMul", ((8,), const(8, 5))),
    Case("Gemm", ((3, 8), const(8, 5), const(5))),
    Case("Gemm", ((3, 8), const(5, 8), const(3, 1)), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", ((8, 3), (5, 8), (5,)), {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", ((3, 8), const(8, 5)), {"alpha": 3.0}),
    Case("Gemm", ((3, 8), const(8, 5), const(5)), {"beta": 0.0}),
    Case("Einsum", (ROWS, (2, 5, 8)), {"equation": "bij, bkj -> bik"}),
    Case("Conv", (IMAGE, const(6, 4, 3, 3), const(6)), {"pads": [1, 1, 1, 1]}),
    Case("Conv", (IMAGE, const(4, 1, 3, 2)), {"group": 4, "strides": [2, 1], "pads": [0, 1, 2, 0]}),
    Case("Conv", (IMAGE, const(6, 4, 3, 2)), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", (IMAGE, const(6, 4, 2, 2)), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    Case("Conv", (IMAGE, const(6, 4, 2, 2)), {"auto_pad": "VALID"}),
    Case("Conv", ((2, 4, 9), const(6, 2, 3), const(6)), {"group": 2, "pads": [1, 2]}),
    Case("BatchNormalization", (IMAGE, *(const(4) for _ in range(4))), {"epsilon": 1e-3}),
    Case("InstanceNormalization", (IMAGE, const(4), const(4))),
    Case("GroupNormalization", (IMAGE, const(4), const(4)), {"num_groups": 2}, 21),
    Case("LayerNormalization", (ROWS, const(8), const(8)), {"epsilon": 1e-6}),
    Case("LayerNormalization", (ROWS, const(3, 8)), {"axis": 1}),
    Case("LayerNormalization", (ROWS, const(8), const(1)), {"axis": 1}),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [2, 3], "pads": [0, 1, 1, 0], "dilations": [2, 1]}),
    Case(
        "MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}
    ),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case(
        "AveragePool",
        (IMAGE,),
        {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "count_include_pad": 1, "strides": [2, 1]},
    ),
    Case("GlobalAveragePool", ((2, 4, 9),)),
    *(
        Case(op, (IMAGE, ints(-1, 1)), {"keepdims": keep}, 18)
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2")
        for keep in (0, 1)
    ),
    Case("ReduceSumSquare", (IMAGE,), {"axes": [1], "keepdims": 0}, 13),
    Case("ReduceMean", (IMAGE,), {"keepdims": 0}, 13),
    Case("ReduceSum", (IMAGE,), {"noop_with_empty_axes": 1}),
    Case("Reshape", (IMAGE, ints(0, -1, 6))),
    Case("Reshape", (IMAGE, ints(2, 4, 7, 6))),
    Case("Squeeze", ((1, 4, 1, 3), ints(0))),
    Case("Unsqueeze", (ROWS,), {"axes": [0, 2]}, 11),
    Case("Transpose", (IMAGE,), {"perm": [0, 2, 3, 1]}),
    Case("Expand", ((4, 1), ints(2, 1, 5))),
    Case("Tile", (ROWS, ints(1, 2, 3))),
    Case("Concat", (ROWS, ROWS, const(2, 1, 8)), {"axis": -2}),
    Case("Split", (ROWS, ints(1, 2)), {"axis": 1}, outputs=2),
    Case("Split", (ROWS,), {"axis": 2, "split": [5, 3]}, 11, outputs=2),
    Case("Slice", (IMAGE, ints(1, -3), ints(2**62, -1), ints(1, -1), ints(2, 1))),
    Case("Slice", (IMAGE,), {"starts": [1], "ends": [3], "axes": [2]}, 9),
    Case("Slice", (IMAGE, ints(0), ints(7), ints(2))),
    Case("Gather", (IMAGE, np.array(-1)), {"axis": 2}),
    Case("Gather", (IMAGE, ints(1, 2)), {"axis": 1}),
    Case("Gather", (IMAGE, ints(2, 0, -1)), {"axis": 1}),
    Case("Pad", (IMAGE, ints(0, 0, 1, 2, 0, 0, 0, 1), np.float32(2.0))),
    Case("Pad", (IMAGE, ints(1, 2), None, ints(-1)), {"mode": "reflect"}),
    Case("Pad", (IMAGE, ints(0, 0), None, ints(-1))),
    Case("Pad", (IMAGE,), {"mode": "edge", "pads": [0, 0, 1, 1, 0, 0, 2, 2]}, 10),
    Case("DepthToSpace", (IMAGE,), {"blocksize": 2}),
    Case("DepthToSpace", (IMAGE,), {"blocksize": 2, "mode": "CRD"}),
]
TRIED_ELSEWHERE = {
    *("Log", "Sqrt", "Reciprocal", "Not", "And", "Or", "Where", "Equal", "Less", "LessOrEqual"),
    *("Greater", "GreaterOrEqual"),
}


def info(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[str],
    weights: dict[str, Array] | None = None,
    opset: int = 20,
) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()],
    )
    for output in graph.output:
        output.type.tensor_type.elem_type = TensorProto.FLOAT
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def imported(path: Path, model: Any, *shapes: str, level: str = "O1") -> ImportedModel:
    path = path / "net.onnx"
    if model is not None:
        onnx.save_model(model, path)
    source = parse_source(str(path), inputs=[InputShape.parse(shape) for shape in shapes])
    return open_source(source, level)(Kernels.FAST)


def assert_exact(model: ImportedModel, bound: float = 2e-6) -> None:
    validate_manifest(model.manifest)
    for runtime in ("torch", "onnxruntime"):
        assert compare(model, runtime).error <= bound


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.op}-{c.opset}-{c.attributes}")
def test_operators_give_what_onnx_runtime_gives(case: Case, tmp_path: Path) -> None:
    inputs, weights, names = [], {}, []
    for index, form in enumerate(case.inputs):
        names.append("" if form is None else f"x{index}")
        if isinstance(form, tuple):
            inputs.append(info(names[-1], form))
        elif form is not None:
            weights[names[-1]] = form
    outputs = [f"y{index}" for index in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, "the node", **case.attributes)
    model = model_of([node], inputs, outputs, weights, case.opset)
    model.graph.output[0].type.tensor_type.elem_type = case.attributes.get("to", TensorProto.FLOAT)
    result = imported(tmp_path, model)
    assert result.manifest.graph.outputs == tuple(outputs)
    assert_exact(result)


def test_conditions(tmp_path: Path) -> None:
    """All that gives or takes booleans, and what only takes numbers above 0."""
    comparisons = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
    nodes = [
        helper.make_node("Abs", ["x"], ["abs"]),
        helper.make_node("Add", ["abs", "half"], ["positive"]),
        *(
            helper.make_node(op, [previous], [op])
            for previous, op in (
                ("positive", "Sqrt"),
                ("Sqrt", "Reciprocal"),
                ("Reciprocal", "Log"),
            )
        ),
        *(helper.make_node(op, ["x", "y"], [op]) for op in comparisons),
        helper.make_node("And", ["Less", "GreaterOrEqual"], ["never"]),
        helper.make_node("Or", ["Greater", "LessOrEqual"], ["always"]),
        helper.make_node("Not", ["Equal"], ["unlike"]),
        helper.make_node("And", ["always", "unlike"], ["a"]),
        helper.make_node("Or", ["a", "never"], ["b"]),
        helper.make_node("And", ["b", "Less"], ["c"]),
        helper.make_node("Where", ["c", "Log", "half"], ["result"]),
    ]
    weights = {"half": np.array(0.5, np.float32), "y": const(6) - 1}
    assert_exact(
        imported(tmp_path, model_of(nodes, [info("x", (*ROWS[:2], 6))], ["result"], weights))
    )


def test_every_rule_is_tried() -> None:
    assert {case.op for case in CASES} | TRIED_ELSEWHERE == RULES.keys()


def export(
    path: Path,
    net: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    opset_version: int = 17,
    **more: Any,
) -> Path:
    """As users do; with the exporter that needs nothing else installed."""
    more |= {"dynamo": False, "opset_version": opset_version}
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(net.eval(), inputs, str(path), **more)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return path


def test_an_encoder_with_an_open_batch(tmp_path: Path) -> None:
    ids = torch.zeros(2, 12, dtype=torch.int64)
    export(
        tmp_path / "net.onnx",
        nets.encoder(),
        (ids, ids + 1),
        input_names=["ids", "mask"],
        output_names=["hidden", "pooled"],
        dynamic_axes={"ids": {0: "batch"}, "mask": {0: "batch"}},
    )
    model = imported(tmp_path, None)
    graph = model.manifest.graph
    assert [(v.name, str(v.spec)) for v in graph.inputs] == [
        ("ids", "int64[1, 12]"),
        ("mask", "int64[1, 12]"),
    ]
    assert graph.outputs == ("hidden", "pooled")
    assert model.manifest.leaves == ()
    assert len(model.manifest.blocks) > 4
    # What depends on shapes alone is gone, and biases are where they belong.
    assert not {"concat", "expand_as"} & {node.op for node in graph.nodes}
    assert all(node.args[2] is not None for node in graph.nodes if node.op == "linear")
    assert_exact(model)
    exact = exact_model(lambda _: model, ["torch", "onnxruntime"], pytest.fail)
    assert exact.runtimes == ("torch", "onnxruntime")
    wider = imported(tmp_path, None, "ids:3x12", "mask:3x12:int64")
    assert wider.manifest.graph.inputs[0].spec.shape == (3, 12)
    assert_exact(wider)


@pytest.mark.parametrize("level", ["O0", "O1"])
def test_a_convolutional_network(tmp_path: Path, level: str) -> None:
    export(
        tmp_path / "net.onnx",
        nets.convolutional(),
        (torch.zeros(1, 3, 16, 16),),
        training=torch.onnx.TrainingMode.PRESERVE,  # keeps BatchNorm apart
    )
    model = imported(tmp_path, None, level=level)
    ops = [node.op for node in model.manifest.graph.nodes]
    assert ("batch_norm" in ops) == (level == "O0")
    assert_exact(model)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 20])
def test_old_and_new_opsets_are_cut(opset: int, tmp_path: Path) -> None:
    """Down to 7, where weights were inputs, too, and what is one operator today was several."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU6(),
        torch.nn.Conv2d(8, 8, 3, groups=8),
        torch.nn.Hardswish(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    )
    image = torch.zeros(1, 3, 16, 16)
    export(tmp_path / "net.onnx", net, (image,), opset, keep_initializers_as_inputs=opset < 9)
    model = imported(tmp_path, None)
    assert not model.manifest.whole
    assert len(model.manifest.graph.inputs) == 1
    assert len(model.manifest.blocks) >= 3
    assert_exact(model)


def test_plain_kernels_and_unused_parts(tmp_path: Path) -> None:
    """What no output needs is not looked at, not even an operator nobody knows."""
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("NonZero", ["x"], ["z"]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Reshape", ["y", "s"], ["out"]),
    ]
    onnx.save_model(model_of(nodes, [info("x", ROWS)], ["out"]), tmp_path / "net.onnx")
    model = imported(tmp_path, None)
    assert [node.op for node in model.manifest.graph.nodes] == ["relu", "reshape"]
    assert not model.manifest.whole
    # ONNX Runtime's own kernels, nothing fused, are those of the file as it stands.
    plain = open_source(parse_source(str(tmp_path / "net.onnx")))(Kernels.PLAIN)
    assert plain.manifest.graph.is_whole
    assert plain.manifest.level == "O0"


def relu(**more: Any) -> Any:
    return model_of(
        [helper.make_node("Relu", ["x"], ["y"], "act")], [info("x", ROWS)], ["y"], **more
    )


def with_external(path: Path, location: str, write: bool = True) -> Any:
    weight = numpy_helper.from_array(const(8), "w")
    data = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    if write:
        (path / location).write_bytes(data)
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], [info("x", ROWS)], ["y"])
    model.graph.initializer.append(weight)
    return model


def test_weights_in_a_second_file(tmp_path: Path) -> None:
    model = imported(tmp_path, with_external(tmp_path, "weights.bin"))
    assert_exact(model)
    source = parse_source(str(tmp_path / "net.onnx"))
    assert files_beside(source) == (tmp_path / "weights.bin",)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"'w' is missing.*expected .*weights\.bin"):
        open_source(source)
    with pytest.raises(ModelError, match="'w' is missing"):
        files_beside(source)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "", "a/../../w.bin", "link.bin"])
def test_weights_outside_the_folder_are_not_read(tmp_path: Path, location: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(32))
    (inside / "link.bin").symlink_to(tmp_path / "w.bin")
    model = with_external(inside, location, write=False)
    with pytest.raises(ModelError, match="outside the model's folder"):
        imported(inside, model)


def cyclic() -> Any:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    return model_of(nodes, [info("x", ROWS)], ["b"])


def damaged() -> Any:
    model = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])], [info("x", ROWS)], ["y"], {"w": const(8)}
    )
    model.graph.initializer[0].dims[0] = 9
    return model


def absurd() -> Any:
    model = damaged()
    model.graph.initializer[0].dims[0] = 2**40
    return model


def custom() -> Any:
    node = helper.make_node("FusedThing", ["x"], ["y"], "odd", domain="com.vendor")
    model = model_of([node], [info("x", ROWS)], ["y"])
    model.opset_import.append(helper.make_opsetid("com.vendor", 1))
    return model


def zipped() -> Any:
    """As scikit-learn's exporter ends a classifier: a list of maps from class to probability."""
    node = helper.make_node(
        "ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=list(range(ROWS[-1]))
    )
    model = model_of([node], [info("x", ROWS[1:])], ["y"])
    probabilities = helper.make_tensor_type_proto(TensorProto.FLOAT, ())
    classes = helper.make_map_type_proto(TensorProto.INT64, probabilities)
    model.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(classes))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    return model


def one(op: str, *constants: Array, **attributes: Any) -> Callable[[], Any]:
    names = [f"c{index}" for index in range(len(constants))]
    node = helper.make_node(op, ["x", *names], ["y"], "the node", **attributes)
    return lambda: model_of(
        [node], [info("x", IMAGE)], ["y"], dict(zip(names, constants, strict=True))
    )


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (custom, "cannot be run: .*FusedThing"),
        (cyclic, "no valid ONNX model: .*topological|sorted"),
        (damaged, "weight 'w' is damaged"),
        (absurd, "size of weight 'w'"),
        (zipped, "value 'y'; expected a tensor .*zipmap=False.*; got a sequence or a map"),
    ],
)
def test_what_cannot_be_read_is_named(make: Callable[[], Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=match):
        imported(tmp_path, make())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (one("CumSum", ints(1)), "^CumSum is not among the ONNX operators"),
        (
            one("Slice", ints(5), ints(0), ints(1), ints(-1)),
            "operator Slice, node 'the node': steps",
        ),
        (one("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1]), "padding that is not counted"),
        (one("Pow", const(6)), "node 'the node': exponents"),
        (one("Pad", ints(1, 0, 0, 0, 0, 0, 0, 0), mode="edge"), "node 'the node': axes"),
    ],
)
def test_what_cannot_be_taken_apart_is_served_whole(
    make: Callable[[], Any], match: str, tmp_path: Path
) -> None:
    model = imported(tmp_path, make())
    assert re.search(match, model.manifest.whole)
    assert len(model.manifest.blocks) == 1
    exact = exact_model(lambda _: model, ["onnxruntime"], pytest.fail)
    assert exact.imported.manifest.max_relative_error == 0.0


@pytest.mark.parametrize("content", [None, b"", b"not an ONNX file at all", bytes(100)])
def test_what_is_no_onnx_file(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"net\.onnx"):
        imported(tmp_path, None)


@pytest.mark.parametrize(
    ("dims", "shapes", "match"),
    [
        (["n", 3, "width"], [], "leaves its shape open: add --input-shape x:SHAPE.*'width'"),
        (["n", 3, "width"], ["1x4x8"], "contradicts"),
        (["n", 3, "width"], ["1x3"], "contradicts"),
        (["n", 3, "width"], ["1x3x8:int64"], "contradicts"),
        (["n", 3, "width"], ["z:1x3x8"], "for no input.*expected .*for x"),
        (["n", 3, "width"], ["1x3x8", "1x3x8"], "for no input"),
        ([2, 3, 8], ["1x3x8"], "contradicts"),
        ([2, 0x7FFFFFFF, 0x7FFFFFFF], [], "size"),
    ],
)
def test_open_and_contradicting_shapes(
    dims: list[Any], shapes: list[str], match: str, tmp_path: Path
) -> None:
    model = relu()
    del model.graph.input[:]
    model.graph.input.append(info("x", dims))
    with pytest.raises(ModelError, match=match):
        imported(tmp_path, model, *shapes)
    if not shapes:
        return
    good = imported(tmp_path, model, "x:1x3x8" if "n" in dims else "x:2x3x8")
    assert good.manifest.graph.inputs[0].spec.shape[1:] == (3, 8)

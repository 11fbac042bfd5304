"""Models that cannot be taken apart: served in one piece, exactly, with the reason; or refused with it."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from onnx import TensorProto, helper, numpy_helper

from deploy.exactness import Exact, exact_model
from deploy.profile import block_shares
from deploy.quantising import quantise_model
from deploy.samples import Samples
from edge_agent.runtimes import open_runtime
from orchestrator.models.importer import ImportedModel
from orchestrator.models.resolve import open_source
from orchestrator.models.slice import slice_stage
from orchestrator.models.source import InputShape, parse_source
from shared.codec import decode_json, encode_json
from shared.errors import GraphError, ModelError, StageError
from shared.graph import Graph, Kernels, TensorSpec, validate
from shared.manifest import validate_manifest
from shared.tensor import Array
from tests.fakes import nets

WIDTH = 32
RANDOM = np.random.default_rng(0)
WEIGHTS = {
    name: RANDOM.standard_normal((WIDTH, WIDTH)).astype(np.float32) for name in ("plus", "minus")
}


def info(name: str, shape: Any = None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes: list[Any], outputs: list[Any], weights: dict[str, Array]) -> Any:
    graph = helper.make_graph(
        nodes,
        "net",
        [info("x", ["batch", WIDTH])],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def branching() -> Any:
    """Another weight for each sign of the sum, and the five largest of what it gives."""

    def times(weight: str, name: str) -> Any:
        node = helper.make_node("MatMul", ["x", weight], [name])
        return helper.make_graph([node], name, [], [info(name)])

    return model_of(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["positive"]),
            helper.make_node(
                "If",
                ["positive"],
                ["y"],
                then_branch=times("plus", "a"),
                else_branch=times("minus", "b"),
            ),
            helper.make_node("TopK", ["y", "five"], ["values", "indices"]),
        ],
        [info("values"), info("indices", kind=TensorProto.INT64)],
        {**WEIGHTS, "zero": np.array(0, np.float32), "five": np.array([5])},
    )


def imported(path: Path, model: Any, kernels: Kernels = Kernels.FAST) -> ImportedModel:
    onnx.save_model(model, path / "net.onnx")
    return open_source(parse_source(str(path / "net.onnx")))(kernels)


def made(factory: str, shape: str) -> Exact:
    source = parse_source(f"tests.fakes.nets:{factory}", inputs=[InputShape.parse(shape)])
    return exact_model(open_source(source), ("onnxruntime", "torch"), lambda _: None)


def run(model: ImportedModel, inputs: dict[str, Array]) -> dict[str, Array]:
    stage = slice_stage(model.manifest, 0, 1)
    # As it travels.
    stage = decode_json(encode_json(stage), Graph)
    return open_runtime("onnxruntime").load(stage, model.blobs).run(inputs)


def seeded(make: Any) -> torch.nn.Module:
    """With the weights that a factory is called with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: torch.nn.Module = make()
    return net.eval()


def test_control_flow_is_one_block_and_takes_both_branches(tmp_path: Path) -> None:
    model = imported(tmp_path, branching())
    validate_manifest(model.manifest)
    assert (
        model.manifest.whole == "If, TopK are not among the ONNX operators that can be cut around"
    )
    assert [str(value.spec) for value in model.manifest.graph.output_values()] == [
        "float32[1, 5]",
        "int64[1, 5]",
    ]
    # Its larger weights lie beside it, under their own names.
    assert WEIGHTS.keys() < model.manifest.graph.weights.keys()
    for sign, weight in ((1, "plus"), (-1, "minus")):
        x = sign * np.abs(RANDOM.standard_normal((1, WIDTH))).astype(np.float32)
        y = x @ WEIGHTS[weight]
        result = run(model, {"x": x})
        np.testing.assert_array_equal(result["indices"], np.argsort(-y)[:, :5])
        np.testing.assert_allclose(result["values"], -np.sort(-y)[:, :5], rtol=1e-5)


def test_plain_kernels_are_those_of_the_file_bit_for_bit(tmp_path: Path) -> None:
    model = imported(tmp_path, branching(), Kernels.PLAIN)
    for reference in model.references:
        result = run(model, reference.inputs)
        for name, array in reference.outputs.items():
            np.testing.assert_array_equal(result[name], array)


def test_torch_does_not_run_it_and_the_others_are_told(tmp_path: Path) -> None:
    steps: list[str] = []
    model = imported(tmp_path, branching())
    exact = exact_model(lambda _: model, ("onnxruntime", "torch"), steps.append)
    assert exact.runtimes == ("onnxruntime",)
    assert "--runtime onnxruntime" in steps[0]
    with pytest.raises(StageError, match="cannot be taken apart, which torch does not run"):
        exact_model(lambda _: model, ("torch",), steps.append)


def test_a_file_that_rounds_otherwise_when_taken_apart_is_left_whole(tmp_path: Path) -> None:
    """Half precision: ONNX Runtime computes in float32 inside, and rounds where it enters and leaves."""
    weights = {"w": RANDOM.standard_normal((WIDTH, WIDTH)).astype(np.float16)}
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "w"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    onnx.save_model(model_of(nodes, [info("y")], weights), tmp_path / "net.onnx")
    source = open_source(parse_source(str(tmp_path / "net.onnx")))
    exact = exact_model(source, ("onnxruntime",), lambda _: None)
    assert "taken apart" in exact.imported.manifest.whole
    assert exact.imported.manifest.max_relative_error == 0.0
    assert exact.runtimes == ("onnxruntime",)


def test_a_module_with_branches_is_compiled_not_recorded() -> None:
    exact = made("branching", "1x8")
    assert "cannot be traced" in exact.imported.manifest.whole
    net = seeded(nets.branching)
    for sign in (1.0, -1.0):
        for scale in (0.01, 1.0, 30.0):  # loops of several lengths, and of none
            x = sign * scale * torch.ones(1, 8)
            expected = net(x).detach().numpy()
            (y,) = run(exact.imported, {"x": x.numpy()}).values()
            assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()


def test_operators_off_the_list_go_by_way_of_onnx(tmp_path: Path) -> None:
    exact = made("recurrent", "1x5x4")
    assert "aten.lstm.input" in exact.imported.manifest.whole
    assert exact.imported.manifest.graph.outputs == ("output_0", "output_1")
    net = seeded(nets.recurrent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an LSTM's parameters are views of one tensor
        program = torch.export.export(net, (torch.zeros(1, 5, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    archive = open_source(parse_source(str(tmp_path / "net.pt2")))(Kernels.FAST)
    assert archive.manifest.whole == exact.imported.manifest.whole
    x = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(1))
    expected = [out.detach().numpy() for out in net(x).values()]
    for model in (exact.imported, archive):
        for result, want in zip(run(model, {"x": x.numpy()}).values(), expected, strict=True):
            np.testing.assert_allclose(result, want, rtol=1e-5, atol=1e-6)


def test_what_has_no_form_that_is_safe_to_send_is_refused_with_both_reasons() -> None:
    with pytest.raises(ModelError, match=r"cannot be traced: .*nor can it be served whole: "):
        made("foreign", "1x8")


def random() -> Any:
    node = helper.make_node("RandomNormalLike", ["x"], ["y"])
    return model_of([node], [info("y")], {})


def open_ended() -> Any:
    return model_of(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("NonZero", ["r"], ["z"])],
        [info("z", kind=TensorProto.INT64), info("r")],
        {},
    )


def hidden(location: str) -> Any:
    """A constant inside a branch, in a file of somebody else's."""
    model = branching()
    tensor = TensorProto(name="secret", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    branch = model.graph.node[2].attribute[0].g
    branch.node.insert(0, helper.make_node("Constant", [], ["secret"], value=tensor))
    return model


def sequence() -> Any:
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    return model_of(
        [node], [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)], {}
    )


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (random(), "draws random numbers"),
        (open_ended(), r"the shape of output 'z' .* depends on what is put in"),
        (hidden("../../etc/passwd"), r"'secret' inside an operator has its values in another file"),
        (sequence(), "'y'; expected a tensor .*; got a sequence or a map"),
    ],
)
def test_what_cannot_be_served_whole_either_is_refused(
    model: Any, match: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=match):
        imported(tmp_path, model)


def tampered(model: ImportedModel, change: Any) -> tuple[Graph, dict[str, bytes]]:
    """The stage with its ONNX model changed, as somebody on the wire might."""
    stage = slice_stage(model.manifest, 0, 1)
    (blob,) = model.blobs.values()
    arrays = safetensors.numpy.load(blob)
    proto = onnx.ModelProto.FromString(arrays["model"].tobytes())
    proto = change(proto) or proto
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    arrays["model"] = np.frombuffer(data, np.uint8)
    changed = safetensors.numpy.save(arrays)
    digest = hashlib.sha256(changed).hexdigest()
    weights = {key: replace(weight, blob=digest) for key, weight in stage.weights.items()}
    weights["model"] = replace(weights["model"], spec=TensorSpec("uint8", (len(data),)))
    return replace(stage, weights=weights), {digest: changed}


def rename_external(proto: Any) -> None:
    (tensor,) = [t for t in proto.graph.initializer if t.name == "plus"]
    tensor.name = "other"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda _: hidden("/etc/hostname"), "'secret' of the model is in another file"),
        (rename_external, "'other' of the model is in another file"),
        (lambda _: b"no model at all", "expected an ONNX model"),
        (lambda p: p.graph.output.pop() and None, "inputs and outputs of the model"),
        (lambda p: p.graph.input.append(info("z")), "inputs and outputs of the model"),
    ],
)
def test_an_agent_refuses_what_it_is_not_told(change: Any, match: str, tmp_path: Path) -> None:
    stage, blobs = tampered(imported(tmp_path, branching()), change)
    with pytest.raises(StageError, match=match):
        open_runtime("onnxruntime").load(stage, blobs)


def test_nothing_stands_beside_it_in_a_graph(tmp_path: Path) -> None:
    manifest = imported(tmp_path, branching()).manifest
    graph = manifest.graph
    relu = replace(graph.nodes[0], name="r", op="relu", args=("x",))
    first = replace(graph.nodes[0], args=(("x",), ("plus", "minus", "model")))
    for bad in (
        replace(graph, nodes=(*graph.nodes, relu)),
        replace(graph, nodes=(relu, *graph.nodes)),
        replace(graph, nodes=(first, *graph.nodes[1:])),
        replace(graph, nodes=(first,), outputs=("values",)),
        replace(graph, nodes=graph.nodes[:1], outputs=("values",), inputs=()),
    ):
        with pytest.raises(GraphError):
            validate(bad)
    twice = (
        replace(manifest.blocks[0], nodes=(0, 1)),
        replace(manifest.blocks[0], index=1, nodes=(1, 2)),
    )
    with pytest.raises(GraphError, match="served whole"):
        validate_manifest(replace(manifest, blocks=twice))


def test_level_o2_and_the_profile_know_that_nothing_is_known_of_its_operators(
    tmp_path: Path,
) -> None:
    model = imported(tmp_path, branching())
    with pytest.raises(ModelError, match="operator by operator"):
        quantise_model(model.manifest, model.blobs, Samples((), ()), pytest.fail)
    (row,) = block_shares(model.manifest, {"conv_dense": 1.0, "overhead": 0.1})
    assert len(set(row)) == 1

"""What an ONNX model computes from shapes alone, and the form of all the rest: found by running it once.

ONNX Runtime runs the file as it stands, nothing fused. Shapes are fixed, so whatever does not depend on the
inputs' values (a shape that is computed, a position table) is a constant from here on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime

from orchestrator.models.onnx_file import OnnxFile
from shared.errors import ModelError
from shared.graph import DTYPE_BYTES, MAX_NAME_LENGTH, MAX_TENSOR_BYTES, TensorSpec
from shared.tensor import Array

INLINE_BYTES = 1024
"""Larger weights are given to the session as they lie in memory; small ones may be shapes, which it reads."""
RANDOM = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
    }
)
_FATAL = 4


@dataclass(frozen=True, slots=True)
class OnnxValues:
    """`nodes` are those whose results depend on the inputs, in order, as far as an output needs them.

    `constants` has every other value that they read, `specs` the form of each value that depends on inputs.
    """

    nodes: tuple[Any, ...]
    constants: dict[str, Array]
    specs: dict[str, TensorSpec]
    session: Session


def evaluate(file: OnnxFile, example: Mapping[str, Array]) -> OnnxValues:
    """Sort the model's values into constants and others, by running it on `example`.

    Raises:
        ModelError: ONNX Runtime cannot run it, an output does not depend on the inputs, or a value has a form
            that has no place in our graphs.
    """
    dynamic, needed = _dependent(file), _needed(file)
    nodes = tuple(working_nodes(file))
    for name in file.outputs:
        if name not in dynamic:
            raise ModelError(f"{file.path}: output {name!r} does not depend on an input")
    folded = sorted(
        {name for node in nodes for name in _reads(node) if name not in dynamic}
        - file.arrays.keys()
    )
    made = [name for node in nodes for name in node.output if name and name in needed]
    session = open_session(file, *fixed(file, [*made, *folded]))
    results = session.run([*made, *folded], example)
    specs = {value.name: value.spec for value in file.inputs}
    specs.update(
        (name, tensor_spec(file, name, result)) for name, result in zip(made, results, strict=False)
    )
    constants = dict(zip(folded, results[len(made) :], strict=True))
    return OnnxValues(nodes, {**file.arrays, **constants}, specs, session)


def working_nodes(file: OnnxFile) -> list[Any]:
    """The nodes whose results depend on the inputs, as far as an output needs them, in order."""
    dynamic, needed = _dependent(file), _needed(file)
    return [
        node
        for node in file.model.graph.node
        if any(name in dynamic and name in needed for name in node.output)
    ]


def _dependent(file: OnnxFile) -> set[str]:
    """The names of the values that depend on what the inputs hold, and not on their shapes alone."""
    dynamic = {value.name for value in file.inputs}
    for node in file.model.graph.node:
        depends = any(name in dynamic for name in _reads(node)) and node.op_type not in (
            "Shape",
            "Size",
        )
        if depends or node.op_type in RANDOM:
            dynamic.update(node.output)
    return dynamic


def _needed(file: OnnxFile) -> set[str]:
    needed = set(file.outputs)
    for node in reversed(file.model.graph.node):
        if needed.intersection(node.output):
            needed.update(_reads(node))
    return needed


def _reads(node: Any) -> Iterator[str]:
    """What a node reads, its branches and loop bodies included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)


def peak_bytes(values: OnnxValues) -> int:
    """The most bytes of values that live at once, in the file's order; without what loops hold inside."""
    made = {name for node in values.nodes for name in node.output}
    last = {name: at for at, node in enumerate(values.nodes) for name in _reads(node)}
    now = {name: spec.nbytes for name, spec in values.specs.items() if name not in made}
    peak = sum(now.values())
    for at, node in enumerate(values.nodes):
        now |= {name: values.specs[name].nbytes for name in node.output if name in values.specs}
        peak = max(peak, sum(now.values()))
        # What nobody reads is an output, and stays.
        now = {name: size for name, size in now.items() if last.get(name, at + 1) > at}
    return peak


def fixed(file: OnnxFile, outputs: list[str]) -> tuple[Any, dict[str, Array]]:
    """The model with the shapes of its inputs fixed and `outputs` beside its own; and its larger weights.

    Those are declared as external data, and to be given to a session as they lie in memory.
    """
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    graph = model.graph
    del graph.value_info[:]
    del graph.input[:]
    for value in file.inputs:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.spec.dtype))
        graph.input.append(onnx.helper.make_tensor_value_info(value.name, kind, value.spec.shape))
    # Without shapes: those that are declared may be of another batch size.
    del graph.output[:]
    names = dict.fromkeys((*file.outputs, *outputs))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    outside: dict[str, Array] = {}
    for tensor in graph.initializer:
        array = file.arrays[tensor.name]
        if array.nbytes > INLINE_BYTES and _may_lie_outside(tensor.name, array, names):
            outside[tensor.name] = array
            _declare_external(tensor, array)
        elif tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(array), tensor.name))
    return model, outside


def open_session(file: OnnxFile, model: Any, outside: Mapping[str, Array]) -> Session:
    """A session with what `fixed` gave; nothing is fused, one thread.

    Raises:
        ModelError: ONNX Runtime cannot load it.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(array))
        for name, array in outside.items()
    }
    if values:
        options.add_external_initializers(list(values), list(values.values()))
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions have no other base
        raise _cannot(file, error) from error
    return Session(file, session, values)


@dataclass(frozen=True, slots=True)
class Session:
    """A session and the weights that it does not own."""

    file: OnnxFile
    session: Any
    weights: dict[str, Any]

    def run(self, outputs: list[str], inputs: Mapping[str, Array]) -> list[Any]:
        """The values named in `outputs`.

        Raises:
            ModelError: it fails with these inputs.
        """
        try:
            found: list[Any] = self.session.run(outputs, dict(inputs))
        except Exception as error:  # its exceptions have no other base
            raise _cannot(self.file, error) from error
        return found


def _may_lie_outside(name: str, array: Array, outputs: Collection[str]) -> bool:
    """Whether our blobs have a form for it, and it is nothing else beside."""
    return str(array.dtype) in DTYPE_BYTES and len(name) <= MAX_NAME_LENGTH and name not in outputs


def _declare_external(tensor: Any, array: Array) -> None:
    """Say that the weight's bytes are given beside the model; nothing is read from the named file."""
    name, kind, dims = tensor.name, tensor.data_type, tuple(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type = name, kind
    tensor.dims.extend(dims)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", "0"), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)


def tensor_spec(file: OnnxFile, name: str, result: Any) -> TensorSpec:
    """The form of what came out under `name`.

    Raises:
        ModelError: it has no place in our graphs.
    """
    if not isinstance(result, np.ndarray):
        raise ModelError(
            f"{file.path}: value {name!r}",
            expected="a tensor (scikit-learn's classifiers: export them with the option zipmap=False)",
            got="a sequence or a map" if isinstance(result, list) else type(result).__name__,
        )
    if str(result.dtype) not in DTYPE_BYTES or not all(result.shape):
        raise ModelError(
            f"{file.path}: form of value {name!r}",
            expected=f"a tensor that is not empty, of {' | '.join(DTYPE_BYTES)}",
            got=f"{result.dtype}{list(result.shape)}",
        )
    if result.nbytes > MAX_TENSOR_BYTES:
        raise ModelError(
            f"{file.path}: bytes of {name!r}",
            expected=f"at most {MAX_TENSOR_BYTES}",
            got=str(result.nbytes),
        )
    return TensorSpec(str(result.dtype), result.shape)


def _cannot(file: OnnxFile, error: Exception) -> ModelError:
    text = str(error).strip().partition("\n")[0][:300]
    return ModelError(
        f"{file.path} cannot be run: {text}",
        expected=f"a model that ONNX Runtime {onnxruntime.__version__} runs",
    )

"""An ONNX file, read and checked at the door: its graph, its weights as arrays, its shapes made fixed.

Nothing outside the file's own folder is read. Nothing is run here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from orchestrator.models.source import SHAPE_FORM, InputShape
from shared.errors import ModelError
from shared.graph import DTYPE_BYTES, MAX_DIM, MAX_NODES, MAX_TENSOR_BYTES, TensorSpec, Value
from shared.onnx_tensors import hidden_external, is_external
from shared.tensor import Array


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A checked model: nodes in topological order, `arrays` its initialisers, `inputs` with fixed shapes."""

    path: Path
    model: Any
    arrays: dict[str, Array]
    inputs: tuple[Value, ...]
    outputs: tuple[str, ...]
    opset: int


def external_files(path: Path) -> list[Path]:
    """The files beside `path` that hold its weights, sorted.

    Raises:
        ModelError: `path` is no ONNX file, or names a file outside its folder or one that is not there.
    """
    graph = _load(path).graph
    return sorted({_beside(path, tensor) for tensor in _external(graph.initializer)})


def read_onnx(path: Path, shapes: tuple[InputShape, ...]) -> OnnxFile:
    """Read `path`, and fix the shapes of its inputs by `shapes`; an open first axis without one is 1.

    Raises:
        ModelError: no valid ONNX file, weights that are missing or elsewhere, an open axis that is not the
            first, or shapes that contradict the file's own.
    """
    model = _load(path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    if not 1 <= len(model.graph.node) <= MAX_NODES:
        raise ModelError(
            f"{path}: number of nodes", expected=f"1..{MAX_NODES}", got=str(len(model.graph.node))
        )
    opset = next(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
    )
    if not opset:
        raise ModelError(f"{path} names no version of ONNX's operators", expected="an opset_import")
    _check_external(path, model)
    arrays = {tensor.name: _array(path, tensor) for tensor in model.graph.initializer}
    try:
        # With the weights' bytes left out: the checker looks at the graph alone.
        onnx.checker.check_model(_without_weights(model))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(
            f"{path} is no valid ONNX model: {_first_line(error)}", expected="a valid model"
        ) from error
    given = [value for value in model.graph.input if value.name not in arrays]
    if not given:
        raise ModelError(f"{path} has no inputs", expected="one or more")
    inputs = tuple(_fixed(path, given, shapes))
    return OnnxFile(path, model, arrays, inputs, tuple(v.name for v in model.graph.output), opset)


def _check_external(path: Path, model: Any) -> None:
    """Only initialisers may have their bytes in another file: anybody else's would be read unseen."""
    for tensor in hidden_external(model):
        raise ModelError(
            f"{path}: the constant {tensor.name!r} inside an operator has its values in another file",
            expected="only initialisers of the graph outside the file",
            got=repr(_text(path, _location(tensor))),
        )


def _load(path: Path) -> Any:
    try:
        return onnx.load_model(path, load_external_data=False)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}", expected="an ONNX file", got=str(path)
        ) from error
    except (DecodeError, ValueError) as error:
        raise ModelError(
            f"{path} is no ONNX file: {_first_line(error)}", expected="an ONNX model"
        ) from error


def _text(path: Path, value: str | bytes) -> str:
    """A string field: protobuf gives bytes where they are not UTF-8."""
    if isinstance(value, str):
        return value
    raise ModelError(
        f"{path} is damaged: a text is not UTF-8", expected="UTF-8", got=repr(value)[:80]
    )


def _external(tensors: Iterable[Any]) -> Iterator[Any]:
    return (tensor for tensor in tensors if is_external(tensor))


def _location(tensor: Any) -> str | bytes:
    found: str | bytes = {e.key: e.value for e in tensor.external_data}.get("location", "")
    return found


def _beside(path: Path, tensor: Any) -> Path:
    """The file that holds the weight, which must be in the folder of `path` or below, links followed."""
    location = _location(tensor)
    folder = path.resolve().parent
    location = _text(path, location)
    found = Path(os.path.normpath(folder / location))
    if not location or not found.resolve().is_relative_to(folder):
        raise ModelError(
            f"{path}: weight {tensor.name!r} lies outside the model's folder, where nothing is read",
            expected=f"a file in {folder}",
            got=repr(location),
        )
    if not found.is_file():
        raise ModelError(
            f"{path}: the file with weight {tensor.name!r} is missing; ONNX files above 2 GB, and many "
            "smaller ones, have their weights in a second file, which must lie beside them",
            expected=str(found),
            got="no such file",
        )
    return found


def _array(path: Path, tensor: Any) -> Array:
    if math.prod(tensor.dims) > MAX_TENSOR_BYTES or any(dim < 0 for dim in tensor.dims):
        raise ModelError(
            f"{path}: size of weight {tensor.name!r}",
            expected=f"at most {MAX_TENSOR_BYTES} bytes",
            got=str(list(tensor.dims)),
        )
    try:
        if is_external(tensor):
            return _mapped(_beside(path, tensor), tensor)
        array: Array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ModelError(
            f"{path}: weight {tensor.name!r} is damaged: {_first_line(error)}",
            expected=f"{math.prod(tensor.dims)} elements",
        ) from error
    return array


def _mapped(file: Path, tensor: Any) -> Array:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    count, offset = math.prod(tensor.dims), int(entries.get("offset", 0))
    length = int(entries.get("length", count * dtype.itemsize))
    if length != count * dtype.itemsize or offset < 0:
        raise ValueError(f"{length} bytes at {offset} for {count} elements of {dtype}")
    if count == 0:
        return np.zeros(tuple(tensor.dims), dtype)
    return np.memmap(file, dtype, "r", offset, tuple(tensor.dims))


def _without_weights(model: Any) -> Any:
    """A copy whose initialisers are inputs; shapes are there, which may be left out otherwise."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    known = {value.name for value in light.graph.input}
    for tensor in light.graph.initializer:
        if tensor.name not in known:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    del light.graph.initializer[:]
    for value in (*light.graph.input, *light.graph.output):
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.shape.SetInParent()
    return light


def _fixed(path: Path, given: list[Any], shapes: tuple[InputShape, ...]) -> Iterator[Value]:
    """The inputs with shapes that have no open axis; each of `shapes` must be for one of them."""
    names = [value.name for value in given]
    wanted: dict[str, InputShape] = {}
    for index, shape in enumerate(shapes):
        name = shape.name or (names[index] if index < len(names) else "")
        if name not in names or name in wanted:
            raise ModelError(
                f"--input-shape {shape} is for no input of {path}",
                expected=f"{SHAPE_FORM}, for {', '.join(names)}",
                got=str(shape),
            )
        wanted[name] = shape
    for value in given:
        yield _with_shape(path, value, wanted.get(value.name))


def _with_shape(path: Path, value: Any, wanted: InputShape | None) -> Value:
    where = f"{path}: input {value.name!r}"
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type":
        raise ModelError(f"{where} is no tensor", expected="tensors as inputs")
    dtype = dtype_of(where, tensor.elem_type)
    # 0: left open, as a name is.
    dims = [dim.dim_value or (_text(path, dim.dim_param) or "?") for dim in tensor.shape.dim]
    if wanted is None:
        if not tensor.HasField("shape") or any(isinstance(dim, str) for dim in dims[1:]):
            raise ModelError(
                f"{where} leaves its shape open: add --input-shape {value.name}:SHAPE",
                expected=f"--input-shape {SHAPE_FORM}",
                got=str(dims),
            )
        shape = tuple(1 if isinstance(dim, str) else int(dim) for dim in dims)
    else:
        shape = wanted.shape
        if tensor.HasField("shape") and (
            len(shape) != len(dims)
            or any(d != s for d, s in zip(dims, shape, strict=True) if isinstance(d, int))
        ):
            raise ModelError(
                f"--input-shape {wanted} contradicts {path}", expected=str(dims), got=str(wanted)
            )
        if wanted.dtype not in (None, dtype):
            raise ModelError(
                f"--input-shape {wanted} contradicts {path}", expected=dtype, got=str(wanted.dtype)
            )
    spec = TensorSpec(dtype, shape)
    if any(not 0 < dim <= MAX_DIM for dim in shape) or spec.nbytes > MAX_TENSOR_BYTES:
        raise ModelError(
            f"{where}: size", expected=f"at most {MAX_TENSOR_BYTES} bytes", got=str(spec)
        )
    return Value(value.name, spec)


def dtype_of(where: str, elem_type: int) -> str:
    """Our name of an ONNX element type.

    Raises:
        ModelError: it is none of ours.
    """
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    except (KeyError, ValueError):
        dtype = str(elem_type)
    if dtype not in DTYPE_BYTES:
        raise ModelError(f"{where}: dtype", expected=" | ".join(DTYPE_BYTES), got=dtype)
    return dtype


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]

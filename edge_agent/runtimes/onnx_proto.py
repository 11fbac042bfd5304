"""ONNX's messages, as far as a stage needs them, on protobuf alone.

The `onnx` package is made for reading, checking and converting models; a device that writes one into memory
would carry its 36 MB on disk and 8 MB resident for a few message classes. Names and numbers are those of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. All that may hold a tensor is here, so that a model
which came over the wire can be looked through whole; `parse` drops what is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from edge_agent.runtimes import Array

_KINDS: Final = {
    "float": 2,
    "double": 1,
    "int64": 3,
    "uint64": 4,
    "int32": 5,
    "string": 9,
    "bytes": 12,
}
_MESSAGE: Final = 11
_OPTIONAL, _REPEATED = 1, 3

# A field: its number, its type (a kind above or a message below), `*` where it is repeated.
_SCHEMA: Final[dict[str, dict[str, str]]] = {
    "ModelProto": {
        "ir_version": "1 int64",
        "producer_name": "2 string",
        "graph": "7 GraphProto",
        "opset_import": "8 OperatorSetIdProto*",
        "training_info": "20 TrainingInfoProto*",
        "functions": "25 FunctionProto*",
    },
    "OperatorSetIdProto": {"domain": "1 string", "version": "2 int64"},
    "TrainingInfoProto": {"initialization": "1 GraphProto", "algorithm": "2 GraphProto"},
    "FunctionProto": {
        "name": "1 string",
        "input": "4 string*",
        "output": "5 string*",
        "attribute": "6 string*",
        "node": "7 NodeProto*",
        "domain": "10 string",
        "opset_import": "9 OperatorSetIdProto*",
        "attribute_proto": "11 AttributeProto*",
    },
    "GraphProto": {
        "node": "1 NodeProto*",
        "name": "2 string",
        "initializer": "5 TensorProto*",
        "input": "11 ValueInfoProto*",
        "output": "12 ValueInfoProto*",
        "value_info": "13 ValueInfoProto*",
        "sparse_initializer": "15 SparseTensorProto*",
    },
    "NodeProto": {
        "input": "1 string*",
        "output": "2 string*",
        "name": "3 string",
        "op_type": "4 string",
        "attribute": "5 AttributeProto*",
        "domain": "7 string",
        "overload": "8 string",
    },
    "AttributeProto": {
        "name": "1 string",
        "f": "2 float",
        "i": "3 int64",
        "s": "4 bytes",
        "t": "5 TensorProto",
        "g": "6 GraphProto",
        "floats": "7 float*",
        "ints": "8 int64*",
        "strings": "9 bytes*",
        "tensors": "10 TensorProto*",
        "graphs": "11 GraphProto*",
        "tp": "14 TypeProto",
        "type_protos": "15 TypeProto*",
        "type": "20 int32",
        "ref_attr_name": "21 string",
        "sparse_tensor": "22 SparseTensorProto",
        "sparse_tensors": "23 SparseTensorProto*",
    },
    "TensorProto": {
        "dims": "1 int64*",
        "data_type": "2 int32",
        "float_data": "4 float*",
        "int32_data": "5 int32*",
        "string_data": "6 bytes*",
        "int64_data": "7 int64*",
        "name": "8 string",
        "raw_data": "9 bytes",
        "double_data": "10 double*",
        "uint64_data": "11 uint64*",
        "external_data": "13 StringStringEntryProto*",
        "data_location": "14 int32",
    },
    "SparseTensorProto": {
        "values": "1 TensorProto",
        "indices": "2 TensorProto",
        "dims": "3 int64*",
    },
    "StringStringEntryProto": {"key": "1 string", "value": "2 string"},
    "ValueInfoProto": {"name": "1 string", "type": "2 TypeProto"},
    "TypeProto": {
        "tensor_type": "1 Tensor",
        "sequence_type": "4 Element",
        "map_type": "5 Map",
        "sparse_tensor_type": "8 Tensor",
        "optional_type": "9 Element",
    },
    "Tensor": {"elem_type": "1 int32", "shape": "2 TensorShapeProto"},
    "Element": {"elem_type": "1 TypeProto"},
    "Map": {"key_type": "1 int32", "value_type": "2 TypeProto"},
    "TensorShapeProto": {"dim": "1 Dimension*"},
    "Dimension": {"dim_value": "1 int64", "dim_param": "2 string"},
}

TYPES: Final = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
}
"""TensorProto.DataType by the names of our dtypes."""
_EXTERNAL: Final = 1
_FLOAT, _INT, _STRING, _FLOATS, _INTS, _STRINGS = 1, 2, 3, 6, 7, 8
"""AttributeProto.AttributeType."""


def _messages() -> dict[str, Any]:
    # A pool of our own: in the process that imports models the onnx package registers the same names.
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="stage.proto", package="onnx", syntax="proto2")
    for message, fields in _SCHEMA.items():
        described = file.message_type.add(name=message)
        for name, text in fields.items():
            number, _, kind = text.removesuffix("*").partition(" ")
            field = described.field.add(name=name, number=int(number))
            field.label = _REPEATED if text.endswith("*") else _OPTIONAL
            field.type = _KINDS.get(kind, _MESSAGE)
            if kind not in _KINDS:
                field.type_name = f".onnx.{kind}"
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"onnx.{name}"))
        for name in _SCHEMA
    }


_CLASSES: Final = _messages()


def parse(data: bytes) -> Any:
    """The model that these bytes are, less what no stage needs.

    Raises:
        google.protobuf.message.DecodeError: they are none.
    """
    model = _CLASSES["ModelProto"].FromString(data)
    model.DiscardUnknownFields()
    return model


def make_model(graph: Any, opsets: Iterable[tuple[str, int]], ir_version: int) -> Any:
    """A model of one graph, with the versions of operator sets by domain."""
    model = _CLASSES["ModelProto"](ir_version=ir_version, graph=graph)
    for domain, version in opsets:
        model.opset_import.add(domain=domain, version=version)
    return model


def make_graph(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], initializers: Sequence[Any]
) -> Any:
    """A graph; nodes in topological order."""
    return _CLASSES["GraphProto"](
        name="stage", node=nodes, input=inputs, output=outputs, initializer=initializers
    )


def make_value(name: str, dtype: str, shape: tuple[int | str, ...] | None) -> Any:
    """An input or output; a dimension with a name is open, and without a shape the runtime infers it."""
    value = _CLASSES["ValueInfoProto"](name=name)
    value.type.tensor_type.elem_type = TYPES[dtype]
    if shape is not None:
        value.type.tensor_type.shape.SetInParent()
        for dim in shape:
            which = "dim_param" if isinstance(dim, str) else "dim_value"
            value.type.tensor_type.shape.dim.add(**{which: dim})
    return value


def make_node(op: str, inputs: Sequence[str], output: str, *, name: str, **attributes: Any) -> Any:
    """An operator of one output; `domain` among the attributes is whose operator it is."""
    node = _CLASSES["NodeProto"](op_type=op, input=inputs, output=[output], name=name)
    node.domain = attributes.pop("domain", "")
    for key, value in sorted(attributes.items()):
        if value is not None:
            _set(node.attribute.add(name=key), value)
    return node


def make_tensor(array: Array, name: str) -> Any:
    """A tensor with its values in it."""
    dtype = str(array.dtype)
    data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return _CLASSES["TensorProto"](
        name=name, data_type=TYPES[dtype], dims=array.shape, raw_data=data
    )


def make_external(name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> Any:
    """A tensor whose bytes are given beside the model; nothing is read from the file that it names."""
    tensor = _CLASSES["TensorProto"](name=name, data_type=TYPES[dtype], dims=shape)
    tensor.data_location = _EXTERNAL
    for key, value in (("location", name), ("offset", "0"), ("length", str(nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _set(attribute: Any, value: Any) -> None:
    """Give an attribute its value, of the type that Python has it in."""
    if isinstance(value, float | np.floating):
        attribute.type, attribute.f = _FLOAT, float(value)
    elif isinstance(value, int | np.integer):
        attribute.type, attribute.i = _INT, int(value)
    elif isinstance(value, str):
        attribute.type, attribute.s = _STRING, value.encode()
    elif all(isinstance(each, int | np.integer) for each in value):
        attribute.type = _INTS
        attribute.ints.extend(int(each) for each in value)
    elif all(isinstance(each, str) for each in value):
        attribute.type = _STRINGS
        attribute.strings.extend(each.encode() for each in value)
    else:
        attribute.type = _FLOATS
        attribute.floats.extend(float(each) for each in value)

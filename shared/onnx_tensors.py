"""Where an ONNX model says that bytes lie in other files: a library that is given it would read them.

Works on the parsed message, whoever parsed it: neither onnx nor protobuf is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_EXTERNAL = 1
"""`TensorProto.DataLocation.EXTERNAL`."""


def hidden_external(model: Any) -> Iterator[Any]:
    """Every tensor in a file that is no initialiser of the main graph, wherever it stands.

    Constants, initialisers of branches and loops, functions, sparse values.
    """
    graph = model.graph
    for part in (*graph.node, *graph.sparse_initializer, *model.functions, *model.training_info):
        yield from _external(part)


def is_external(tensor: Any) -> bool:
    """Whether its bytes are in a file."""
    return bool(tensor.data_location == _EXTERNAL)


def _external(message: Any) -> Iterator[Any]:
    if message.DESCRIPTOR.full_name == "onnx.TensorProto":
        if is_external(message):
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _external(part)

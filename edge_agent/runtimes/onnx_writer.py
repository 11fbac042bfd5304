"""Collects the ONNX nodes and constants that a stage's operators become.

ONNX values get names of our own making; ONNX nodes carry the names of ours, which is what errors show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_agent.runtimes.onnx_proto import TYPES, make_node, make_tensor
from shared.errors import StageError
from shared.graph import Node, StageGraph, TensorSpec


class Writer:
    """What was emitted so far; `node` is the one of ours that is being converted."""

    def __init__(self, graph: StageGraph) -> None:
        self.graph = graph
        self.specs = graph.specs()
        self.names = {name: f"v{index}" for index, name in enumerate(self.specs)}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.node = graph.nodes[0]
        self._parts = 0

    def begin(self, node: Node) -> None:
        """What is emitted from now on computes `node`."""
        self.node, self._parts = node, 0

    def emit(self, op: str, *inputs: str, **attributes: Any) -> str:
        """An ONNX node of one output; an optional input left out is an empty name."""
        name = self.node.name if self._parts == 0 else f"{self.node.name}/{self._parts}"
        self._parts += 1
        result = f"n{len(self.nodes)}"
        self.nodes.append(make_node(op, inputs, result, name=name, **attributes))
        return result

    def constant(self, values: Any, dtype: str = "int64") -> str:
        """A small tensor that is part of the graph."""
        array = np.asarray(values, dtype)
        key = (dtype, array.shape, array.tobytes())
        name = self._known.get(key)
        if name is None:
            name = self._known[key] = f"c{len(self._known)}"
            self.constants.append(make_tensor(array, name))
        return name

    def spec(self, index: int = 0) -> TensorSpec:
        """The form of operand `index`."""
        return self.specs[self._ref(index)]

    def operand(self, index: int = 0) -> str:
        """Operand `index`, which must be there."""
        return self.names[self._ref(index)]

    def optional(self, index: int) -> str | None:
        """Operand `index`, or None where it was left out."""
        return None if self.node.args[index] is None else self.operand(index)

    def several(self) -> list[tuple[str, TensorSpec]]:
        """The only operand, a list, with the forms."""
        refs = self.node.args[0]
        assert isinstance(refs, tuple)
        return [(self.names[ref], self.specs[ref]) for ref in refs]

    def attribute(self, name: str) -> Any:
        """The attribute `name`; its kind is settled by the operator's signature."""
        return self.node.kwargs[name]

    def cast(self, value: str, spec: TensorSpec, dtype: str | None = None) -> str:
        """`value` in the result's dtype (or `dtype`): torch promotes, ONNX wants operands alike."""
        wanted = dtype or self.node.spec.dtype
        return value if spec.dtype == wanted else self.emit("Cast", value, to=TYPES[wanted])

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """`value` in another shape."""
        return self.emit("Reshape", value, self.constant(shape))

    def refuse(self, what: str, expected: str, got: object) -> StageError:
        """What ONNX has no exact counterpart of."""
        return StageError(
            f"stage {self.graph.name}, operator {self.node.name} ({self.node.op}): {what}",
            expected=expected,
            got=str(got),
        )

    def _ref(self, index: int) -> str:
        ref = self.node.args[index]
        assert isinstance(ref, str)
        return ref

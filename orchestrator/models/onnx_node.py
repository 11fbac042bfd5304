"""One ONNX node while it is translated: what a rule may ask, and how it says what to make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx

from shared.errors import ModelError
from shared.graph import MAX_NAME_LENGTH, Attribute, Node, TensorSpec
from shared.tensor import Array


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A value that is known: one of the file's weights by its name, or made of one."""

    name: str
    array: Array

    def made(self, how: str, make: Callable[[Array], Array]) -> Constant:
        """Another one, made of this; `how` goes into its name, so that the same is made once."""
        return Constant(f"{self.name}@{how}", make(self.array))


Operand: TypeAlias = str | Constant
"""The name of a value that depends on the inputs, or a constant."""


@dataclass(slots=True)
class Translation:
    """What was translated so far."""

    opset: int
    specs: dict[str, TensorSpec]
    constants: Mapping[str, Array]
    outputs: frozenset[str]
    taken: set[str]
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    """The names of ONNX values in our graph, where they are others."""

    def unused(self, name: str) -> str:
        """`name`, shortened and numbered until nothing else is called so."""
        candidate, count = name[-(MAX_NAME_LENGTH - 10) :], 1
        stem = candidate
        while candidate in self.taken:
            count += 1
            candidate = f"{stem}#{count}"
        self.taken.add(candidate)
        return candidate


class OnnxNode:
    """The node that a rule translates."""

    def __init__(self, translation: Translation, proto: Any) -> None:
        self._t = translation
        self._proto = proto
        self.op: str = proto.op_type
        self.opset = translation.opset
        self._attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
        self._parts = 0

    @property
    def label(self) -> str:
        """What errors call it: its name, or its first output's."""
        return self._proto.name or self._proto.output[0]

    @property
    def results(self) -> list[str]:
        """The names of its outputs; an empty one is not wanted."""
        return list(self._proto.output)

    @property
    def out(self) -> TensorSpec:
        """The form of its first output."""
        return self._t.specs[self._proto.output[0]]

    def result_spec(self, index: int) -> TensorSpec:
        """The form of output `index`."""
        return self._t.specs[self._proto.output[index]]

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute as Python has it: int, float, str, list of them, or `default`."""
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    @property
    def count(self) -> int:
        """How many inputs it has, those left out in between included."""
        return len(self._proto.input)

    def has(self, index: int) -> bool:
        """Whether input `index` was given."""
        return index < len(self._proto.input) and bool(self._proto.input[index])

    def operand(self, index: int = 0) -> Operand:
        """Input `index`, which must be there."""
        if not self.has(index):
            raise self.refuse(f"input {index}", "to be there", "nothing")
        name = self._proto.input[index]
        if name in self._t.constants:
            return Constant(name, self._t.constants[name])
        return self._t.values.get(name, name)

    def optional(self, index: int) -> Operand | None:
        """Input `index`, or None where it was left out."""
        return self.operand(index) if self.has(index) else None

    def operands(self) -> list[Operand]:
        """All inputs."""
        return [self.operand(index) for index in range(self.count)]

    def known(self, index: int, what: str) -> Array:
        """The values of input `index`, which must not depend on the model's inputs."""
        operand = self.operand(index)
        if not isinstance(operand, Constant):
            raise self.refuse(
                f"{what} that depend on the model's inputs", "known ones", "unknown ones"
            )
        return operand.array

    def ints(self, name: str, index: int) -> list[int] | None:
        """A list of whole numbers that older operator sets have as attribute, newer ones as input."""
        if name in self._attributes:
            return [int(number) for number in self._attributes[name]]
        return [int(n) for n in np.ravel(self.known(index, name))] if self.has(index) else None

    def number(self, name: str, index: int) -> float | None:
        """The same for one number."""
        if name in self._attributes:
            return float(self._attributes[name])
        return float(np.ravel(self.known(index, name))[0]) if self.has(index) else None

    def spec(self, operand: Operand) -> TensorSpec:
        """The form of an operand."""
        if isinstance(operand, Constant):
            return TensorSpec(str(operand.array.dtype), operand.array.shape)
        return self._t.specs[operand]

    def emit(
        self, op: str, /, *operands: Operand | Sequence[Operand] | None, **attributes: Attribute
    ) -> None:
        """The node's first output is `op` of `operands`."""
        self.emit_as(0, op, *operands, **attributes)

    def emit_as(
        self,
        result: int,
        op: str,
        /,
        *operands: Operand | Sequence[Operand] | None,
        **attributes: Attribute,
    ) -> None:
        """The same for output `result`."""
        name = self._proto.output[result]
        made = self._add(self._t.unused(name), op, operands, attributes, self._t.specs[name])
        if made != name:
            self._t.values[name] = made
            self._t.specs[made] = self._t.specs[name]

    def part(
        self,
        op: str,
        /,
        *operands: Operand | Sequence[Operand] | None,
        out: Sequence[int],
        **attributes: Attribute,
    ) -> str:
        """A value on the way to the output: of the output's dtype, of shape `out`."""
        self._parts += 1
        name = self._t.unused(f"{self._proto.output[0]}/{self._parts}")
        self._t.specs[name] = TensorSpec(self.out.dtype, tuple(int(dim) for dim in out))
        return self._add(name, op, operands, attributes, self._t.specs[name])

    def reshaped(self, operand: Operand, shape: Sequence[int]) -> str:
        """`operand` in another shape, on the way to the output."""
        return self.part("reshape", operand, out=shape, shape=tuple(shape))

    def same(self, operand: Operand) -> None:
        """The node's first output is `operand` itself."""
        name = self._proto.output[0]
        if isinstance(operand, Constant) or name in self._t.outputs:
            # Outputs keep their names, and one that is an input needs a node.
            self.emit("reshape", operand, shape=self.out.shape)
        else:
            self._t.values[name] = operand

    def scalar(self, value: float, dtype: str) -> Constant:
        """A constant without axes."""
        return Constant(f"{dtype}({value})", np.asarray(value, dtype))

    def refuse(self, what: str, expected: str, got: object) -> ModelError:
        """What our graphs have no counterpart of."""
        return ModelError(
            f"ONNX operator {self.op}, node {self.label!r}: {what}", expected=expected, got=str(got)
        )

    def _add(
        self,
        name: str,
        op: str,
        operands: Sequence[Operand | Sequence[Operand] | None],
        attributes: dict[str, Attribute],
        spec: TensorSpec,
    ) -> str:
        args = tuple(
            tuple(self._name(item) for item in operand)
            if isinstance(operand, list | tuple)
            else None
            if operand is None
            else self._name(operand)  # type: ignore[arg-type]
            for operand in operands
        )
        self._t.nodes.append(Node(name, op, args, attributes, spec, self._proto.name.strip("/")))
        return name

    def _name(self, operand: Operand) -> str:
        if isinstance(operand, str):
            return operand
        if operand.name not in self._t.weights:
            self._t.weights[operand.name] = operand.array
            self._t.taken.add(operand.name)
        return operand.name

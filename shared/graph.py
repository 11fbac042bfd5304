"""A model, or a stage of one, as data: a graph over a closed list of operators.

A graph is JSON and carries no code. Values are named; a node makes one value out of earlier ones; weights
live in safetensors blobs and are named by the blob's SHA-256 and their key in it. All shapes are fixed, but
for those of a stage whose batch is open: they are written for one item, and axis 0 of its inputs and outputs
may be any number of them (`shared.batching`). Operands come first and are names; attributes are scalars or
lists of numbers, every one of them written out, so that nothing depends on a default of some library's
version. `take` replaces axis `dim` of `x` by the axes of `indices`, which are whole numbers in [0, size of
the axis): an embedding is a `take` along axis 0 of a weight.

An int8 graph (`q_` operators, `quantize`, `dequantize`) carries its scales: a quantised activation is uint8
and stands for `scale * (q - zero)`; every operator names those of its operands and of its result, so that a
tensor at a cut needs nothing beside it. Weights are int8 with a float32 scale per output channel and no zero
point, biases int32 in units of `x_scale * weight_scale`. Sums are exact whole numbers, so the same graph
gives the same bits wherever it is cut. What leaves [0, 255] saturates, which is all that is left of a ReLU.

A model that cannot be taken apart is the exception: `onnx` nodes, one per output, all of one ONNX model that
is the first of their `model` weights; the others are its initialisers, under the names that they have in it,
as inputs and outputs are. Nothing else may be in such a graph, so it is never cut.

`validate` is what stands between bytes from the wire and a runtime: it refuses operators off the list,
references to nothing, wrong arities and absurd sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

from shared.errors import GraphError
from shared.operators import OPS, WHOLE

Operand: TypeAlias = str | tuple[str, ...] | None
"""A value's or weight's name, several of them, or an optional operand left out."""
Attribute: TypeAlias = bool | int | float | str | tuple[int | float, ...] | None

DTYPE_BYTES: dict[str, int] = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
MAX_NODES = 20_000
MAX_RANK = 8
MAX_DIM = 2**31 - 1
MAX_TENSOR_BYTES = 4 * 2**30
MAX_WEIGHT_BYTES = 64 * 2**30
MAX_NAME_LENGTH = 400
MIN_SCALE, MAX_SCALE = 1e-30, 1e30
"""Of a quantised value: float32 holds it, and its reciprocal."""


class CostClass(StrEnum):
    """What bounds an operator's time; nodes are calibrated once per class, and times split by them."""

    CONV_DENSE = "conv_dense"
    CONV_DEPTHWISE = "conv_depthwise"
    MATMUL = "matmul"
    MEMORY = "memory"
    OVERHEAD = "overhead"
    """What any operator costs beside its work: the same for each, so no operator's own class."""


class Kernels(StrEnum):
    """Which kernels a runtime may compute a graph with; chosen when a model is imported, by measuring."""

    FAST = "fast"
    """Any that round as well: operators fused, weights repacked, layouts changed."""
    PLAIN = "plain"
    """The original framework's own, one per operator, in its order and layout: the same bits."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's dtype (a key of `DTYPE_BYTES`) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Value:
    """A named input of a graph."""

    name: str
    spec: TensorSpec


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight: its form, and where it lies. `blob` is a SHA-256 in hex, empty until blobs are made."""

    spec: TensorSpec
    blob: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """One operator; the value it makes has the node's name. `module` is its path in the original model."""

    name: str
    op: str
    args: tuple[Operand, ...]
    kwargs: dict[str, Attribute]
    spec: TensorSpec
    module: str = ""

    def refs(self) -> tuple[str, ...]:
        """The names this node reads, in order, with repeats."""
        names: list[str] = []
        for arg in self.args:
            if isinstance(arg, str):
                names.append(arg)
            elif arg is not None:
                names.extend(arg)
        return tuple(names)


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole model or one stage; nodes are in topological order.

    `open_batch`: several items may go through it at once, laid behind each other along axis 0.
    """

    name: str
    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    weights: dict[str, Weight] = field(default_factory=dict)
    kernels: Kernels = Kernels.FAST
    open_batch: bool = False

    def specs(self) -> dict[str, TensorSpec]:
        """The form of everything that has a name: inputs, weights, nodes."""
        specs = {value.name: value.spec for value in self.inputs}
        specs.update((name, weight.spec) for name, weight in self.weights.items())
        specs.update((node.name, node.spec) for node in self.nodes)
        return specs

    def output_values(self) -> tuple[Value, ...]:
        """The outputs with their forms."""
        specs = self.specs()
        return tuple(Value(name, specs[name]) for name in self.outputs)

    @property
    def is_whole(self) -> bool:
        """Whether it is a model that cannot be taken apart: `onnx` nodes and nothing else."""
        return self.nodes[0].op == WHOLE

    def blobs(self) -> tuple[str, ...]:
        """The digests of the blobs that hold the weights, sorted."""
        return tuple(sorted({weight.blob for weight in self.weights.values()}))


StageGraph: TypeAlias = Graph
"""A graph whose inputs and outputs are the tensors at two cuts; nothing else sets it apart."""


def cost_class(node: Node, specs: dict[str, TensorSpec]) -> CostClass:
    """The class `node` is calibrated with; `specs` as from `Graph.specs`."""
    if not OPS[node.op].computes:
        return CostClass.MEMORY
    if node.op not in ("conv2d", "q_conv2d"):
        return CostClass.MATMUL
    weight = node.args[1]
    assert isinstance(weight, str)
    # One input channel per group: nothing is reused, memory bounds it.
    depthwise = node.kwargs["groups"] != 1 and specs[weight].shape[1] == 1
    return CostClass.CONV_DEPTHWISE if depthwise else CostClass.CONV_DENSE


class GraphBuilder:
    """Builds a graph node by node; `build` validates it.

    >>> b = GraphBuilder("tiny")
    >>> x = b.input("x", (1, 8))
    >>> y = b.node("linear", x, b.weight("w", (4, 8)), None, shape=(1, 4))
    >>> b.build(b.node("relu", y, shape=(1, 4))).outputs
    ('relu_1',)
    """

    def __init__(self, name: str) -> None:
        self._graph = Graph(name, (), (), ())
        self._inputs: list[Value] = []
        self._nodes: list[Node] = []
        self._weights: dict[str, Weight] = {}

    def input(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> str:
        """An input of the graph; returns its name."""
        self._inputs.append(Value(name, TensorSpec(dtype, tuple(shape))))
        return name

    def weight(
        self, name: str, shape: tuple[int, ...], dtype: str = "float32", blob: str = ""
    ) -> str:
        """A weight with its own name as key in `blob`; returns its name."""
        self._weights[name] = Weight(TensorSpec(dtype, tuple(shape)), blob, name)
        return name

    def node(
        self,
        op: str,
        *args: Operand,
        shape: tuple[int, ...],
        dtype: str = "float32",
        name: str = "",
        module: str = "",
        **kwargs: Attribute,
    ) -> str:
        """An operator applied to `args`; returns the name of its value."""
        name = name or f"{op}_{len(self._nodes)}"
        spec = TensorSpec(dtype, tuple(shape))
        self._nodes.append(Node(name, op, args, kwargs, spec, module))
        return name

    def build(self, *outputs: str) -> Graph:
        """The graph that gives `outputs`.

        Raises:
            GraphError: it is malformed; see `validate`.
        """
        graph = replace(
            self._graph,
            inputs=tuple(self._inputs),
            nodes=tuple(self._nodes),
            outputs=outputs,
            weights=dict(self._weights),
        )
        validate(graph)
        return graph


def validate(graph: Graph) -> None:
    """Check that `graph` is well formed.

    Raises:
        GraphError: an operator off the list, a reference to nothing or to what comes later, a name used
            twice, operands or attributes that do not fit the operator, or a size beyond the bounds above.
    """
    if not 1 <= len(graph.nodes) <= MAX_NODES:
        raise _bad(graph, "number of nodes", f"1..{MAX_NODES}", len(graph.nodes))
    known: set[str] = set()
    for kind, name, spec in (
        *(("input", value.name, value.spec) for value in graph.inputs),
        *(("weight", name, weight.spec) for name, weight in graph.weights.items()),
    ):
        _name(graph, kind, name, known)
        _spec(graph, f"{kind} {name!r}", spec)
    total = sum(weight.spec.nbytes for weight in graph.weights.values())
    if total > MAX_WEIGHT_BYTES:
        raise _bad(graph, "bytes of all weights", f"at most {MAX_WEIGHT_BYTES}", total)
    for node in graph.nodes:
        _signature(graph, node)
        for ref in node.refs():
            if ref not in known:
                raise _bad(
                    graph,
                    f"operand of node {node.name!r} ({node.op})",
                    "an input, a declared weight or an earlier node",
                    repr(ref),
                )
        _name(graph, "node", node.name, known)
        _spec(graph, f"node {node.name!r}", node.spec)
    _whole(graph)
    values = known - graph.weights.keys()
    if not graph.outputs or len(set(graph.outputs)) != len(graph.outputs):
        raise _bad(graph, "outputs", "one or more, each once", list(graph.outputs))
    for output in graph.outputs:
        if output not in values:
            raise _bad(graph, "output", "an input or a node", repr(output))


def _whole(graph: Graph) -> None:
    """What is there of a model that cannot be taken apart, is all of it."""
    if all(node.op != WHOLE for node in graph.nodes):
        return
    head, given = graph.nodes[0], tuple(value.name for value in graph.inputs)
    for node in graph.nodes:
        if node.op != WHOLE or node.args != head.args:
            raise _bad(graph, f"node {node.name!r}", f"an output of the {WHOLE} model", node.op)
    inputs, model = head.args
    assert isinstance(inputs, tuple)
    assert isinstance(model, tuple)
    if inputs != given or set(model) != graph.weights.keys():
        raise _bad(graph, f"operands of the {WHOLE} model", "all inputs and all weights", head.args)
    spec = graph.weights[model[0]].spec
    if spec.dtype != "uint8" or len(spec.shape) != 1:
        raise _bad(graph, f"weight {model[0]!r}, the {WHOLE} model", "uint8 of rank 1", spec)


def _bad(graph: Graph, what: str, expected: str, got: object) -> GraphError:
    return GraphError(f"graph {graph.name[:80]!r}: {what}", expected=expected, got=str(got)[:200])


def _name(graph: Graph, kind: str, name: str, known: set[str]) -> None:
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise _bad(graph, f"name of a {kind}", f"1..{MAX_NAME_LENGTH} characters", len(name))
    if name in known:
        raise _bad(graph, f"name of a {kind}", "a name used once", f"{name!r} again")
    known.add(name)


def _spec(graph: Graph, what: str, spec: TensorSpec) -> None:
    if spec.dtype not in DTYPE_BYTES:
        raise _bad(graph, f"dtype of {what}", " | ".join(DTYPE_BYTES), repr(spec.dtype))
    if len(spec.shape) > MAX_RANK:
        raise _bad(graph, f"rank of {what}", f"at most {MAX_RANK}", len(spec.shape))
    for dim in spec.shape:
        if not 0 < dim <= MAX_DIM:
            raise _bad(graph, f"dimension of {what}", f"1..{MAX_DIM}", dim)
    if spec.nbytes > MAX_TENSOR_BYTES:
        raise _bad(graph, f"bytes of {what}", f"at most {MAX_TENSOR_BYTES}", spec.nbytes)


def _signature(graph: Graph, node: Node) -> None:
    where = f"node {node.name!r}"
    op = OPS.get(node.op)
    if op is None:
        raise _bad(graph, f"{where}: operator", "one of the closed list", repr(node.op))
    where = f"{where} ({node.op})"
    if len(node.args) != len(op.operands):
        raise _bad(graph, f"{where}: operands", f"{len(op.operands)}", len(node.args))
    for operand, arg in zip(op.operands, node.args, strict=True):
        fits = (
            isinstance(arg, tuple) and bool(arg)
            if operand.endswith("*")
            else isinstance(arg, str) or (arg is None and operand.endswith("?"))
        )
        if not fits:
            raise _bad(
                graph,
                f"{where}: operand {operand!r}",
                _OPERAND_FORMS.get(operand[-1], "a name"),
                arg,
            )
    if node.kwargs.keys() != op.attributes.keys():
        raise _bad(graph, f"{where}: attributes", str(sorted(op.attributes)), sorted(node.kwargs))
    for name, kind in op.attributes.items():
        value = node.kwargs[name]
        if not _attribute_fits(value, kind) or (
            kind.endswith("*") and len(value) != len(node.args[0])  # type: ignore[arg-type]
        ):
            raise _bad(graph, f"{where}: attribute {name!r}", kind, repr(value))


_OPERAND_FORMS = {"*": "a list of names", "?": "a name or null"}


def _attribute_fits(value: Attribute, kind: str) -> bool:
    if kind.endswith("?"):
        return value is None or _attribute_fits(value, kind[:-1])
    if kind.endswith("*"):
        return isinstance(value, tuple) and all(_attribute_fits(one, kind[:-1]) for one in value)
    match kind:
        case "int":
            return _is_int(value)
        case "scale":
            return _attribute_fits(value, "float") and MIN_SCALE <= value <= MAX_SCALE  # type: ignore[operator]
        case "zero":
            return _is_int(value) and 0 <= value <= 255  # type: ignore[operator]
        case "float":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and math.isfinite(value)  # type: ignore[arg-type]
        case "bool":
            return isinstance(value, bool)
        case "str":
            return isinstance(value, str) and len(value) <= MAX_NAME_LENGTH
        case "dtype":
            return value in DTYPE_BYTES
        case "ints":
            return (
                isinstance(value, tuple) and all(map(_is_int, value)) and len(value) <= 2 * MAX_RANK
            )
        case "int2":
            return isinstance(value, tuple) and len(value) == 2 and all(map(_is_int, value))
        case _:
            raise AssertionError(kind)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_DIM

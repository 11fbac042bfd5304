"""Level O2: a graph's convolutions and linear layers on eight bits, and what lies between them where it pays.

Static, as the graph says it: each quantised activation has a scale and a zero point from the ranges that were
seen on samples, each output channel of a weight a scale of its own. A value is quantised once and read in
that form by all that can; the rest (normalisation, softmax, attention, GELU) computes in float32 between a
`dequantize` and a `quantize`. No torch: graph in, graph out.

Processors without 8-bit dot products (x86 before VNNI) add products in pairs in 16 bits, which saturate.
Weights are scaled so that no two of one output channel can do that, whichever two meet: all nodes of a
cluster give the same numbers. A depthwise convolution has no pairs, and keeps the whole range.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from orchestrator.models.blobs import pack_weights
from orchestrator.models.cuts import find_blocks
from orchestrator.models.ranges import LEVELS, Range
from shared.graph import Attribute, Graph, Node, Operand, TensorSpec, Weight, validate
from shared.manifest import Block, Level, Manifest
from shared.profile import LeafProfile
from shared.tensor import Array

WEIGHT_MAX = 127
"""Of one weight, and of two of the same sign: 255 * (127 + 1 for rounding) stays below 2^15."""
_SUM_MAX = 2**30
"""A bias in units of the sums it is added to: half of what 32 bits hold is left to the sums."""
_LEAST_SCALE = 1e-12
_SATURATES = frozenset({"relu", "hardtanh", "clamp"})
"""What the ends of the range do anyway, once the range is that of the result."""
_MOVES = frozenset({"reshape", "permute", "expand", "select", "slice", "max_pool2d"})
"""Operators that give some of the same numbers, elsewhere: the same on quantised ones."""
_SIGMOID_RANGE = (0.0, 1.0)

RangeOf = Callable[[str], Range]


@dataclass(frozen=True, slots=True)
class QuantisedModel:
    """A manifest at level O2, and the blobs it names."""

    manifest: Manifest
    blobs: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class _Quantised:
    """A value's name in the new graph in its eight-bit form, and what that stands for."""

    name: str
    scale: float
    zero: int


def values_to_watch(manifest: Manifest, blobs: Mapping[str, bytes]) -> tuple[str, ...]:
    """The values of the graph whose ranges `quantise` will ask for."""
    asked: dict[str, None] = {}

    def ask(name: str) -> Range:
        asked[name] = None
        return (0.0, 1.0)

    _Rewriting(manifest.graph, _weights(manifest.graph, blobs), ask).run()
    return tuple(asked)


def quantise(
    manifest: Manifest, blobs: Mapping[str, bytes], ranges: Mapping[str, Range]
) -> QuantisedModel:
    """The model at level O2.

    Args:
        manifest: the model at level O1.
        blobs: its weights by digest.
        ranges: of what `values_to_watch` names.
    """
    rewriting = _Rewriting(manifest.graph, _weights(manifest.graph, blobs), ranges.__getitem__)
    rewriting.run()
    graph, arrays = rewriting.graph(), rewriting.weights
    blocks, cuts = find_blocks(graph)
    packed = pack_weights(
        graph, blocks, lambda names: safetensors.numpy.save({n: arrays[n] for n in names})
    )
    validate(packed.graph)
    return QuantisedModel(
        replace(
            manifest,
            level=Level.O2,
            graph=packed.graph,
            blocks=packed.blocks,
            cuts=cuts,
            leaves=_leaves(manifest.leaves, packed.graph, packed.blocks),
        ),
        packed.blobs,
    )


class _Rewriting:
    """One pass over the nodes; `weights` are those of the new graph so far."""

    def __init__(self, graph: Graph, weights: dict[str, Array], range_of: RangeOf) -> None:
        self.weights: dict[str, Array] = {}
        self._old = graph
        self._arrays = weights
        self._range_of = range_of
        self._specs = graph.specs()
        self._readers: dict[str, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            for ref in node.refs():
                self._readers[ref].append(node)
        self._float = {value.name: value.name for value in graph.inputs}
        self._quantised: dict[str, _Quantised] = {}
        self._nodes: list[Node] = []
        self._copies: Counter[str] = Counter()
        self._absorbed: set[str] = set()

    def run(self) -> None:
        """Rewrite every node."""
        for node in self._old.nodes:
            if node.name in self._absorbed or self._rewritten(node):
                continue
            args = tuple(self._as_float(arg) for arg in node.args)
            self._emit(replace(node, args=args))
            self._float[node.name] = node.name

    def graph(self) -> Graph:
        """The new graph; its weights name no blob yet."""
        specs = {
            name: Weight(TensorSpec(str(array.dtype), array.shape), key=name)
            for name, array in sorted(self.weights.items())
        }
        return replace(self._old, nodes=tuple(self._nodes), weights=specs)

    def _rewritten(self, node: Node) -> bool:
        """Whether `node` has an eight-bit form here, and was emitted in it."""
        if node.spec.dtype != "float32":
            return False
        match node.op:
            case "conv2d" | "linear" if self._is_layer(node):
                self._layer(node)
                return True
            case "add" | "mul" if node.kwargs.get("alpha", 1.0) == 1.0:
                return self._binary(node)
            case "sigmoid" | "silu":
                return self._sigmoid(node)
            case "concat":
                return self._concat(node)
            case "avg_pool2d" | "adaptive_avg_pool2d" | "mean":
                return self._global_pool(node)
            case op if op in _MOVES:
                return self._moved(node)
        return False

    # --- layers that compute

    def _is_layer(self, node: Node) -> bool:
        """Weights that are known, of float32; images or rows."""
        known = all(arg is None or arg in self._arrays for arg in node.args[1:])
        x = self._specs[str(node.args[0])]
        return known and x.dtype == "float32" and (node.op != "conv2d" or len(x.shape) == 4)

    def _layer(self, node: Node) -> None:
        x = self._as_quantised(str(node.args[0]))
        depthwise = node.op == "conv2d" and self._specs[str(node.args[1])].shape[1] == 1
        weight = self._weight(node, x, depthwise=depthwise)
        kwargs: dict[str, Attribute] = {**node.kwargs, "x_scale": x.scale, "x_zero": x.zero}
        args = (x.name, *weight)
        if node.op == "linear" and not self._read_by_layers(node):
            # Rows that the rest computes with in float32: not rounded on the way.
            kwargs |= {"scale": None, "zero": None}
            self._emit(replace(node, op="q_linear", args=args, kwargs=kwargs))
            self._float[node.name] = node.name
            return
        self._result(node, f"q_{node.op}", args, kwargs)

    def _read_by_layers(self, node: Node) -> bool:
        readers = self._readers[self._last(node).name]
        return bool(readers) and all(
            reader.op in ("conv2d", "linear") and self._is_layer(reader) for reader in readers
        )

    def _weight(
        self, layer: Node, x: _Quantised, *, depthwise: bool
    ) -> tuple[str, str, str | None]:
        """The names of a layer's weight and its scales, and of its bias in units of the sums."""
        node, bias = layer.name, layer.args[2]
        weight = self._arrays[str(layer.args[1])].astype(np.float64)
        scales = _spans(weight, pairs=not depthwise) / WEIGHT_MAX
        offsets: NDArray[np.float64] | None = None
        if isinstance(bias, str):
            offsets = self._arrays[bias].astype(np.float64)
            scales = np.maximum(scales, np.abs(offsets) / (x.scale * _SUM_MAX))
        scales = np.maximum(scales, _LEAST_SCALE).astype(np.float32)
        steps = np.rint(weight / scales.reshape(-1, *(1,) * (weight.ndim - 1)).astype(np.float64))
        names = (f"{node}@weight", f"{node}@scale")
        self.weights[names[0]] = np.clip(steps, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)
        self.weights[names[1]] = scales
        if offsets is None:
            return (*names, None)
        unit = x.scale * scales.astype(np.float64)
        self.weights[f"{node}@bias"] = np.rint(offsets / unit).astype(np.int32)
        return (*names, f"{node}@bias")

    # --- what lies between them

    def _binary(self, node: Node) -> bool:
        """Where both operands have eight bits already; otherwise rounding them would be added."""
        pair = [self._quantised.get(str(arg)) for arg in node.args]
        if pair[0] is None or pair[1] is None:
            return False
        x, y = pair[0], pair[1]
        kwargs = _of("x", x) | _of("y", y)
        self._result(node, f"q_{node.op}", (x.name, y.name), kwargs)
        return True

    def _sigmoid(self, node: Node) -> bool:
        x = self._quantised.get(str(node.args[0]))
        if x is None:
            return False
        if node.op == "sigmoid":
            self._result(node, "q_sigmoid", (x.name,), _of("x", x), _SIGMOID_RANGE)
            return True
        # silu(x) = x * sigmoid(x)
        gate = _quantised(f"{node.name}@gate", _SIGMOID_RANGE)
        self._emit(
            Node(
                gate.name,
                "q_sigmoid",
                (x.name,),
                _of("x", x) | {"scale": gate.scale, "zero": gate.zero},
                replace(node.spec, dtype="uint8"),
                node.module,
            )
        )
        self._result(node, "q_mul", (x.name, gate.name), _of("x", x) | _of("y", gate))
        return True

    def _concat(self, node: Node) -> bool:
        refs = node.refs()
        parts = [self._quantised[ref] for ref in refs if ref in self._quantised]
        if len(parts) < len(refs):
            return False
        kwargs: dict[str, Attribute] = {
            **node.kwargs,
            "xs_scale": tuple(part.scale for part in parts),
            "xs_zero": tuple(part.zero for part in parts),
        }
        self._result(node, "q_concat", (tuple(part.name for part in parts),), kwargs)
        return True

    def _global_pool(self, node: Node) -> bool:
        """A mean over whole maps."""
        x = self._quantised.get(str(node.args[0]))
        shape = self._specs[str(node.args[0])].shape
        if x is None or len(shape) != 4:
            return False
        if node.op == "mean":
            dims = node.kwargs["dims"]
            assert isinstance(dims, tuple)
            whole = {int(dim) % 4 for dim in dims} == {2, 3}
        else:
            whole = (
                node.spec.shape[2:] == (1, 1)
                and node.kwargs.get("kernel", shape[2:]) == (shape[2:])
            )
            whole = whole and node.kwargs.get("padding", (0, 0)) == (0, 0)
            whole = whole and node.kwargs.get("divisor") is None
        if not whole:
            return False
        pooled = replace(node, spec=TensorSpec("float32", (*shape[:2], 1, 1)))
        if pooled.spec == node.spec:
            self._result(node, "q_global_avg_pool2d", (x.name,), _of("x", x))
            return True
        mean = _quantised(f"{node.name}@mean", self._range_of(node.name))
        kwargs = _of("x", x) | {"scale": mean.scale, "zero": mean.zero}
        spec = replace(pooled.spec, dtype="uint8")
        self._emit(Node(mean.name, "q_global_avg_pool2d", (x.name,), kwargs, spec, node.module))
        flat = replace(node, op="reshape", args=(mean.name,), kwargs={"shape": node.spec.shape})
        self._keep(flat, mean)
        return True

    def _moved(self, node: Node) -> bool:
        x = self._quantised.get(str(node.args[0]))
        if x is None:
            return False
        self._keep(replace(node, args=(x.name,)), x)
        return True

    # --- values

    def _result(
        self,
        node: Node,
        op: str,
        args: tuple[Operand, ...],
        kwargs: Mapping[str, Attribute],
        span: Range | None = None,
    ) -> None:
        """Emit `node` in its eight-bit form, an activation that only bounds its result included."""
        last = self._last(node)
        if last is not node:
            self._absorbed.add(last.name)
            span = None
        made = _quantised(last.name, span or self._range_of(last.name))
        quantised = replace(
            node,
            op=op,
            args=args,
            kwargs={**kwargs, "scale": made.scale, "zero": made.zero},
            spec=last.spec,
        )
        self._keep(replace(quantised, name=last.name), made)

    def _keep(self, node: Node, made: _Quantised) -> None:
        """Emit a node whose result is on eight bits; under another name where its own is an output's."""
        name = f"{node.name}@q" if node.name in self._old.outputs else node.name
        self._emit(replace(node, name=name, spec=replace(node.spec, dtype="uint8")))
        self._quantised[node.name] = replace(made, name=name)
        if name != node.name:
            self._dequantize(node.name, node.name)
            self._float[node.name] = node.name

    def _last(self, node: Node) -> Node:
        """`node`, or the only reader of its result, where that does nothing but bound it."""
        readers = self._readers[node.name]
        single = len(readers) == 1 and node.name not in self._old.outputs
        return readers[0] if single and _only_bounds(readers[0]) else node

    def _as_quantised(self, name: str) -> _Quantised:
        known = self._quantised.get(name)
        if known is not None:
            return known
        made = _quantised(f"{name}@q", self._range_of(name))
        kwargs: dict[str, Attribute] = {"scale": made.scale, "zero": made.zero}
        spec = replace(self._specs[name], dtype="uint8")
        self._emit(Node(made.name, "quantize", (self._float[name],), kwargs, spec))
        self._quantised[name] = made
        return made

    def _as_float(self, operand: Operand) -> Operand:
        """An operand in float32; made anew for each reader, so that a cut between them sends eight bits."""
        if isinstance(operand, tuple):
            return tuple(str(self._as_float(name)) for name in operand)
        if operand is None:
            return None
        if operand in self._arrays:
            self.weights[operand] = self._arrays[operand]
            return operand
        if operand in self._float:
            return self._float[operand]
        self._copies[operand] += 1
        return self._dequantize(operand, f"{operand}@f{self._copies[operand]}")

    def _dequantize(self, operand: str, name: str) -> str:
        x = self._quantised[operand]
        self._emit(Node(name, "dequantize", (x.name,), _of("x", x), self._specs[operand]))
        return name

    def _emit(self, node: Node) -> None:
        self._nodes.append(node)


def _only_bounds(node: Node) -> bool:
    """Whether the ends of its result's range, 0 among them, do all that `node` does."""
    low, high = node.kwargs.get("min"), node.kwargs.get("max")
    bounds_zero = (low is None or low <= 0) and (high is None or high >= 0)  # type: ignore[operator]
    return node.op in _SATURATES and bounds_zero


def _spans(weight: NDArray[np.float64], *, pairs: bool) -> NDArray[np.float64]:
    """By output channel, what `WEIGHT_MAX` shall stand for: the largest weight, or two of the same sign."""
    rows = weight.reshape(len(weight), -1)
    spans: NDArray[np.float64] = np.abs(rows).max(axis=1)
    if pairs and rows.shape[1] > 1:
        ordered = np.partition(rows, (1, rows.shape[1] - 2), axis=1)
        for two in (-ordered[:, :2], ordered[:, -2:]):
            spans = np.maximum(spans, np.maximum(two, 0.0).sum(axis=1))
    return spans


def _of(prefix: str, value: _Quantised) -> dict[str, Attribute]:
    return {f"{prefix}_scale": value.scale, f"{prefix}_zero": value.zero}


def _quantised(name: str, span: Range) -> _Quantised:
    """`span` on eight bits: real = scale * (q - zero), and 0 is exact."""
    low, high = span
    scale = float(np.float32(max((high - low) / LEVELS, _LEAST_SCALE)))
    return _Quantised(name, scale, int(np.clip(round(-low / scale), 0, LEVELS)))


def _weights(graph: Graph, blobs: Mapping[str, bytes]) -> dict[str, Array]:
    opened = {digest: safetensors.numpy.load(blobs[digest]) for digest in graph.blobs()}
    return {name: opened[weight.blob][weight.key] for name, weight in graph.weights.items()}


def _leaves(
    leaves: tuple[LeafProfile, ...], graph: Graph, blocks: tuple[Block, ...]
) -> tuple[LeafProfile, ...]:
    """The original's leaf modules with the blocks that they fall in now."""
    block_of: dict[str, int] = {}
    for block in blocks:
        for node in graph.nodes[slice(*block.nodes)]:
            block_of.setdefault(node.module, block.index)
    current, moved = 0, []
    for leaf in leaves:
        current = block_of.get(leaf.name, current)
        moved.append(replace(leaf, block=current))
    return tuple(moved)

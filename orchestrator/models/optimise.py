"""Graph to graph: dead code out, BatchNorm and biases folded into the layer before, pools simplified."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch

from orchestrator.models.trace import Traced
from shared.graph import Node, Operand


def remove_dead_code(traced: Traced) -> None:
    """Drop nodes and weights that no output needs, in place."""
    needed = set(traced.outputs)
    kept: list[Node] = []
    for node in reversed(traced.nodes):
        if node.name in needed:
            kept.append(node)
            needed.update(node.refs())
    traced.nodes = kept[::-1]
    traced.weights = {name: value for name, value in traced.weights.items() if name in needed}


def fold_batch_norm(traced: Traced) -> None:
    """Fold each BatchNorm into the conv2d or linear before it, in place.

    Only where that layer's result is read by the BatchNorm alone. The new weights are computed in float64
    and rounded once, so the result stays within float32 rounding of the original.
    """
    uses = Counter(ref for node in traced.nodes for ref in node.refs())
    uses.update(traced.outputs)
    at = {node.name: index for index, node in enumerate(traced.nodes)}
    renamed: dict[str, str] = {}
    dropped: set[int] = set()
    for index, node in enumerate(traced.nodes):
        source = node.args[0]
        if node.op != "batch_norm" or not isinstance(source, str) or source not in at:
            continue
        layer = traced.nodes[at[source]]
        # After a linear layer BatchNorm's channel axis is the last one only for plain rows.
        foldable = layer.op == "conv2d" or (layer.op == "linear" and len(layer.spec.shape) == 2)
        constant = all(ref in traced.weights for ref in (*layer.refs()[1:], *node.refs()[1:]))
        if uses[source] != 1 or not foldable or not constant:
            continue
        traced.nodes[at[source]] = _folded(traced, layer, node)
        renamed[node.name] = source
        dropped.add(index)
    traced.nodes = [
        replace(node, args=tuple(_renamed(arg, renamed) for arg in node.args))
        for index, node in enumerate(traced.nodes)
        if index not in dropped
    ]
    traced.outputs = tuple(renamed.get(name, name) for name in traced.outputs)


def fold_bias(traced: Traced) -> None:
    """Make what is added to a linear layer's rows its bias, in place: ONNX writes the two apart.

    The same sums in the same order; one pass over memory less.
    """
    uses = Counter(ref for node in traced.nodes for ref in node.refs())
    uses.update(traced.outputs)
    at = {node.name: index for index, node in enumerate(traced.nodes)}
    dropped: set[int] = set()
    for index, node in enumerate(traced.nodes):
        if node.op != "add" or node.kwargs["alpha"] != 1:
            continue
        for source, bias in (node.refs(), node.refs()[::-1]):
            layer = traced.nodes[at[source]] if source in at else None
            if (
                layer is not None
                and bias in traced.weights
                and layer.op == "linear"
                and layer.args[2] is None
                and uses[source] == 1
                and layer.spec == node.spec
                and traced.weights[bias].shape == layer.spec.shape[-1:]
            ):
                # In the place of the sum, under its name, which others read.
                traced.nodes[index] = replace(layer, name=node.name, args=(*layer.args[:2], bias))
                dropped.add(at[source])
                break
    traced.nodes = [node for index, node in enumerate(traced.nodes) if index not in dropped]


def simplify_global_pools(traced: Traced) -> None:
    """Make an adaptive pool to one pixel a plain average over the whole map, in place.

    The same mean; torch's kernel for it walks channels-last memory three times as fast (3-4 % of
    EfficientNet-B0 and MobileNetV3, whose gates begin with one).
    """
    shapes = {node.name: node.spec.shape for node in traced.nodes}
    shapes.update((value.name, value.spec.shape) for value in traced.inputs)
    for index, node in enumerate(traced.nodes):
        source = node.args[0]
        if node.op == "adaptive_avg_pool2d" and node.kwargs["output_size"] == (1, 1):
            window = shapes[str(source)][-2:]
            traced.nodes[index] = replace(
                node,
                op="avg_pool2d",
                kwargs={
                    "kernel": window,
                    "stride": window,
                    "padding": (0, 0),
                    "ceil_mode": False,
                    "count_include_pad": True,
                    "divisor": None,
                },
            )


def _folded(traced: Traced, layer: Node, norm: Node) -> Node:
    """`layer` with BatchNorm's y = (x - mean) / sqrt(var + eps) * gamma + beta worked into its weights."""
    weight, bias = _tensor(traced, layer.args[1]), _tensor(traced, layer.args[2])
    gamma, beta, mean, var = (_tensor(traced, arg) for arg in norm.args[1:])
    assert weight is not None
    assert mean is not None
    assert var is not None
    eps = norm.kwargs["eps"]
    assert isinstance(eps, float)
    scale = torch.rsqrt(var.double() + eps)
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() if bias is None else bias.double() - mean.double()
    shift = shift * scale
    if beta is not None:
        shift = shift + beta.double()
    folded = weight.double() * scale.reshape(-1, *(1,) * (weight.dim() - 1))
    names = (f"{layer.args[1]}@{norm.name}", f"{layer.args[1]}@{norm.name}.bias")
    traced.weights[names[0]] = folded.to(weight.dtype)
    traced.weights[names[1]] = shift.to(weight.dtype)
    return replace(layer, args=(layer.args[0], *names))


def _tensor(traced: Traced, operand: Operand) -> torch.Tensor | None:
    return traced.weights[operand] if isinstance(operand, str) else None


def _renamed(operand: Operand, renamed: dict[str, str]) -> Operand:
    if isinstance(operand, str):
        return renamed.get(operand, operand)
    return operand if operand is None else tuple(renamed.get(name, name) for name in operand)

"""Convolutions with prepacked weights and the activation inside, where oneDNN offers them.

torch's compiler uses these operators; called directly they save the pass over memory of a separate
activation and the repacking of weights in each call. A convolution of one pixel is a matrix product over the
pixels, and oneDNN's is 5-20 % faster at it than its convolution. MobileNetV2's results stay within 2e-6 of
torch's own. Where torch has no oneDNN, stages run on the plain operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from edge_agent.runtimes.torch_ops import Step
from edge_agent.runtimes.torch_weights import StageWeights
from shared.graph import Node, StageGraph, TensorSpec

_ACTIVATIONS = {
    "relu": "relu",
    "hardtanh": "hardtanh",
    "silu": "swish",
    "sigmoid": "sigmoid",
    "hardswish": "hardswish",
}
"""Our operators and what oneDNN's wrapper calls them."""


@lru_cache(maxsize=1)
def is_available() -> bool:
    """Whether this build of torch has oneDNN and the operators used here."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, f"_{verb}_{what}")
        for verb, what in (
            ("convolution", "pointwise"),
            ("linear", "pointwise"),
            ("reorder_convolution", "weight"),
            ("reorder_linear", "weight"),
        )
    )


@dataclass(frozen=True, slots=True)
class Fusion:
    """A convolution, what is computed with it, and the node whose value comes out.

    `other` is the operand that is added before the activation, if any.
    """

    convolution: Node
    last: Node
    activation: Node | None = None
    other: str | None = None


def find_fusions(graph: StageGraph) -> dict[str, Fusion]:
    """Fusable groups by the name of their last node.

    Nodes in between must be read by the next one alone and be no output. A convolution followed by nothing
    fusable is a group of its own: its weights are still prepacked.
    """
    uses = Counter(ref for node in graph.nodes for ref in node.refs())
    uses.update(graph.outputs)
    specs = graph.specs()
    reader = {ref: node for node in graph.nodes for ref in node.refs() if uses[ref] == 1}
    done_at = {node.name: index for index, node in enumerate(graph.nodes)}
    fusions: dict[str, Fusion] = {}
    for node in graph.nodes:
        if node.op != "conv2d" or node.spec.dtype != "float32" or node.args[1] not in graph.weights:
            continue
        last, other, activation = node, None, None
        following = reader.get(last.name)
        if following is not None and following.op == "add":
            other = _added(following, node, specs, graph, done_at)
            if other is not None:
                last, following = following, reader.get(following.name)
        # After an added tensor oneDNN's wrapper knows no other activation than relu.
        offered = _ACTIVATIONS if other is None else ("relu",)
        if following is not None and following.op in offered:
            activation = last = following
        fusions[last.name] = Fusion(node, last, activation, other)
    return fusions


def _added(
    add: Node,
    convolution: Node,
    specs: Mapping[str, TensorSpec],
    graph: StageGraph,
    done_at: Mapping[str, int],
) -> str | None:
    """The other operand of `add`, if it can be added inside `convolution`."""
    names = [name for name in add.args if isinstance(name, str) and name != convolution.name]
    if len(names) != 1 or add.kwargs["alpha"] != 1.0 or names[0] in graph.weights:
        return None
    # The group runs where the convolution stands; what is added must be there by then.
    ready = done_at.get(names[0], -1) < done_at[convolution.name]
    return names[0] if ready and specs[names[0]] == convolution.spec else None


def bind_fusion(
    fusion: Fusion, graph: StageGraph, weights: StageWeights, slots: Mapping[str, int]
) -> Step:
    """The step that computes the whole group."""
    node = fusion.convolution
    x_name, weight_name, bias_name = node.args
    assert isinstance(x_name, str)
    assert isinstance(weight_name, str)
    x = slots[x_name]
    shape = graph.specs()[x_name].shape
    stride, padding, dilation, groups = (
        node.kwargs[name] for name in ("stride", "padding", "dilation", "groups")
    )
    geometry = (padding, stride, dilation, groups)
    if _is_matrix_product(fusion, graph):
        return _bind_matrix_product(fusion, shape, weights, slots)
    weight = weights.get(
        weight_name,
        ("packed", geometry, shape),
        lambda stored: torch.ops.mkldnn._reorder_convolution_weight(  # noqa: SLF001
            stored.contiguous(memory_format=torch.channels_last), *geometry, shape
        ),
    )
    bias = weights.get(bias_name) if isinstance(bias_name, str) else None
    attribute, scalars = _activation(fusion.activation)
    if fusion.other is None:
        call = torch.ops.mkldnn._convolution_pointwise.default  # noqa: SLF001
        tail = (weight, bias, *geometry, attribute or "none", scalars, "")
        return lambda s: call(s[x], *tail)
    add = torch.ops.mkldnn._convolution_pointwise.binary  # noqa: SLF001
    other = slots[fusion.other]
    rest = (weight, bias, *geometry, "add", 1.0, attribute, scalars, None)
    return lambda s: add(s[x], s[other], *rest)


def _is_matrix_product(fusion: Fusion, graph: StageGraph) -> bool:
    """Whether the group is pixels times a matrix. After an addition linear knows no activation."""
    node = fusion.convolution
    weight = graph.weights[str(node.args[1])].spec.shape
    return (
        weight[2:] == (1, 1)
        and (fusion.other is None or fusion.activation is None)
        and (node.kwargs["stride"], node.kwargs["padding"]) == ((1, 1), (0, 0))
        and node.kwargs["groups"] == 1
    )


def _bind_matrix_product(
    fusion: Fusion, shape: tuple[int, ...], weights: StageWeights, slots: Mapping[str, int]
) -> Step:
    """On [N, H, W, C] views, which channels-last tensors are without a copy."""
    x_name, weight_name, bias_name = fusion.convolution.args
    assert isinstance(x_name, str)
    assert isinstance(weight_name, str)
    x, pixels = slots[x_name], shape[0] * shape[2] * shape[3]
    weight = weights.get(
        weight_name,
        ("matrix", pixels),
        lambda stored: torch.ops.mkldnn._reorder_linear_weight(  # noqa: SLF001
            stored.flatten(1).contiguous(), pixels
        ),
    )
    bias = weights.get(bias_name) if isinstance(bias_name, str) else None
    if fusion.other is None:
        attribute, scalars = _activation(fusion.activation)
        call = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
        tail = (weight, bias, attribute or "none", scalars, "")
        return lambda s: call(s[x].permute(0, 2, 3, 1), *tail).permute(0, 3, 1, 2)
    add = torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001
    other = slots[fusion.other]
    rest = (weight, bias, "add")
    return lambda s: add(s[x].permute(0, 2, 3, 1), s[other].permute(0, 2, 3, 1), *rest).permute(
        0, 3, 1, 2
    )


def _activation(node: Node | None) -> tuple[str | None, list[Any]]:
    if node is None:
        return None, []
    bounds = [node.kwargs["min"], node.kwargs["max"]] if node.op == "hardtanh" else []
    return _ACTIVATIONS[node.op], bounds

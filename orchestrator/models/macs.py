"""Multiply-adds of a node, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from shared.errors import GraphError
from shared.graph import Node, TensorSpec


def macs(node: Node, specs: Mapping[str, TensorSpec]) -> int:
    """Multiply-adds of one run of `node`; 0 for operators that carry none (`OpSpec.computes`).

    `specs` has the form of every value and weight, as from `Graph.specs`.
    """
    shapes = [specs[ref].shape for ref in node.refs()]
    out = math.prod(node.spec.shape)
    match node.op:
        case "conv2d" | "q_conv2d":
            # Each output element reads C_in / groups * k_h * k_w inputs: the weight's last three axes.
            return out * math.prod(shapes[1][1:])
        case "linear" | "q_linear":
            return out * shapes[1][-1]
        case "matmul":
            return out * shapes[0][-1]
        case "scaled_dot_product_attention":
            # q @ k^T and the product with v.
            query, key, value = shapes[:3]
            return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
        case "einsum":
            return _einsum(str(node.kwargs["equation"]), shapes)
        case _:
            return 0


def _einsum(equation: str, shapes: list[tuple[int, ...]]) -> int:
    """The product of all index sizes: the cost of the direct sum."""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if len(terms) != len(shapes):
        raise GraphError("einsum", expected=f"{len(terms)} operands", got=str(len(shapes)))
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        sizes.update(zip(term, shape, strict=True))
    return math.prod(sizes.values())

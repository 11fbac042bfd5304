"""Whole-number inputs that a model can work with: token ids of the vocabulary, masks of ones and zeros."""

from __future__ import annotations

import numpy as np

from shared.graph import Graph, TensorSpec
from shared.tensor import Array

_MOVES = frozenset(
    {"cast", "reshape", "permute", "expand", "select", "slice", "concat", "roll", "pad"}
)
"""Operators that give the same numbers, elsewhere."""


def index_bounds(graph: Graph) -> dict[str, int]:
    """For each input that is used as indices by a `take`: the size of the smallest axis it indexes."""
    specs = graph.specs()
    origins: dict[str, frozenset[str]] = {v.name: frozenset({v.name}) for v in graph.inputs}
    bounds: dict[str, int] = {}
    for node in graph.nodes:
        if node.op in _MOVES:
            empty: frozenset[str] = frozenset()
            origins[node.name] = empty.union(*(origins.get(ref, empty) for ref in node.refs()))
        if node.op == "take":
            x, indices = node.refs()
            dim = node.kwargs["dim"]
            assert isinstance(dim, int)
            for name in origins.get(indices, ()):
                size = specs[x].shape[dim]
                bounds[name] = min(size, bounds.get(name, size))
    return bounds


def whole_numbers(spec: TensorSpec, bound: int | None, random: np.random.Generator) -> Array:
    """Indices below `bound`; without one zeros and ones, as in a mask, with a one first in every row."""
    if bound is not None:
        return random.integers(0, bound, spec.shape).astype(spec.dtype)
    array = random.integers(0, 2, spec.shape).astype(spec.dtype)
    if array.ndim:
        array[..., 0] = 1
    return array

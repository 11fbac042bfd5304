"""Weights in blobs: one per block, named by the SHA-256 of its bytes; equal weights give equal bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shared.graph import Graph
from shared.manifest import Block


@dataclass(frozen=True, slots=True)
class Packed:
    """A graph and blocks that name their blobs, and the blobs by digest."""

    graph: Graph
    blocks: tuple[Block, ...]
    blobs: dict[str, bytes]


def pack_weights(
    graph: Graph, blocks: Sequence[Block], save: Callable[[list[str]], bytes]
) -> Packed:
    """Make the blobs. A weight that several blocks read goes in each, so that each stands alone.

    Args:
        graph: whose weights name no blob yet.
        blocks: of that graph.
        save: the weights of these names in safetensors form, under these names.
    """
    blobs: dict[str, bytes] = {}
    weights = dict(graph.weights)
    named: list[Block] = []
    for block in blocks:
        nodes = graph.nodes[slice(*block.nodes)]
        names = sorted({ref for node in nodes for ref in node.refs() if ref in weights})
        if not names:
            named.append(block)
            continue
        data = save(names)
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        named.append(replace(block, blob=digest))
        for key in names:
            if not weights[key].blob:
                weights[key] = replace(weights[key], blob=digest)
    return Packed(replace(graph, weights=weights), tuple(named), blobs)

"""What each layer of a model is and costs: the rows behind `amp4ec profile`.

A layer is an operator of the graph as it runs, after folding. A leaf module of the original that left no
operator (a BatchNorm folded into its convolution, a dropout) is a row of its own with the paper's cost and
nothing else, so that the paper's sums can be followed line by line.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deploy.profile import time_blocks, without_entry_cost
from edge_agent.runtimes import open_runtime
from orchestrator.models.cuts import liveness
from orchestrator.models.macs import macs
from shared.graph import Graph, Node, TensorSpec
from shared.manifest import Block, Manifest
from shared.profile import CutProfile, LeafProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer.

    `type` is the module's class where the model has modules, else the operator; `op` is empty for a module
    that left no operator. `parameters` counts the elements of the weights as they run, `activation_bytes` is
    the size of what it makes, `live_bytes` what would cross a cut right after it. `paper_cost` is null where
    the model has no modules, or the operator is of none. `seconds` is at 1.0 CPU, null when layers were not
    timed.
    """

    name: str
    type: str
    block: int
    op: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    parameters: int = 0
    macs: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0
    live_bytes: int = 0
    paper_cost: int | None = None
    seconds: float | None = None


def layers_of(manifest: Manifest, seconds: Mapping[str, float] | None = None) -> list[Layer]:
    """The layers of a model in the order in which they run.

    Args:
        manifest: the model.
        seconds: by the operator's name, as from `time_layers`; None leaves them out.
    """
    graph = manifest.graph
    specs, live = graph.specs(), liveness(graph)
    leaves = _by_name(manifest.leaves)
    block_of = {
        graph.nodes[at].name: block.index for block in manifest.blocks for at in range(*block.nodes)
    }
    rows: list[Layer] = []
    emitted: set[int] = set()
    for position, node in enumerate(graph.nodes):
        known = leaves.get(node.module)
        # A module may run several times, or as several operators: its cost is on the first of each run
        leaf = known.popleft() if known else None
        if leaf is not None:
            rows += _without_operator(manifest.leaves, leaf[0], emitted, graph)
            emitted.add(leaf[0])
        row = _layer(node, block_of[node.name], specs, graph)
        rows.append(
            replace(
                row,
                type=row.type if leaf is None else leaf[1].type,
                paper_cost=None if leaf is None else leaf[1].cost,
                live_bytes=live.bytes_at(position + 1),
                seconds=None if seconds is None else seconds[node.name],
            )
        )
    rows += _without_operator(manifest.leaves, len(manifest.leaves), emitted, graph)
    return rows


def time_layers(
    manifest: Manifest, blobs: Mapping[str, bytes], runtime: str, block_seconds: tuple[float, ...]
) -> dict[str, float]:
    """Seconds of each operator at 1.0 CPU, by name; the operators of a block sum to the block's time.

    Each operator is timed as a stage of its own, with what entering and leaving the runtime costs taken out
    as for blocks. Inside a block a runtime may fuse operators, so a block's own time is what counts, and is
    shared out in proportion.

    Args:
        manifest: the model.
        blobs: its weights by digest.
        runtime: the runtime's name.
        block_seconds: the blocks' measured times.

    Raises:
        StageError: the runtime is not installed, or cannot run the model.
    """
    if manifest.graph.is_whole:
        # One run makes all outputs.
        rest = dict.fromkeys((node.name for node in manifest.graph.nodes[1:]), 0.0)
        return {manifest.graph.nodes[0].name: block_seconds[0], **rest}
    alone = without_entry_cost(
        time_blocks(_operator_by_operator(manifest), blobs, open_runtime(runtime))
    )
    seconds: dict[str, float] = {}
    for block, whole in zip(manifest.blocks, block_seconds, strict=True):
        scale = whole / math.fsum(alone[slice(*block.nodes)])
        for at in range(*block.nodes):
            seconds[manifest.graph.nodes[at].name] = alone[at] * scale
    return seconds


def _operator_by_operator(manifest: Manifest) -> Manifest:
    """The same model with a block per operator: every position of a graph is a legal cut."""
    graph, live = manifest.graph, liveness(manifest.graph)
    blocks = tuple(
        Block(
            index=at,
            name=graph.nodes[at].name,
            nodes=(at, at + 1),
            macs=0,
            weight_bytes=0,
            peak_bytes=0,
            blob=block.blob,
        )
        for block in manifest.blocks
        for at in range(*block.nodes)
    )
    cuts = tuple(
        CutProfile(at, live.bytes_at(at), len(live.at(at))) for at in range(1, len(graph.nodes))
    )
    return replace(manifest, blocks=blocks, cuts=cuts)


def _layer(node: Node, block: int, specs: Mapping[str, TensorSpec], graph: Graph) -> Layer:
    """What an operator is by itself."""
    weights = [
        graph.weights[ref].spec for ref in dict.fromkeys(node.refs()) if ref in graph.weights
    ]
    return Layer(
        name=node.module or node.name,
        type=node.op,
        block=block,
        op=node.op,
        attributes=_attributes(node, specs),
        shape=node.spec.shape,
        parameters=sum(math.prod(spec.shape) for spec in weights),
        macs=macs(node, specs),
        weight_bytes=sum(spec.nbytes for spec in weights),
        activation_bytes=node.spec.nbytes,
    )


def _attributes(node: Node, specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """The operator's own attributes, with the sizes of its kernel where it has one."""
    found: dict[str, Any] = dict(node.kwargs)
    op = node.op.removeprefix("q_")
    if op in ("conv2d", "linear"):
        weight = specs[node.refs()[1]].shape
        groups = int(found.get("groups", 1))
        found |= {"in": weight[1] * groups, "out": weight[0]}
        if op == "conv2d":
            found["kernel"] = weight[2:]
    return found


def _by_name(leaves: tuple[LeafProfile, ...]) -> dict[str, deque[tuple[int, LeafProfile]]]:
    found: dict[str, deque[tuple[int, LeafProfile]]] = {}
    for position, leaf in enumerate(leaves):
        found.setdefault(leaf.name, deque()).append((position, leaf))
    return found


def _without_operator(
    leaves: tuple[LeafProfile, ...], before: int, emitted: set[int], graph: Graph
) -> list[Layer]:
    """Rows of the leaves ahead of `before` that no operator stands for."""
    modules = {node.module for node in graph.nodes}
    rows = []
    for position in range(before):
        leaf = leaves[position]
        if position not in emitted and leaf.name not in modules:
            emitted.add(position)
            rows.append(
                Layer(name=leaf.name, type=leaf.type, block=leaf.block, paper_cost=leaf.cost)
            )
    return rows


def kernel_text(row: Layer) -> str:
    """Type and sizes in short: `conv 3x3/2 3>32`, `dwconv 3x3 96` (depthwise), `linear 8>4`; int8 alike."""
    known = row.attributes
    match row.op.removeprefix("q_"):
        case "":
            return f"{row.type} (merged)" if row.paper_cost else row.type
        case "conv2d":
            size = "x".join(str(edge) for edge in known["kernel"])
            stride = known.get("stride", (1, 1))
            if tuple(stride) != (1, 1):
                size += f"/{stride[0]}" if stride[0] == stride[1] else f"/{stride[0]}x{stride[1]}"
            if known["groups"] == known["in"] == known["out"]:
                return f"dwconv {size} {known['out']}"
            groups = f" g{known['groups']}" if known["groups"] != 1 else ""
            return f"conv {size} {known['in']}>{known['out']}{groups}"
        case "linear":
            return f"linear {known['in']}>{known['out']}"
        case "max_pool2d" | "avg_pool2d":
            return f"{row.op.removesuffix('2d')} {'x'.join(str(edge) for edge in known['kernel'])}"
        case _:
            return row.type


def heads(layers: Iterable[Layer]) -> dict[int, Layer]:
    """For each block the layer that it is built around: the one with most multiply-adds, else the first."""
    found: dict[int, Layer] = {}
    for row in layers:
        if row.op and (row.block not in found or row.macs > found[row.block].macs):
            found[row.block] = row
    return found

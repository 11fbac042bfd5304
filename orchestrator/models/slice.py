"""Cut a stage out of a model: pure work on the manifest, milliseconds, no torch."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.models.cuts import liveness
from shared.errors import GraphError
from shared.graph import StageGraph, Value, Weight
from shared.manifest import Manifest


def slice_stage(manifest: Manifest, start: int, stop: int) -> StageGraph:
    """The graph of blocks [start, stop).

    Its inputs are the tensors that cross the cut before `start` (the model's inputs at 0), its outputs
    those that cross the cut before `stop` (the model's outputs at L), with the same names, in the same
    order, on both sides of a cut. A tensor that only passes through is both input and output. Each weight
    names the blob of a block inside the stage.

    Raises:
        GraphError: not 0 <= start < stop <= L.
    """
    count = len(manifest.blocks)
    if not 0 <= start < stop <= count:
        raise GraphError(
            f"stage of {manifest.model!r}",
            expected=f"0 <= start < stop <= {count}",
            got=f"[{start}, {stop})",
        )
    graph = manifest.graph
    live = liveness(graph)
    specs = graph.specs()
    first, last = manifest.blocks[start].nodes[0], manifest.blocks[stop - 1].nodes[1]
    weights: dict[str, Weight] = {}
    for block in manifest.blocks[start:stop]:
        for node in graph.nodes[slice(*block.nodes)]:
            for ref in node.refs():
                if ref in graph.weights and ref not in weights:
                    weights[ref] = replace(graph.weights[ref], blob=block.blob or "")
    inputs = graph.inputs if start == 0 else tuple(Value(v, specs[v]) for v in live.at(first))
    return StageGraph(
        name=f"{manifest.model}[{start}:{stop}]",
        inputs=inputs,
        nodes=graph.nodes[first:last],
        outputs=graph.outputs if stop == count else live.at(last),
        weights=weights,
        kernels=graph.kernels,
    )

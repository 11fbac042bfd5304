"""A model's graph to what the cluster works with: a manifest, and weights in safetensors blobs.

One blob per block, named by the SHA-256 of its bytes; equal weights give equal bytes. Nothing is pickled,
neither here nor by whoever reads the result. The original module's own answers to a few inputs come with it:
what is served is held against them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch

from orchestrator.models.blobs import pack_weights
from orchestrator.models.call import Call
from orchestrator.models.cuts import find_blocks
from orchestrator.models.optimise import (
    fold_batch_norm,
    fold_bias,
    remove_dead_code,
    simplify_global_pools,
)
from orchestrator.models.reference import Reference, references
from orchestrator.models.trace import Traced, trace
from orchestrator.models.zoo import build, list_models
from shared.errors import ModelError
from shared.graph import Graph, Kernels, TensorSpec, Weight, validate
from shared.manifest import Block, Level, Manifest, WeightsMark
from shared.profile import LeafProfile
from shared.transform import Transform

__all__ = ["ImportedModel", "import_module", "import_torchvision", "list_models"]


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A manifest, the blobs it names by SHA-256 in hex, and what the original answers.

    `framework` is the runtime that computed the original's answers.
    """

    manifest: Manifest
    blobs: dict[str, bytes]
    references: tuple[Reference, ...]
    framework: str = "torch"


def import_torchvision(
    name: str,
    weights: str | Path = "default",
    level: Level | str = Level.O1,
    seed: int = 0,
    kernels: Kernels = Kernels.FAST,
) -> ImportedModel:
    """Import one of torchvision's classification models.

    Args:
        name: as in `list_models()`.
        weights: "default" (torchvision's pretrained ones, downloaded), "none" (random, from `seed`), or a
            file: safetensors, or a state dict that `torch.load(weights_only=True)` reads.
        level: "O0" or "O1".
        seed: of the random weights; the same seed gives the same blobs.
        kernels: what the runtime may compute with. Plain ones are for the graph as traced: nothing is
            folded then, whatever the level.

    Raises:
        ModelError: no such model (with names that are close), weights that cannot be had or do not fit, or
            a model that cannot be traced.
    """
    built = build(name, weights, seed)
    example = torch.zeros(1, 3, built.input_edge, built.input_edge)
    return import_module(
        built.module,
        example,
        name,
        level=level,
        weights=built.mark,
        preprocess=built.transform,
        labels=built.labels,
        kernels=kernels,
    )


def import_module(
    module: torch.nn.Module,
    example: torch.Tensor | tuple[torch.Tensor, ...] | Mapping[str, torch.Tensor],
    name: str,
    *,
    level: Level | str = Level.O1,
    weights: WeightsMark = WeightsMark.FILE,
    preprocess: Transform | None = None,
    labels: tuple[str, ...] | None = None,
    kernels: Kernels = Kernels.FAST,
) -> ImportedModel:
    """Import any module; it is put in eval mode.

    `example` gives the inputs' shapes and dtypes, batch size 1; with names where the module is to be called
    with keywords, which then are the inputs' names.

    Raises:
        ModelError: it cannot be traced, or uses an operator that is not on the list.
    """
    call = Call.of(example)
    traced = trace(module.eval(), call)
    return assemble(
        traced,
        name,
        level=level,
        weights=weights,
        kernels=kernels,
        references=lambda graph: references(module, graph, call),
        leaves=lambda graph, blocks: _leaves(module, graph, blocks),
        preprocess=preprocess,
        labels=labels,
    )


def assemble(
    traced: Traced,
    name: str,
    *,
    level: Level | str,
    weights: WeightsMark,
    kernels: Kernels,
    references: Callable[[Graph], tuple[Reference, ...]],
    leaves: Callable[[Graph, tuple[Block, ...]], tuple[LeafProfile, ...]] | None = None,
    preprocess: Transform | None = None,
    labels: tuple[str, ...] | None = None,
    framework: str = "torch",
) -> ImportedModel:
    """Optimise a graph, wherever it comes from, find its blocks and make their blobs.

    Args:
        traced: the graph, and its weights as tensors; is changed.
        name: what the model is called.
        level: how far to optimise it.
        weights: where the weights are from.
        kernels: what the runtime may compute with; plain ones are for the graph as traced.
        references: gives the original's answers to inputs of the graph.
        leaves: gives the original's leaf modules, where it has them.
        preprocess: how images become its input.
        labels: of its classes.
        framework: the runtime that computed the references.

    Raises:
        ModelError: no such level, or O2, which takes samples.
        GraphError: the graph is malformed, or beyond the bounds of `shared.graph`.
    """
    try:
        level = Level(level)
    except ValueError:
        raise ModelError(
            "optimisation level", expected=" | ".join(Level), got=repr(str(level))
        ) from None
    if kernels is Kernels.PLAIN:
        level = Level.O0
    remove_dead_code(traced)
    match level:
        case Level.O0:
            pass
        case Level.O2:
            raise ModelError(
                "level O2 is made of an imported model and samples (orchestrator.models.quantise)",
                expected="O0 | O1",
                got="O2",
            )
        case Level.O1:
            fold_batch_norm(traced)
            fold_bias(traced)
            simplify_global_pools(traced)
            remove_dead_code(traced)
    graph = replace(_graph(traced, name), kernels=kernels)
    blocks, cuts = find_blocks(graph)
    packed = pack_weights(
        graph, blocks, lambda names: safetensors.torch.save({n: traced.weights[n] for n in names})
    )
    graph, blocks = packed.graph, packed.blocks
    validate(graph)
    manifest = Manifest(
        model=name,
        level=level,
        weights=weights,
        graph=graph,
        blocks=blocks,
        cuts=cuts,
        input_bytes=sum(value.spec.nbytes for value in graph.inputs),
        output_bytes=sum(value.spec.nbytes for value in graph.output_values()),
        leaves=() if leaves is None else leaves(graph, blocks),
        preprocess=preprocess,
        labels=labels,
    )
    return ImportedModel(manifest, packed.blobs, references(graph), framework)


def _graph(traced: Traced, name: str) -> Graph:
    weights = {
        key: Weight(
            TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)), key=key
        )
        for key, tensor in sorted(traced.weights.items())
    }
    graph = Graph(name, traced.inputs, tuple(traced.nodes), traced.outputs, weights)
    validate(graph)
    return graph


def _leaves(
    module: torch.nn.Module, graph: Graph, blocks: tuple[Block, ...]
) -> tuple[LeafProfile, ...]:
    """The leaf modules of the original, in order, each with the paper's cost and the block it fell in."""
    block_of: dict[str, int] = {}
    for block in blocks:
        for node in graph.nodes[slice(*block.nodes)]:
            block_of.setdefault(node.module, block.index)
    leaves: list[LeafProfile] = []
    current = 0
    for path, leaf in module.named_modules():
        if next(leaf.children(), None) is not None:
            continue
        # What left no node (folded, or nothing at inference) stays with the leaf before it.
        current = block_of.get(path, current)
        leaves.append(LeafProfile(path, type(leaf).__name__, paper_cost(leaf), current))
    return tuple(leaves)


def paper_cost(leaf: torch.nn.Module) -> int:
    """A leaf module's cost in the paper's partitioner (ALGORITHMS.md, section 1)."""
    if isinstance(leaf, torch.nn.Conv2d):
        height, width = leaf.kernel_size
        return int(height * width * leaf.in_channels * leaf.out_channels)
    if isinstance(leaf, torch.nn.Linear):
        return int(leaf.in_features * leaf.out_features)
    return sum(parameter.numel() for parameter in leaf.parameters())

"""What the original module answers to a few inputs: the measure of every way to compute the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from orchestrator.models.call import Call
from orchestrator.models.examples import index_bounds, whole_numbers
from orchestrator.models.threads import one_thread
from shared.graph import Graph, TensorSpec
from shared.tensor import Array

Answer: TypeAlias = Callable[[dict[str, torch.Tensor]], list[torch.Tensor]]
"""Gives the original's outputs in the order of the graph's."""
COUNT = 3
_COARSEST = 7
"""Cells along an edge of the coarsest pattern that a smooth input is made of."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Inputs and the eager module's outputs for them, by the graph's names."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


def references(module: torch.nn.Module, graph: Graph, call: Call) -> tuple[Reference, ...]:
    """`COUNT` inputs of ordinary size, the same every time, with `module`'s outputs.

    Computed as it stands: float32, contiguous, one operator after the other, one thread.
    """
    return answered(graph, original_answers(module, call))


def original_answers(module: torch.nn.Module, call: Call) -> Answer:
    """What `module` answers, called as `call` says: its output tensors in order, for inputs by name."""

    def answer(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        # Without the shortcut for transformers, which computes in another order.
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            result = call.with_tensors(inputs).copied().run(module)
        finally:
            torch.backends.mha.set_fastpath_enabled(before)
        # Whatever it is nested in: the order is that of the traced graph's outputs.
        return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]

    return answer


def answered(graph: Graph, answer: Answer) -> tuple[Reference, ...]:
    """`COUNT` references; `answer` gives the original's outputs in the order of the graph's.

    White noise, and last a smooth pattern with large bright and dark areas: a network can be calm on one and
    wild on the other.
    """
    generator = torch.Generator().manual_seed(0)
    random, bounds = np.random.default_rng(0), index_bounds(graph)
    found = []
    for index in range(COUNT):
        smooth = index == COUNT - 1
        tensors = {}
        for value in graph.inputs:
            if np.dtype(value.spec.dtype).kind == "f":
                tensors[value.name] = _example(value.spec, generator, smooth=smooth)
            else:
                array = whole_numbers(value.spec, bounds.get(value.name), random)
                tensors[value.name] = torch.from_numpy(array)
        with one_thread(), torch.inference_mode():
            outputs = answer(tensors)
        found.append(
            Reference(
                {name: tensor.numpy() for name, tensor in tensors.items()},
                {name: out.numpy() for name, out in zip(graph.outputs, outputs, strict=True)},
            )
        )
    return tuple(found)


def _example(spec: TensorSpec, generator: torch.Generator, *, smooth: bool) -> torch.Tensor:
    dtype = getattr(torch, spec.dtype)
    if smooth and len(spec.shape) == 4 and min(spec.shape[2:]) > _COARSEST:
        return smooth_images(spec.shape, generator).to(dtype)
    return torch.randn(spec.shape, generator=generator).to(dtype)


def smooth_images(shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
    """Random patterns with as much power at every scale, as photographs have; mean 0, variance 1.

    `shape` is [N, C, H, W]. Without a generator torch's current one is drawn from.
    """
    edge, total = _COARSEST, torch.zeros(shape)
    while edge < min(shape[2:]):
        cells = torch.randn(*shape[:2], edge, edge, generator=generator)
        total += functional.interpolate(cells, size=shape[2:], mode="bilinear")
        edge *= 2
    return (total - total.mean()) / total.std()

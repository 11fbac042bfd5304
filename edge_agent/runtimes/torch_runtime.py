"""The torch runtime: a stage as a flat list of prebound steps over slots.

Torch alone, no torchvision. Weights and activations of convolutional stages are channels-last; results are
freed after their last use; an operator overwrites its operand where nobody else can see it.

A graph that asks for plain kernels is computed as the original module computes it: torch's own operators, one
by one, on contiguous tensors. Its results are the original's bit for bit, at the original's speed.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edge_agent.runtimes import Array, Blobs, check_items, has_shape
from edge_agent.runtimes.torch_convolution import bind_fusion, find_fusions, is_available
from edge_agent.runtimes.torch_ops import FRESH, Binding, Slots, Step, bind
from edge_agent.runtimes.torch_weights import StageWeights
from shared.errors import StageError
from shared.graph import Kernels, Node, StageGraph, Value, validate
from shared.operators import QUANTISED, WHOLE

NAME = "torch"
NEEDS = ("torch", "safetensors")
EXTRA = "amp4ec[torch]"
INT8 = False


@dataclass(frozen=True, slots=True)
class _Input:
    name: str
    slot: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    layout: torch.memory_format | None
    """What the stage computes in; None: as it comes."""


@dataclass(frozen=True, slots=True)
class _Program:
    """`steps` are (step, slot of its result, slots to empty after it, the node's name)."""

    template: Slots
    inputs: tuple[_Input, ...]
    steps: tuple[tuple[Step, int, tuple[int, ...], str], ...]
    outputs: tuple[tuple[str, int], ...]


class TorchRuntime:
    """Runs stages with PyTorch on the CPU."""

    name = NAME
    version = str(torch.__version__)

    def load(self, graph: StageGraph, blobs: Blobs, *, threads: int = 1) -> TorchStage:
        """See `edge_agent.runtimes.Runtime.load`."""
        validate(graph)
        _check_operators(graph)
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                program = _compile(graph, StageWeights(graph, blobs))
        except RuntimeError as error:
            raise StageError(
                f"stage {graph.name} cannot be loaded: {_first_line(error)}"
            ) from error
        stage = TorchStage(graph, program, threads)
        stage.warm_up()
        return stage


class TorchStage:
    """A loaded stage; see `edge_agent.runtimes.LoadedStage`."""

    def __init__(self, graph: StageGraph, program: _Program, threads: int) -> None:
        self._graph = graph
        self._program: _Program | None = program
        self._threads = threads
        self._thread = threading.get_ident()

    @property
    def graph(self) -> StageGraph:
        """What was loaded."""
        return self._graph

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `edge_agent.runtimes.LoadedStage.run`."""
        program = self._program
        if program is None:
            raise StageError(f"stage {self._graph.name} was unloaded")
        if self._thread != threading.get_ident():
            # The number of OpenMP threads is kept per calling thread.
            torch.set_num_threads(self._threads)
            self._thread = threading.get_ident()
        slots = program.template.copy()
        for value in program.inputs:
            slots[value.slot] = self._tensor(value, inputs)
        if len(inputs) != len(program.inputs):
            raise StageError(
                f"inputs of stage {self._graph.name}",
                expected=", ".join(value.name for value in program.inputs),
                got=", ".join(sorted(inputs)),
            )
        check_items(self._graph, inputs)
        name = ""
        try:
            with torch.inference_mode():
                for step, slot, free, name in program.steps:  # noqa: B007  # named when it fails
                    slots[slot] = step(slots)
                    for index in free:
                        slots[index] = None
        except (RuntimeError, IndexError) as error:
            raise StageError(
                f"stage {self._graph.name}, operator {name}: {_first_line(error)}"
            ) from error
        return {
            # What only passes through is the caller's own array.
            name: inputs[name] if name in inputs else _array(slots[slot])
            for name, slot in program.outputs
        }

    def unload(self) -> None:
        """See `edge_agent.runtimes.LoadedStage.unload`."""
        self._program = None

    def warm_up(self) -> None:
        """Run once on zeros and compare the results with what the graph declares.

        Raises:
            StageError: an operator fails or gives another dtype or shape.
        """
        zeros = {
            value.name: np.zeros(value.spec.shape, value.spec.dtype) for value in self._graph.inputs
        }
        results = self.run(zeros)
        for value in self._graph.output_values():
            result = results[value.name]
            if result.dtype != value.spec.dtype or result.shape != value.spec.shape:
                raise StageError(
                    f"output {value.name!r} of stage {self._graph.name}",
                    expected=str(value.spec),
                    got=_form(result),
                )

    def _tensor(self, value: _Input, inputs: Mapping[str, Array]) -> torch.Tensor:
        array = inputs.get(value.name)
        if array is None:
            raise StageError(
                f"inputs of stage {self._graph.name}",
                expected=f"an array {value.name!r}",
                got=", ".join(sorted(inputs)) or "none",
            )
        if array.dtype != value.dtype or not has_shape(
            array, value.shape, open_batch=self._graph.open_batch
        ):
            raise StageError(
                f"input {value.name!r} of stage {self._graph.name}",
                expected=f"{value.dtype}{list(value.shape)}",
                got=_form(array),
            )
        tensor = torch.from_numpy(_writable(array))
        return tensor if value.layout is None else tensor.contiguous(memory_format=value.layout)


def open_runtime() -> TorchRuntime:
    """For `edge_agent.runtimes.open_runtime`."""
    return TorchRuntime()


def _check_operators(graph: StageGraph) -> None:
    """Refuse what torch does not run.

    Of int8 graphs its integer kernels round otherwise, and are being taken out of torch.
    """
    name = TorchRuntime.name
    for node in graph.nodes:
        if node.op in QUANTISED:
            raise StageError(
                f"stage {graph.name}, operator {node.name}: {name} runs no int8 graphs"
                " (level O2); serve the model with --runtime onnxruntime, or at level O1",
                expected="operators of float32 graphs",
                got=node.op,
            )
        if node.op == WHOLE:
            raise StageError(
                f"stage {graph.name} is an ONNX model that cannot be taken apart, which {name} does not run;"
                " serve the model with --runtime onnxruntime",
                expected="a graph of operators",
                got=node.op,
            )


def _compile(graph: StageGraph, weights: StageWeights) -> _Program:
    slots: dict[str, int] = {}
    for name in (
        *(value.name for value in graph.inputs),
        *graph.weights,
        *(node.name for node in graph.nodes),
    ):
        slots[name] = len(slots)
    plain = graph.kernels is Kernels.PLAIN
    convolutional = not plain and any(node.op == "conv2d" for node in graph.nodes)
    fusions = find_fusions(graph) if is_available() and not plain else {}
    inside = {
        part.name
        for fusion in fusions.values()
        for part in (fusion.convolution, *_between(graph, fusion.convolution, fusion.last.name))
        if part.name != fusion.last.name
    }
    template: Slots = [None] * len(slots)
    planned: list[tuple[Step, Node, tuple[str, ...]]] = []
    uses = Counter(ref for node in graph.nodes for ref in node.refs())
    uses.update(graph.outputs)
    fresh: set[str] = set()
    for node in graph.nodes:
        if node.name in inside:
            continue
        fusion = fusions.get(node.name)
        if fusion is not None:
            reads = [ref for ref in (fusion.convolution.args[0], fusion.other) if ref is not None]
            step = bind_fusion(fusion, graph, weights, slots)
            planned.append((step, node, tuple(str(ref) for ref in reads)))
            fresh.add(node.name)
            continue
        for ref in node.refs():
            if ref in graph.weights and template[slots[ref]] is None:
                template[slots[ref]] = weights.get(ref) if plain else _weight(weights, ref, node)
        reusable = frozenset(
            ref
            for ref in node.refs()
            if ref in fresh
            and uses[ref] == 1
            and _same(graph, ref, node)
            # Two operands of unlike layout: taking one's memory would also take its layout.
            and not (plain and len(node.refs()) > 1)
        )
        step = bind(Binding(node, slots, reusable))
        planned.append((step, node, node.refs()))
        if node.op in FRESH:
            fresh.add(node.name)
    return _Program(
        template=template,
        inputs=tuple(
            _input(value, slots, convolutional=convolutional, plain=plain) for value in graph.inputs
        ),
        steps=_with_frees(graph, planned, slots),
        outputs=tuple((name, slots[name]) for name in graph.outputs),
    )


def _between(graph: StageGraph, first: Node, last: str) -> list[Node]:
    """The nodes from `first` to `last` along single uses (a fused group)."""
    reader = {ref: node for node in graph.nodes for ref in node.refs()}
    found: list[Node] = []
    node = first
    while node.name != last:
        node = reader[node.name]
        found.append(node)
    return found


def _with_frees(
    graph: StageGraph, planned: list[tuple[Step, Node, tuple[str, ...]]], slots: dict[str, int]
) -> tuple[tuple[Step, int, tuple[int, ...], str], ...]:
    """Each step with the slots nobody reads after it; outputs and weights stay."""
    last_read: dict[str, int] = {}
    for index, (_step, node, reads) in enumerate(planned):
        last_read[node.name] = index
        last_read.update((ref, index) for ref in reads if ref not in graph.weights)
    for output in graph.outputs:
        last_read.pop(output, None)
    frees: list[list[int]] = [[] for _ in planned]
    for name, index in last_read.items():
        frees[index].append(slots[name])
    return tuple(
        (step, slots[node.name], tuple(free), node.name)
        for (step, node, _reads), free in zip(planned, frees, strict=True)
    )


def _weight(weights: StageWeights, name: str, node: Node) -> torch.Tensor:
    if node.op == "conv2d" and name == node.args[1]:
        return weights.get(
            name,
            "channels_last",
            lambda stored: stored.contiguous(memory_format=torch.channels_last),
        )
    return weights.get(name)


def _same(graph: StageGraph, ref: str, node: Node) -> bool:
    """Whether `ref` has the form of the node's result, so that the result fits in its memory."""
    return graph.specs()[ref] == node.spec


def _input(value: Value, slots: dict[str, int], *, convolutional: bool, plain: bool) -> _Input:
    shape = value.spec.shape
    layout = None
    if plain:
        layout = torch.contiguous_format
    elif convolutional and len(shape) == 4:
        layout = torch.channels_last
    return _Input(value.name, slots[value.name], np.dtype(value.spec.dtype), shape, layout)


class _Interface:
    """Presents an array's memory as writable, and holds the array."""

    __slots__ = ("__array_interface__", "array")

    def __init__(self, array: Array) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self.array = array


def _writable(array: Array) -> Array:
    """An array that torch takes: aligned, strides not negative, marked writable.

    Activations come as read-only views into a message. torch warns about each such array, because it
    cannot mark tensors read-only; nothing here writes to an input, so the mark is lifted without a copy.
    """
    if not array.flags.aligned or any(
        stride < 0 or stride % array.itemsize for stride in array.strides
    ):
        return array.copy()
    return array if array.flags.writeable else np.asarray(_Interface(array))


def _array(tensor: torch.Tensor) -> Array:
    """A dense array (C order, or channels-last as a strided view) that pins no larger memory."""
    dense = tensor.is_contiguous() or (
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    if not dense:
        tensor = tensor.contiguous()
    elif tensor.untyped_storage().nbytes() > tensor.nbytes:
        tensor = tensor.clone()
    result: Array = tensor.numpy()
    return result


def _form(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]

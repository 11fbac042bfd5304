"""The ONNX Runtime runtime: a stage as one session on the CPU. No torch.

The stage's graph is converted to ONNX when it is loaded; what travels and is kept is our own graph and blobs.
Weights are given to the session as they lie in memory (ONNX Runtime repacks those of convolutions and matrix
products for itself). Inside, images are in whatever layout it likes; outside, tensors are in C order, so
that a channels-last input is copied once.

It fuses and reorders as it sees fit, so it has no plain kernels: a graph that asks for them is refused. But
for an ONNX model that is served whole they are its own, with nothing fused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from edge_agent.runtimes import Array, Blobs, check_items, has_shape
from edge_agent.runtimes.memory import give_back
from edge_agent.runtimes.onnx_graph import Converted, convert
from edge_agent.runtimes.onnx_weights import StageWeights
from edge_agent.runtimes.onnx_whole import whole_model
from shared.errors import StageError
from shared.graph import Kernels, StageGraph, Value, validate

NAME = "onnxruntime"
NEEDS = ("onnxruntime",)
EXTRA = "amp4ec[onnx]"
INT8 = True

_SMALLER_RUNS = 64
"""After so many runs of fewer items than the largest before them its memory is let go: 45 ms of CPU."""
_FATAL = 4
"""Log level: its errors are raised as well, and stand in ours."""


class OnnxRuntime:
    """Runs stages with ONNX Runtime on the CPU."""

    name = NAME
    version = str(onnxruntime.__version__)

    def load(self, graph: StageGraph, blobs: Blobs, *, threads: int = 1) -> OnnxStage:
        """See `edge_agent.runtimes.Runtime.load`."""
        validate(graph)
        if graph.kernels is not Kernels.FAST and not graph.is_whole:
            raise StageError(
                f"stage {graph.name}: {self.name} has no plain kernels",
                expected=Kernels.FAST.value,
                got=graph.kernels.value,
            )
        weights = StageWeights(graph, blobs)
        converted = whole_model(graph, weights) if graph.is_whole else convert(graph)
        # Values hold their arrays, and those their blobs: all of it has to outlive the session.
        values = {
            theirs: onnxruntime.OrtValue.ortvalue_from_numpy(weights.get(ours))
            for ours, theirs in converted.weights.items()
        }
        try:
            session = _session(converted, values, threads, graph.kernels)
        except Exception as error:  # its exceptions have no other base
            raise StageError(
                f"stage {graph.name} cannot be loaded: {_first_line(error)}"
            ) from error
        stage = OnnxStage(graph, converted.inputs, converted.outputs, session, values)
        stage.warm_up()
        # The session has its own copies of what it repacked, and the model's protobuf has served.
        weights.let_go()
        del converted
        give_back()
        return stage


class OnnxStage:
    """A loaded stage; see `edge_agent.runtimes.LoadedStage`."""

    def __init__(
        self,
        graph: StageGraph,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        session: Any,
        values: dict[str, Any],
    ) -> None:
        self._graph = graph
        self._inputs = tuple(
            (value, np.dtype(value.spec.dtype), inputs.get(value.name)) for value in graph.inputs
        )
        self._passed = tuple(name for name in graph.outputs if name not in outputs)
        self._outputs = outputs
        self._session = session
        self._values = values
        self._arena = _Arena()

    @property
    def graph(self) -> StageGraph:
        """What was loaded."""
        return self._graph

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `edge_agent.runtimes.LoadedStage.run`."""
        if self._session is None:
            raise StageError(f"stage {self._graph.name} was unloaded")
        feed: dict[str, Array] = {}
        for value, dtype, name in self._inputs:
            array = self._checked(value, dtype, inputs)
            if name is not None:
                flags = array.flags
                # Dense and aligned, or else a copy that is.
                feed[name] = array if flags.c_contiguous and flags.aligned else array.copy("C")
        if len(inputs) != len(self._inputs):
            raise StageError(
                f"inputs of stage {self._graph.name}",
                expected=", ".join(value.name for value, _dtype, _name in self._inputs),
                got=", ".join(sorted(inputs)),
            )
        check_items(self._graph, inputs)
        items = len(next(iter(inputs.values()))) if self._graph.open_batch else 1
        shrinking = self._arena.before(items)
        try:
            arrays = self._session.run(list(self._outputs.values()), feed, shrinking)
        except Exception as error:  # its exceptions have no other base
            raise StageError(f"stage {self._graph.name}: {_first_line(error)}") from error
        if shrinking is not None:
            give_back()
        results = dict(zip(self._outputs, arrays, strict=True))
        # What only passes through is the caller's own array.
        results.update((name, inputs[name]) for name in self._passed)
        return {name: results[name] for name in self._graph.outputs}

    def unload(self) -> None:
        """See `edge_agent.runtimes.LoadedStage.unload`."""
        self._session = None
        self._values = {}

    def warm_up(self) -> None:
        """Run once on zeros and compare the results with what the graph declares.

        Raises:
            StageError: an operator fails or gives another dtype or shape.
        """
        results = self.run(
            {v.name: np.zeros(v.spec.shape, v.spec.dtype) for v in self._graph.inputs}
        )
        for value in self._graph.output_values():
            result = results[value.name]
            if result.dtype != value.spec.dtype or result.shape != value.spec.shape:
                raise StageError(
                    f"output {value.name!r} of stage {self._graph.name}",
                    expected=str(value.spec),
                    got=_form(result),
                )

    def _checked(self, value: Value, dtype: np.dtype[Any], inputs: Mapping[str, Array]) -> Array:
        array = inputs.get(value.name)
        if array is None:
            raise StageError(
                f"inputs of stage {self._graph.name}",
                expected=f"an array {value.name!r}",
                got=", ".join(sorted(inputs)) or "none",
            )
        if array.dtype != dtype or not has_shape(
            array, value.spec.shape, open_batch=self._graph.open_batch
        ):
            raise StageError(
                f"input {value.name!r} of stage {self._graph.name}",
                expected=str(value.spec),
                got=_form(array),
            )
        return array


class _Arena:
    """When a session's allocator is told to let go: by itself it keeps what its largest run took.

    A size that was only tried, or was common for a while, would hold a small device's memory for good:
    MobileNetV2 takes 99 MB with one item at a time and 544 MB once 32 were computed together.
    """

    def __init__(self) -> None:
        self._largest = 1
        self._smaller = 0
        self._shrinking = onnxruntime.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def before(self, items: int) -> Any:
        """What to run so many items with: options that let go afterwards, or None."""
        if items >= self._largest:
            self._largest, self._smaller = items, 0
            return None
        self._smaller += 1
        if self._smaller < _SMALLER_RUNS:
            return None
        self._largest, self._smaller = items, 0
        return self._shrinking


def open_runtime() -> OnnxRuntime:
    """For `edge_agent.runtimes.open_runtime`."""
    return OnnxRuntime()


def _session(converted: Converted, values: dict[str, Any], threads: int, kernels: Kernels) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    levels = onnxruntime.GraphOptimizationLevel
    plain = kernels is Kernels.PLAIN
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if plain else levels.ORT_ENABLE_ALL
    options.enable_mem_pattern = True
    options.log_severity_level = _FATAL
    # Threads that wait by spinning would eat the share that they wait for.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if values:
        options.add_external_initializers(list(values), list(values.values()))
    return onnxruntime.InferenceSession(
        converted.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _form(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]

"""An ONNX model that cannot be taken apart, as it stands: one block, run by ONNX Runtime on one node.

Control flow, operators without a counterpart on our list, values that are no tensors on the way: what ONNX
Runtime runs by itself needs no translation. The model travels as a weight, its larger initialisers beside it.
What crosses its ends are tensors of fixed forms, as with every other model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from orchestrator.models.blobs import pack_weights
from orchestrator.models.importer import ImportedModel
from orchestrator.models.onnx_file import OnnxFile
from orchestrator.models.onnx_values import RANDOM, Session, fixed, open_session, tensor_spec
from orchestrator.models.reference import Reference
from shared.errors import ModelError
from shared.graph import Graph, Kernels, Node, TensorSpec, Value, Weight, validate
from shared.manifest import Block, Level, Manifest, WeightsMark
from shared.operators import WHOLE
from shared.tensor import Array

FRAMEWORK = "onnxruntime"
"""The runtime that runs such a model."""
_MODEL = "model"
"""The weight that holds the model; numbered where one of its own has that name."""
_MAX_MODEL_BYTES = 256 * 2**20
"""Of a model without its larger weights."""


@dataclass(frozen=True, slots=True)
class WholeOnnx:
    """A model that ONNX Runtime has run once; `data` is it, less the weights that lie `outside`."""

    file: OnnxFile
    data: bytes
    outside: dict[str, Array]
    session: Session
    outputs: tuple[Value, ...]

    @classmethod
    def open(cls, file: OnnxFile, example: Mapping[str, Array]) -> WholeOnnx:
        """Run the model on `example`.

        Raises:
            ModelError: ONNX Runtime cannot run it, an output is no tensor of a form that travels, its
                answers are random, or it is too large.
        """
        for node in file.model.graph.node:
            if node.op_type in RANDOM:
                raise ModelError(
                    f"{file.path} draws random numbers ({node.op_type}): no answer of it can be held"
                    " against another",
                    expected="a model that gives the same answer to the same input",
                    got=node.op_type,
                )
        model, outside = fixed(file, [])
        size = model.ByteSize()
        if size > _MAX_MODEL_BYTES:
            raise ModelError(
                f"{file.path}: bytes of the model without its larger weights",
                expected=f"at most {_MAX_MODEL_BYTES}",
                got=str(size),
            )
        session = open_session(file, model, outside)
        results = session.run(list(file.outputs), example)
        given = {value.name for value in file.inputs}
        outputs = tuple(
            Value(name, tensor_spec(file, name, result))
            for name, result in zip(file.outputs, results, strict=True)
            if name not in given
        )
        return cls(file, model.SerializeToString(deterministic=True), outside, session, outputs)

    def imported(
        self,
        name: str,
        why: str,
        *,
        kernels: Kernels,
        peak_bytes: int,
        references: Callable[[Graph], tuple[Reference, ...]],
        weights: WeightsMark = WeightsMark.FILE,
    ) -> ImportedModel:
        """The model in our form, of one block.

        Args:
            name: what the model is called.
            why: the reason that it is not taken apart.
            kernels: plain ones are ONNX Runtime's with nothing fused.
            peak_bytes: the most bytes of live activations, as far as known.
            references: gives the original's answers to inputs of the graph.
            weights: where its weights are from.

        Raises:
            ModelError: it does not answer.
            GraphError: it is beyond the bounds of `shared.graph`.
        """
        taken = {*self.outside, *(v.name for v in (*self.file.inputs, *self.outputs))}
        model = _MODEL
        while model in taken:
            model += "#"
        arrays = {model: np.frombuffer(self.data, np.uint8), **self.outside}
        args = (tuple(value.name for value in self.file.inputs), tuple(arrays))
        graph = Graph(
            name,
            self.file.inputs,
            tuple(Node(value.name, WHOLE, args, {}, value.spec) for value in self.outputs),
            self.file.outputs,
            {
                key: Weight(TensorSpec(str(array.dtype), array.shape), key=key)
                for key, array in arrays.items()
            },
            kernels,
        )
        validate(graph)
        weight_bytes = sum(array.nbytes for array in arrays.values())
        ends = sum(value.spec.nbytes for value in (*self.file.inputs, *self.outputs))
        block = Block(0, name, (0, len(graph.nodes)), 0, weight_bytes, max(peak_bytes, ends))

        def save(names: list[str]) -> bytes:
            return safetensors.numpy.save({n: np.ascontiguousarray(arrays[n]) for n in names})

        packed = pack_weights(graph, [block], save)
        manifest = Manifest(
            model=name,
            level=Level.O0 if kernels is Kernels.PLAIN else Level.O1,
            weights=weights,
            graph=packed.graph,
            blocks=packed.blocks,
            cuts=(),
            input_bytes=sum(value.spec.nbytes for value in graph.inputs),
            output_bytes=sum(value.spec.nbytes for value in graph.output_values()),
            whole=why,
        )
        return ImportedModel(manifest, packed.blobs, references(manifest.graph), FRAMEWORK)

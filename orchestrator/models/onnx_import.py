"""An ONNX file to our graph: constants computed, each node through its rule, or refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from orchestrator.models.examples import whole_numbers
from orchestrator.models.importer import ImportedModel, assemble
from orchestrator.models.onnx_file import OnnxFile, read_onnx
from orchestrator.models.onnx_node import OnnxNode, Translation
from orchestrator.models.onnx_rules import RULES
from orchestrator.models.onnx_values import OnnxValues, evaluate
from orchestrator.models.reference import Reference, answered
from orchestrator.models.source import ModelSource
from orchestrator.models.trace import Traced
from shared.errors import ModelError
from shared.graph import DTYPE_BYTES, Graph, Kernels
from shared.manifest import WeightsMark
from shared.tensor import Array


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A file that was read, checked and run once."""

    source: ModelSource
    file: OnnxFile
    values: OnnxValues

    @classmethod
    def open(cls, source: ModelSource) -> OnnxModel:
        """Read the file that `source` names.

        Raises:
            ModelError: see `read_onnx` and `evaluate`.
        """
        file = read_onnx(Path(source.reference), source.inputs)
        return cls(source, file, evaluate(file, _example(file)))

    def imported(self, level: str, kernels: Kernels) -> ImportedModel:
        """The model in our form; its references are ONNX Runtime's answers with the file as it stands.

        Raises:
            ModelError: an operator that is not supported; says which node and what is.
        """
        return assemble(
            translate(self.file, self.values),
            self.source.name,
            level=level,
            weights=WeightsMark.FILE,
            kernels=kernels,
            references=self._references,
            framework="onnxruntime",
        )

    def _references(self, graph: Graph) -> tuple[Reference, ...]:
        outputs = list(self.file.outputs)

        def answer(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            given = {name: tensor.numpy() for name, tensor in inputs.items()}
            return [torch.from_numpy(array) for array in self.values.session.run(outputs, given)]

        return answered(graph, answer)


def _example(file: OnnxFile) -> dict[str, Array]:
    """Inputs to find shapes with; indices are 0 or 1, which any table has."""
    random = np.random.default_rng(0)
    return {
        value.name: random.standard_normal(value.spec.shape).astype(value.spec.dtype)
        if value.spec.dtype.startswith("float")
        else whole_numbers(value.spec, None, random)
        for value in file.inputs
    }


def translate(file: OnnxFile, values: OnnxValues) -> Traced:
    """The file's nodes as ours, under the names that inputs and outputs have in the file.

    Raises:
        ModelError: as `OnnxModel.imported`.
    """
    inputs = {value.name for value in file.inputs}
    translation = Translation(
        opset=file.opset,
        specs=dict(values.specs),
        constants=values.constants,
        outputs=frozenset(file.outputs),
        taken={*inputs, *values.constants},
    )
    for proto in values.nodes:
        node = OnnxNode(translation, proto)
        rule = RULES.get(proto.op_type) if proto.domain in ("", "ai.onnx") else None
        if rule is None:
            operator = f"{proto.domain}::{proto.op_type}" if proto.domain else proto.op_type
            raise ModelError(
                f"ONNX operator {operator}, node {node.label!r} of {file.path}, is not supported",
                expected=f"only operators of {', '.join(sorted(RULES))}",
                got=operator,
            )
        rule(node)
    outputs = tuple(translation.values.get(name, name) for name in file.outputs)
    weights = {name: _tensor(file, name, array) for name, array in translation.weights.items()}
    return Traced(file.inputs, translation.nodes, outputs, weights)


def _tensor(file: OnnxFile, name: str, array: Array) -> torch.Tensor:
    if str(array.dtype) not in DTYPE_BYTES or not array.size:
        raise ModelError(
            f"{file.path}: weight {name!r}",
            expected=f"a tensor that is not empty, of {' | '.join(DTYPE_BYTES)}",
            got=f"{array.dtype}{list(array.shape)}",
        )
    # A copy: torch wants writable memory, and a file that is mapped may change.
    return torch.from_numpy(np.array(array, order="C"))

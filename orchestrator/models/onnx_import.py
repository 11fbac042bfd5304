"""An ONNX file to our graph: constants computed, each node through its rule.

A file with an operator that has no rule, or with no place in our graph otherwise, is one block as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.models.examples import whole_numbers
from orchestrator.models.importer import ImportedModel, assemble
from orchestrator.models.onnx_file import OnnxFile, read_onnx
from orchestrator.models.onnx_node import OnnxNode, Translation
from orchestrator.models.onnx_rules import RULES, Rule
from orchestrator.models.onnx_values import OnnxValues, Session, evaluate, peak_bytes, working_nodes
from orchestrator.models.onnx_whole import FRAMEWORK, WholeOnnx
from orchestrator.models.reference import Answer, Reference, answered
from orchestrator.models.source import ModelSource
from orchestrator.models.trace import Traced
from shared.errors import ModelError
from shared.graph import DTYPE_BYTES, Graph, Kernels
from shared.manifest import WeightsMark
from shared.tensor import Array

_STRAYS = "taken apart, it does not give its own answers exactly"


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A file that was read and checked, and inputs to find shapes with.

    A model of another kind may come by way of ONNX: `original` answers in the place of ONNX Runtime with the
    file as it stands, and `why` is the reason.
    """

    source: ModelSource
    file: OnnxFile
    example: dict[str, Array]
    original: Answer | None = None
    why: str = ""

    @classmethod
    def open(cls, source: ModelSource) -> OnnxModel:
        """Read the file that `source` names.

        Raises:
            ModelError: see `read_onnx`.
        """
        return cls.of(source, read_onnx(Path(source.reference), source.inputs))

    @classmethod
    def of(
        cls, source: ModelSource, file: OnnxFile, original: Answer | None = None, why: str = ""
    ) -> OnnxModel:
        """A file that was read, perhaps as a way to something else."""
        return cls(source, file, _example(file), original, why)

    def imported(self, level: str, kernels: Kernels) -> ImportedModel:
        """The model in our form; its references are ONNX Runtime's answers with the file as it stands.

        In one piece where it cannot be taken apart. Plain kernels are ONNX Runtime's own with nothing fused,
        which is one piece as well.

        Raises:
            ModelError: ONNX Runtime cannot run it, or it has outputs that do not travel.
        """
        values, why = None, _STRAYS
        if kernels is Kernels.FAST:
            try:
                values = evaluate(self.file, self.example)
                traced = translate(self.file, values)
            except ModelError as error:
                why = _why_whole(self.file, error)
            else:
                session = values.session
                return assemble(
                    traced,
                    self.source.name,
                    level=level,
                    weights=WeightsMark.FILE,
                    kernels=kernels,
                    references=lambda graph: self._references(graph, session),
                    framework=FRAMEWORK,
                )
        whole = WholeOnnx.open(self.file, self.example)
        return whole.imported(
            self.source.name,
            self.why or why,
            kernels=kernels,
            peak_bytes=0 if values is None else peak_bytes(values),
            references=lambda graph: self._references(graph, whole.session),
        )

    def _references(self, graph: Graph, session: Session) -> tuple[Reference, ...]:
        outputs = list(self.file.outputs)

        def by_session(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            given = {name: tensor.numpy() for name, tensor in inputs.items()}
            return [torch.from_numpy(array) for array in session.run(outputs, given)]

        def answer(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            tensors = (self.original or by_session)(inputs)
            for value, tensor in zip(graph.output_values(), tensors, strict=True):
                if tensor.shape != value.spec.shape:
                    raise ModelError(
                        f"the shape of output {value.name!r} of {self.file.path} depends on what is put in,"
                        " and only fixed ones can be served",
                        expected=str(value.spec),
                        got=str(list(tensor.shape)),
                    )
            return tensors

        return answered(graph, answer)


def _why_whole(file: OnnxFile, error: ModelError) -> str:
    """Why a file is not taken apart: the operators, all of them, or what else there was."""
    unknown = sorted({_operator(node) for node in working_nodes(file) if _rule(node) is None})
    if not unknown:
        return error.message
    verb = "is" if len(unknown) == 1 else "are"
    return f"{', '.join(unknown)} {verb} not among the ONNX operators that can be cut around"


def _rule(proto: Any) -> Rule | None:
    return RULES.get(proto.op_type) if proto.domain in ("", "ai.onnx") else None


def _operator(proto: Any) -> str:
    return f"{proto.domain}::{proto.op_type}" if proto.domain else str(proto.op_type)


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
        ModelError: an operator that is not supported; says which node and what is.
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
        rule = _rule(proto)
        if rule is None:
            operator = _operator(proto)
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

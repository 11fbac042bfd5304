"""The readers of model files. They import torch and ONNX, which takes seconds, and write a file per input."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

from edge_agent.runtimes.onnx_weights import StageWeights
from edge_agent.runtimes.onnx_whole import whole_model
from orchestrator.models.exported_archive import read_archive
from orchestrator.models.onnx_file import external_files, read_onnx
from orchestrator.models.weights import read_state
from shared.errors import ModelError, StageError
from shared.graph import Node, StageGraph, TensorSpec, Value, Weight
from shared.operators import WHOLE
from tests.fuzz.target import Target

_FILE = Path(tempfile.gettempdir()) / f"amp4ec-fuzz-model-{id(object()):x}"


def _file(read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def decode(data: bytes) -> object:
        _FILE.write_bytes(data)
        return read(_FILE)

    return decode


def _states(_: int) -> list[bytes]:
    state = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2, dtype=torch.int64)}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return [safetensors.torch.save(state), buffer.getvalue()]


def _onnx(path: Path) -> None:
    external_files(path)
    read_onnx(path, ())


def _onnxes(_: int) -> list[bytes]:
    made: list[bytes] = []
    for location in (None, "weights.bin", "../weights.bin", "/etc/passwd"):
        weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [3, 2], [1.0] * 6)
        if location is not None:
            weight.ClearField("float_data")
            weight.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", "0"), ("length", "24")):
                entry = weight.external_data.add()
                entry.key, entry.value = key, value
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [weight],
        )
        made.append(onnx.helper.make_model(graph).SerializeToString())
    return made


def _whole(data: bytes) -> None:
    """What an agent does with the model of a stage that is served whole, before ONNX Runtime sees it."""
    if not data:
        return  # a stage with a weight of no bytes is refused before
    blob = safetensors.numpy.save({"model": np.frombuffer(data, np.uint8)})
    spec = TensorSpec("float32", (1, 3))
    stage = StageGraph(
        "fuzzed",
        (Value("x", spec),),
        (Node("y", WHOLE, (("x",), ("model",)), {}, spec),),
        ("y",),
        {"model": Weight(TensorSpec("uint8", (len(data),)), "0" * 64, "model")},
    )
    whole_model(stage, StageWeights(stage, {"0" * 64: blob}))


def _archives(_: int) -> list[bytes]:
    buffer = io.BytesIO()
    program = torch.export.export(nn.Linear(3, 2).eval(), (torch.zeros(1, 3),))
    torch.export.save(program, buffer)
    return [buffer.getvalue()]


_REFUSED = (ModelError,)
TARGETS = (
    Target(
        name="weights-file", decode=_file(read_state), allowed=_REFUSED, seeds=_states, share=0.05,
        covers=("orchestrator.models.weights.read_state",),
    ),
    Target(
        name="onnx-file", decode=_file(_onnx), allowed=_REFUSED, seeds=_onnxes, share=0.05,
        covers=("orchestrator.models.onnx_file.read_onnx",),
    ),
    Target(
        name="onnx-stage-file", decode=_whole, allowed=(StageError,), seeds=_onnxes, share=0.2,
        covers=("edge_agent.runtimes.onnx_proto.parse",),
    ),
    Target(
        name="exported-archive", decode=_file(read_archive), allowed=_REFUSED, seeds=_archives, share=0.05,
        covers=("orchestrator.models.exported_archive.read_archive",),
    ),
)  # fmt: skip

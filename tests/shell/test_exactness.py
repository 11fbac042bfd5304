"""What is served gives the original's answers: measured at import, plain kernels where fast ones stray."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy import exactness
from deploy.exactness import MARGIN, Comparison, compare, exact_model, relative_error
from edge_agent.runtimes import open_runtime
from orchestrator.models.importer import ImportedModel, import_module
from orchestrator.models.slice import slice_stage
from shared.codec import decode_json, encode_json
from shared.errors import ModelError, StageError
from shared.graph import Graph, Kernels
from shared.manifest import Level, Manifest


def conv_norm(channels_in: int, channels: int, offset: float) -> nn.Sequential:
    """A convolution whose output lies `offset` from zero, and a BatchNorm that takes the offset away."""
    conv, norm = nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels)
    nn.init.constant_(conv.bias, offset)
    nn.init.constant_(norm.running_mean, offset)
    return nn.Sequential(conv, norm, nn.ReLU(inplace=True))


class Net(nn.Module):
    """With a large offset the original rounds to its grid; folded into the weights, the offset vanishes."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = conv_norm(3, 8, offset), conv_norm(8, 8, offset)
        self.third, self.head = conv_norm(8, 8, offset), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        second = self.second(first)
        return self.head(torch.cat([self.third(second + first)], 1).mean((2, 3)))


def importer_of(offset: float) -> Any:
    module = Net(offset).eval()
    return lambda kernels: import_module(module, torch.zeros(1, 3, 20, 20), "net", kernels=kernels)


def test_a_calm_model_is_served_with_fast_kernels() -> None:
    lines: list[str] = []
    model = exact_model(importer_of(0.1), ["torch"], lines.append).imported
    assert lines == []
    assert model.manifest.graph.kernels is Kernels.FAST
    assert model.manifest.level is Level.O1
    assert model.manifest.max_relative_error is not None
    assert 0 <= model.manifest.max_relative_error <= MARGIN


def test_a_model_that_amplifies_rounding_is_served_with_plain_kernels() -> None:
    lines: list[str] = []
    model = exact_model(importer_of(1000.0), ["torch"], lines.append).imported
    manifest = model.manifest
    assert manifest.graph.kernels is Kernels.PLAIN
    assert manifest.level is Level.O0
    assert manifest.max_relative_error == 0.0
    assert "batch_norm" in {node.op for node in manifest.graph.nodes}
    (line,) = lines
    assert line.startswith("net: fast kernels differ from the original by ")
    assert line.endswith("% slower")
    assert decode_json(encode_json(manifest), Manifest) == manifest


def run(model: ImportedModel, bounds: tuple[int, ...], inputs: dict[str, Any]) -> dict[str, Any]:
    values = inputs
    for start, stop in pairwise(bounds):
        stage = slice_stage(model.manifest, start, stop)
        # As it travels.
        stage = decode_json(encode_json(stage), Graph)
        assert stage.kernels is model.manifest.graph.kernels
        values = open_runtime("torch").load(stage, model.blobs).run(values)
    return values


def test_plain_kernels_give_the_original_s_bits_for_every_cut_and_layout() -> None:
    model = importer_of(1000.0)(Kernels.PLAIN)
    count = len(model.manifest.blocks)
    for reference in model.references:
        channels_last = {
            name: np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
            for name, array in reference.inputs.items()
        }
        for bounds in ((0, count), *((0, cut, count) for cut in range(1, count))):
            for inputs in (reference.inputs, channels_last):
                outputs = run(model, bounds, inputs)
                for name, expected in reference.outputs.items():
                    np.testing.assert_array_equal(outputs[name], expected)


def test_the_references_are_the_module_s_own_answers_and_always_the_same() -> None:
    first, again = importer_of(0.1)(Kernels.FAST), importer_of(0.1)(Kernels.PLAIN)
    assert len(first.references) == len(again.references) == 3
    for a, b in zip(first.references, again.references, strict=True):
        for name, array in a.outputs.items():
            np.testing.assert_array_equal(array, b.outputs[name])
    assert len({next(iter(r.inputs.values())).tobytes() for r in first.references}) == 3


def test_a_model_that_nothing_computes_as_the_original_is_refused() -> None:
    def lying(kernels: Kernels) -> ImportedModel:
        model = importer_of(0.1)(kernels)
        first, *others = model.references
        wrong = replace(first, outputs={name: out * 1.1 for name, out in first.outputs.items()})
        return replace(model, references=(wrong, *others))

    with pytest.raises(
        ModelError, match=r"not even with plain kernels.*got 9\.1e-02, and 9\.1e-02"
    ):
        exact_model(lying, ["torch"], print)


def test_another_runtime_that_strays_is_left_out_and_condemns_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {"torch": 0.0, "other": 2 * MARGIN, "third": MARGIN / 2}
    monkeypatch.setattr(
        exactness, "compare", lambda _model, name: Comparison(found[name], seconds=1.0)
    )
    lines: list[str] = []
    exact = exact_model(importer_of(0.1), found, lines.append)
    assert exact.runtimes == ("torch", "third")
    assert exact.imported.manifest.graph.kernels is Kernels.FAST
    assert exact.imported.manifest.max_relative_error == MARGIN / 2
    (line,) = lines
    assert line.startswith("net: not served with other, which differs from the original by 1.0e-05")
    with pytest.raises(ModelError, match=r"answers with other; expected .* got 1\.0e-05"):
        exact_model(importer_of(0.1), ["other"], print)


def test_another_runtime_that_cannot_run_a_model_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compare_torch(_model: ImportedModel, name: str) -> Comparison:
        if name == "torch":
            return Comparison(0.0, seconds=1.0)
        raise StageError("no such operator")

    monkeypatch.setattr(exactness, "compare", compare_torch)
    lines: list[str] = []
    assert exact_model(importer_of(0.1), ["torch", "x"], lines.append).runtimes == ("torch",)
    assert lines == ["net: not served with x: no such operator"]
    with pytest.raises(StageError):
        exact_model(importer_of(0.1), ["x"], print)


def test_with_plain_kernels_the_original_s_runtime_remains() -> None:
    lines: list[str] = []
    exact = exact_model(importer_of(1000.0), ["torch", "onnxruntime"], lines.append)
    assert exact.runtimes == ("torch",)
    assert exact.imported.manifest.graph.kernels is Kernels.PLAIN
    assert lines[-1] == "net: not served with onnxruntime, which has no plain kernels"


def test_blocks_are_compared_as_well_as_the_whole() -> None:
    model = importer_of(0.1)(Kernels.FAST)
    for runtime in ("torch", "onnxruntime"):
        assert compare(model, runtime).error <= MARGIN
    first, *others = model.references
    # The blocks start from the first reference alone.
    shifted = {name: array + 1 for name, array in first.inputs.items()}
    wrong = replace(model, references=(replace(first, inputs=shifted), *others))
    assert compare(wrong, "torch").error > 1e-2


@pytest.mark.parametrize(
    ("result", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([0.0], [0.0], 0.0),
        ([1.0], [0.0], float("inf")),
        ([float("nan")], [float("nan")], 0.0),
        ([float("nan")], [1.0], float("inf")),
        ([1.0], [float("nan")], float("inf")),
        ([float("inf")], [float("inf")], 0.0),
        ([1.0], [float("inf")], float("inf")),
    ],
)
def test_relative_error(result: list[float], expected: list[float], error: float) -> None:
    assert relative_error(np.array(result, np.float32), np.array(expected, np.float32)) == error

"""Level O2: as good as it says, the same bits wherever it is cut, and small."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deploy.levels import check_agreement
from deploy.profile_layers import kernel_text, layers_of
from deploy.quantising import agreement, quantise_model
from deploy.samples import Inputs, Samples
from edge_agent.runtimes import open_runtime
from orchestrator.models.importer import ImportedModel, import_module
from orchestrator.models.quantise import WEIGHT_MAX, QuantisedModel, quantise, values_to_watch
from orchestrator.models.ranges import Method, Observer
from orchestrator.models.slice import slice_stage
from shared.codec import decode_json, encode_json
from shared.errors import ModelError
from shared.graph import Graph
from shared.manifest import Level, Manifest, validate_manifest
from shared.tensor import Array
from tests.fakes import nets, shapes

COUNT = 60


@cache
def samples() -> Samples:
    random = np.random.default_rng(5)
    found = [{"image": shapes.tensor(shapes.draw(at % 6, random))} for at in range(COUNT)]
    return Samples(tuple(found[: COUNT // 2]), tuple(found[COUNT // 2 :]))


@cache
def original() -> ImportedModel:
    return import_module(shapes.trained(), torch.zeros(1, 3, shapes.EDGE, shapes.EDGE), "shapes")


@cache
def quantised() -> QuantisedModel:
    model = original()
    return quantise_model(model.manifest, model.blobs, samples(), lambda _: None)


def run(model: QuantisedModel, bounds: list[int], inputs: Inputs) -> dict[str, Array]:
    values: dict[str, Array] = dict(inputs)
    for start, stop in pairwise(bounds):
        graph = slice_stage(model.manifest, start, stop)
        # As it travels.
        graph = decode_json(encode_json(graph), Graph)
        values = open_runtime("onnxruntime").load(graph, model.blobs).run(values)
    return values


def test_it_agrees_and_says_how_well() -> None:
    found = quantised().manifest.quantisation
    assert found is not None
    assert (found.samples, found.held_out) == (COUNT, COUNT // 2)
    assert found.agreement_ratio >= 0.95
    assert 0 < found.max_relative_error < 0.1
    assert quantised().manifest.level is Level.O2
    # Measured here again, without the code that measured it.
    net, same = shapes.trained(), 0
    for inputs in samples().held_out:
        (logits,) = run(quantised(), [0, len(quantised().manifest.blocks)], inputs).values()
        with torch.inference_mode():
            same += int(net(torch.from_numpy(inputs["image"])).argmax()) == int(logits.argmax())
    assert same / (COUNT // 2) == pytest.approx(found.agreement_ratio, abs=0.04)


def test_every_cut_gives_the_same_bits() -> None:
    count = len(quantised().manifest.blocks)
    for inputs in samples().held_out[:2]:
        whole = run(quantised(), [0, count], inputs)
        for cut in range(1, count):
            parts = run(quantised(), [0, cut, count], inputs)
            np.testing.assert_array_equal(parts["linear_1"], whole["linear_1"])
        pieces = run(quantised(), list(range(count + 1)), inputs)
        np.testing.assert_array_equal(pieces["linear_1"], whole["linear_1"])


def test_all_of_it_is_on_eight_bits_and_a_quarter_of_the_size() -> None:
    manifest, before = quantised().manifest, original().manifest
    validate_manifest(manifest)
    ops = Counter(node.op for node in manifest.graph.nodes)
    assert not {"conv2d", "linear", "relu", "hardtanh", "silu", "batch_norm", "add"} & ops.keys()
    assert ops["quantize"] == 1
    assert len(manifest.blocks) == len(before.blocks)
    for cut, old in zip(manifest.cuts, before.cuts, strict=True):
        assert cut.bytes <= old.bytes / 4
    weights = [sum(b.weight_bytes for b in each.blocks) for each in (manifest, before)]
    assert weights[0] < 0.4 * weights[1]  # biases and scales of so small a net count
    assert {leaf.name for leaf in manifest.leaves} == {leaf.name for leaf in before.leaves}


def test_layers_are_shown_as_what_they_are() -> None:
    words = {layer.name: kernel_text(layer) for layer in layers_of(quantised().manifest)}
    assert words["deep.0"] == "dwconv 3x3 16"
    assert words["stem.0"] == "conv 3x3/2 3>16"
    assert words["head"] == "linear 32>6"


def test_no_two_weights_can_saturate_sixteen_bits() -> None:
    manifest = quantised().manifest
    for node in manifest.graph.nodes:
        if node.op not in ("q_conv2d", "q_linear"):
            continue
        weight = manifest.graph.weights[str(node.args[1])]
        array = safetensors.numpy.load(quantised().blobs[weight.blob])[weight.key]
        rows = np.sort(array.reshape(len(array), -1).astype(int), axis=1)
        if rows.shape[1] > 1 and not (node.op == "q_conv2d" and weight.spec.shape[1] == 1):
            assert (255 * np.maximum(rows[:, -2:], 0).sum(axis=1)).max() < 2**15
            assert (255 * np.minimum(rows[:, :2], 0).sum(axis=1)).min() >= -(2**15)
        assert np.abs(rows).max() <= WEIGHT_MAX


class Odd(nn.Module):
    """Values that are outputs too, a clamp away from 0, a weight that two layers share, a dead channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        with torch.no_grad():
            self.first.weight[1] = 0
            self.first.bias[1] = 3.5
        self.shared = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a = self.first(x)
        b = torch.clamp(nn.functional.conv2d(a, self.shared), 0.5, 2.0)
        c = nn.functional.conv2d(b, self.shared) + a
        return a, b, torch.relu(c), c.mean((2, 3))


def of_random(net: nn.Module, example: torch.Tensor, count: int = 8) -> tuple[Manifest, Samples]:
    random = np.random.default_rng(2)
    shape = tuple(example.shape)
    name = import_module(net, example, "odd").manifest.graph.inputs[0].name
    found = [{name: random.standard_normal(shape).astype(np.float32)} for _ in range(count)]
    return import_module(net, example, "odd").manifest, Samples(tuple(found), tuple(found[:3]))


def test_outputs_in_the_middle_and_shared_weights() -> None:
    torch.manual_seed(0)
    net, example = Odd().eval(), torch.zeros(1, 3, 8, 8)
    model = import_module(net, example, "odd")
    _, given_samples = of_random(net, example)
    made = quantise_model(model.manifest, model.blobs, given_samples, lambda _: None)
    assert made.manifest.graph.outputs == model.manifest.graph.outputs
    count = len(made.manifest.blocks)
    for inputs in given_samples.held_out:
        whole = run(made, [0, count], inputs)
        with torch.inference_mode():
            expected = net(torch.from_numpy(inputs["x"]))
        for (name, array), wanted in zip(whole.items(), expected, strict=True):
            assert np.abs(array - wanted.numpy()).max() < 0.05 * np.abs(wanted.numpy()).max(), name
            assert array.dtype == np.float32
        pieces = run(made, list(range(count + 1)), inputs)
        assert all(np.array_equal(pieces[name], array) for name, array in whole.items())


def test_token_ids_and_a_mask() -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(3)
    ids, mask = torch.ones(1, 12, dtype=torch.int64), torch.ones(1, 12, dtype=torch.int64)
    model = import_module(nets.encoder(), {"ids": ids, "mask": mask}, "encoder")
    found = [
        {
            "ids": random.integers(0, 50, (1, 12)),
            "mask": (np.arange(12)[None] < random.integers(1, 13)).astype(np.int64),
        }
        for _ in range(20)
    ]
    given_samples = Samples(tuple(found[:14]), tuple(found[14:]))
    made = quantise_model(model.manifest, model.blobs, given_samples, lambda _: None)
    assert made.manifest.quantisation is not None
    assert made.manifest.quantisation.agreement_ratio > 0.8
    count = len(made.manifest.blocks)
    whole = run(made, [0, count], found[0])
    pieces = run(made, list(range(count + 1)), found[0])
    assert all(np.array_equal(pieces[name], array) for name, array in whole.items())


def test_too_little_agreement_is_refused_with_the_number() -> None:
    check_agreement(original().manifest, 1.0)  # exact: nothing to agree about
    found = quantised().manifest.quantisation
    assert found is not None
    check_agreement(quantised().manifest, found.agreement_ratio)
    with pytest.raises(ModelError, match=r"--min-agreement") as caught:
        check_agreement(quantised().manifest, 1.01)
    assert caught.value.got == f"{found.agreement_ratio:.4g}"


def test_samples_with_nan_are_named() -> None:
    model = original()
    bad = {"image": np.full((1, 3, shapes.EDGE, shapes.EDGE), np.nan, np.float32)}
    with pytest.raises(ModelError, match="finite numbers"):
        quantise_model(model.manifest, model.blobs, Samples((bad,), (bad,)), lambda _: None)


def test_few_samples_are_said_to_be_few() -> None:
    said: list[str] = []
    few = Samples(samples().watched[:4], samples().held_out[:2])
    quantise_model(original().manifest, original().blobs, few, said.append)
    assert said[0].startswith("only 6 samples")


def test_agreement_counts_rows_of_every_output() -> None:
    expected = [{"a": np.array([[0.1, 0.9], [0.8, 0.2]]), "b": np.array([3.0, 4.0, 5.0])}]
    result = [{"a": np.array([[0.2, 0.3], [0.4, 0.9]]), "b": np.array([0.0, 0.0, 1.0])}]
    assert agreement(result, expected) == pytest.approx(2 / 3)
    assert agreement(expected, expected) == 1.0


def test_what_is_watched_is_what_is_asked_for() -> None:
    model = original()
    names = values_to_watch(model.manifest, model.blobs)
    assert len(set(names)) == len(names)
    made = quantise(model.manifest, model.blobs, dict.fromkeys(names, (-1.0, 1.0)))
    validate_manifest(made.manifest)
    with pytest.raises(KeyError):
        quantise(model.manifest, model.blobs, dict.fromkeys(names[1:], (-1.0, 1.0)))


# --- ranges


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-20),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from([*Method]),
)
def test_a_range_holds_zero_and_no_more_than_was_seen(values: list[float], method: Method) -> None:
    array = np.array(values, np.float32)
    observer = Observer(["x"])
    for look in (observer.ends, observer.fill):
        look({"x": array[: len(array) // 2 + 1]})
        look({"x": array[len(array) // 2 :]})
    low, high = observer.ranges(method)["x"]
    assert low <= 0 <= high
    assert low < high
    if array.any():
        assert low >= min(float(array.min()), 0) * (1 + 1e-6)
        assert high <= max(float(array.max()), 0) * (1 + 1e-6)


def test_an_outlier_widens_one_range_only() -> None:
    array = np.random.default_rng(0).normal(0, 1, 200_000).astype(np.float32)
    array[0] = 500
    observer = Observer(["x"])
    observer.ends({"x": array})
    observer.fill({"x": array})
    assert observer.ranges(Method.MIN_MAX)["x"][1] == 500
    assert observer.ranges(Method.PERCENTILE)["x"][1] < 10


def test_least_error_is_the_least_of_its_candidates() -> None:
    """Against quantising every value with every candidate range."""
    array = np.random.default_rng(4).laplace(0, 1, 20_000).astype(np.float32)
    observer = Observer(["x"])
    observer.ends({"x": array})
    observer.fill({"x": array})
    low, high = observer.ranges(Method.LEAST_ERROR)["x"]

    def error(part: float) -> float:
        lowest, step = array.min() * part, (array.max() - array.min()) * part / 255
        steps = np.clip(np.rint((array - lowest) / step), 0, 255)
        return float(np.square(steps * step + lowest - array).mean())

    best = min(np.linspace(1, 0.2, 41), key=error)
    assert high / array.max() == pytest.approx(best, abs=0.05)
    assert low / array.min() == pytest.approx(high / array.max())

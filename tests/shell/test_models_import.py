"""Importing torch modules: exactness of every step, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from edge_agent.runtimes import open_runtime
from orchestrator.models.importer import (
    ImportedModel,
    import_module,
    import_torchvision,
    list_models,
)
from orchestrator.models.slice import slice_stage
from orchestrator.models.zoo import build
from shared.codec import decode_json, encode_json
from shared.errors import ModelError
from shared.manifest import Manifest, WeightsMark, validate_manifest

EXAMPLE = torch.zeros(1, 3, 16, 16)


def run_whole(model: ImportedModel, *inputs: torch.Tensor) -> list[np.ndarray[Any, Any]]:
    graph = slice_stage(model.manifest, 0, len(model.manifest.blocks))
    stage = open_runtime("torch").load(graph, model.blobs)
    names = [value.name for value in graph.inputs]
    results = stage.run(dict(zip(names, (x.numpy() for x in inputs), strict=True)))
    return [results[name] for name in graph.outputs]


def assert_same(module: nn.Module, level: str = "O1", example: torch.Tensor = EXAMPLE) -> Manifest:
    """The imported module gives what the module gives, relative to its largest output."""
    model = import_module(module, example, "m", level=level)
    x = torch.randn(example.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = module(x.clone()).numpy()
    (result,) = run_whole(model, x)
    assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()
    return model.manifest


def ops(manifest: Manifest) -> list[str]:
    return [node.op for node in manifest.graph.nodes]


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean):
            nn.init.normal_(tensor)
        nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer


@pytest.fixture(scope="module")
def mobilenet() -> ImportedModel:
    return import_torchvision("mobilenet_v2", "none")


def test_mobilenet_v2(mobilenet: ImportedModel) -> None:
    manifest = mobilenet.manifest
    validate_manifest(manifest)
    assert decode_json(encode_json(manifest), Manifest) == manifest
    assert len(manifest.leaves) == 141
    assert len(manifest.blocks) == 53
    assert sum(block.macs for block in manifest.blocks) == 300_774_272
    assert "batch_norm" not in ops(manifest)
    assert manifest.weights is WeightsMark.NONE
    assert manifest.preprocess is not None
    assert manifest.preprocess.crop == 224
    assert manifest.labels is not None
    assert len(manifest.labels) == 1000
    assert manifest.input_bytes == 3 * 224 * 224 * 4
    assert manifest.output_bytes == 4000
    assert [leaf.block for leaf in manifest.leaves] == sorted(
        leaf.block for leaf in manifest.leaves
    )
    assert manifest.blocks[10].name.startswith("features.")


def test_the_paper_s_published_cuts_of_mobilenet_v2(mobilenet: ImportedModel) -> None:
    costs = [leaf.cost for leaf in mobilenet.manifest.leaves]

    def counts(partitions: int) -> list[int]:
        found: list[int] = []
        running, size = 0.0, 0
        for cost in costs:
            running, size = running + cost, size + 1
            if running >= sum(costs) / partitions and len(found) < partitions - 1:
                found.append(size)
                running, size = 0.0, 0
        return [*found, size]

    assert counts(2) == [116, 25]
    assert counts(3) == [108, 16, 17]
    assert counts(4) == [100, 16, 16, 9]


class Rows(nn.Module):
    """What is an image of height 1 to us, and a comparison that takes two of our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv1d(3, 8, 5, 2, 2, groups=1)
        self.deep = nn.Conv1d(8, 8, 3, dilation=2, groups=8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.deep(torch.relu(self.wide(x)))
        return torch.where(torch.relu(x) != 0, x, 1 - x)


@pytest.mark.parametrize("level", ["O0", "O1"])
def test_rows_and_inequalities(level: str) -> None:
    manifest = assert_same(Rows(), level, torch.zeros(1, 3, 40))
    assert ops(manifest).count("conv2d") == 2
    assert ops(manifest)[-4:] == ["equal", "logical_not", "sub", "where"]


def test_blobs_are_named_by_their_bytes_and_complete(mobilenet: ImportedModel) -> None:
    for digest, data in mobilenet.blobs.items():
        assert hashlib.sha256(data).hexdigest() == digest
    for block in mobilenet.manifest.blocks:
        graph = slice_stage(mobilenet.manifest, block.index, block.index + 1)
        assert graph.blobs() == ((block.blob,) if block.blob else ())
        assert block.blob is not None
        held = safetensors.torch.load(mobilenet.blobs[block.blob])
        assert held.keys() == graph.weights.keys()
        assert sum(tensor.nbytes for tensor in held.values()) == block.weight_bytes


def test_the_same_seed_gives_the_same_bytes_and_another_other_ones() -> None:
    first = import_torchvision("shufflenet_v2_x0_5", "none", seed=1)
    torch.manual_seed(99)
    assert import_torchvision("shufflenet_v2_x0_5", "none", seed=1).blobs == first.blobs
    assert import_torchvision("shufflenet_v2_x0_5", "none", seed=2).blobs != first.blobs


def test_random_weights_give_outputs_worth_comparing() -> None:
    for name in ("mobilenet_v2", "vit_b_32"):
        built = build(name, "none", 0)
        with torch.inference_mode():
            assert built.module(torch.randn(1, 3, 224, 224)).abs().max() > 0.01


def test_importing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    import_torchvision("squeezenet1_1", "none")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("level", ["O0", "O1"])
def test_batch_norm_is_folded_only_where_it_may_be(level: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.na = nn.Conv2d(3, 8, 3, bias=False), norm(8)
            self.b, self.nb = nn.Conv2d(8, 8, 3), norm(8)
            self.nc = norm(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.na(self.a(x)))
            y = self.b(x)
            # `y` is read twice: folding nb into b would change the other reader.
            return self.nc(self.nb(y) + y)

    manifest = assert_same(Net().eval(), level)
    assert ops(manifest).count("batch_norm") == {"O0": 3, "O1": 2}[level]


def test_batch_norm_after_a_linear_layer_is_folded() -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(768, 5), nn.BatchNorm1d(5))
    assert ops(assert_same(layers.eval())) == ["reshape", "linear"]


@pytest.mark.parametrize("level", ["O0", "O1"])
def test_a_pool_to_one_pixel_is_an_average_of_the_whole_map(level: str) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(3))
    simple = {"O0": "adaptive_avg_pool2d", "O1": "avg_pool2d"}[level]
    assert ops(assert_same(layers.eval(), level)) == ["conv2d", simple, "adaptive_avg_pool2d"]


def test_in_place_operators_become_functional() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            same = nn.functional.dropout(y, training=False)
            y += 1
            torch.relu_(y)
            return y * same  # `same` is `y`: it sees both changes

    assert_same(Net().eval())


def test_a_copy_does_not_see_what_is_done_to_the_original() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            kept = y.clone()
            y.mul_(3)
            return y + kept

    assert_same(Net().eval())


def test_an_in_place_operator_seen_through_a_view_is_refused() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            view = y.permute(0, 2, 3, 1)
            y.relu_()
            return view + 1

    with pytest.raises(ModelError, match="seen through the view"):
        import_module(Net(), EXAMPLE, "m")


def test_what_does_not_depend_on_the_input_becomes_a_weight() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(16, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = x.new_zeros((16, 16))
            mask[:8] = 1
            mask[4:12].mul_(3)
            return x * mask.eq(1) + torch.softmax(self.bias, -1).t()

    assert ops(assert_same(Net().eval())) == ["mul", "add"]


def test_pieces_and_views() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = x.chunk(2, dim=-1)
            a, b, c = first.unbind(1)
            d, e = second.split([5, 11], dim=2)
            joined = torch.cat([d, e], 2).transpose(1, -1).flatten(1)
            return (a - 2 * b / (c.abs() + 1)).flatten(1) + joined[:, ::3]

    assert_same(Net().eval())


def test_several_inputs_and_outputs() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + y, torch.relu(x)

    model = import_module(Net(), (EXAMPLE, EXAMPLE), "m")
    x, y = torch.randn_like(EXAMPLE), torch.randn_like(EXAMPLE)
    total, positive = run_whole(model, x, y)
    np.testing.assert_array_equal(total, (x + y).numpy())
    np.testing.assert_array_equal(positive, torch.relu(x).numpy())


class Sorts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x).values


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(3)


class Halves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Sorts(), r"operator aten\.sort"),
        (Branches(), "cannot be traced"),
        (Constant(), "does not depend"),
        (Halves(), "dtype"),
    ],
)
def test_what_cannot_be_imported_says_why(module: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        import_module(module, EXAMPLE, "m")


def test_unknown_models_and_levels() -> None:
    with pytest.raises(ModelError, match="mobilenet_v2"):
        import_torchvision("mobilnet_v2", "none")
    with pytest.raises(ModelError, match="unknown model"):
        import_torchvision("zzz", "none")
    with pytest.raises(ModelError, match=r"O0 \| O1"):
        import_module(nn.ReLU(), EXAMPLE, "m", level="O9")
    assert "resnet18" in list_models()
    assert "fasterrcnn_resnet50_fpn" not in list_models()


def state_of(name: str) -> dict[str, torch.Tensor]:
    return build(name, "none", 3).module.state_dict()


@pytest.mark.parametrize("form", ["safetensors", "torch", "wrapped"])
def test_weights_from_a_file(tmp_path: Path, form: str) -> None:
    state = state_of("squeezenet1_1")
    path = tmp_path / "weights.bin"
    match form:
        case "safetensors":
            safetensors.torch.save_file(state, path)
        case "torch":
            torch.save(state, path)
        case _:
            wrapped = {f"module.{key}": value for key, value in state.items()}
            torch.save({"state_dict": wrapped}, path)
    model = import_torchvision("squeezenet1_1", path)
    assert model.manifest.weights is WeightsMark.FILE
    assert model.blobs == import_torchvision("squeezenet1_1", "none", seed=3).blobs


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = state_of("squeezenet1_1")
    state["classifier.1.bias"] = torch.zeros(7)
    state["extra"] = torch.zeros(1)
    del state["features.0.weight"]
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    with pytest.raises(ModelError) as caught:
        import_torchvision("squeezenet1_1", path)
    assert caught.value.got == (
        "1 missing (features.0.weight); 1 unexpected (extra);"
        " 1 of another shape (classifier.1.bias [7] for [1000])"
    )


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("/tmp/amp4ec-was-unpickled"),)


@pytest.mark.parametrize("kind", ["absent", "text", "pickle", "scalar", "truncated"])
def test_bad_weights_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.pt"
    match kind:
        case "absent":
            pass
        case "text":
            path.write_text("these are no weights")
        case "pickle":
            torch.save({"a": Payload()}, path)
        case "scalar":
            torch.save({"a": 3}, path)
        case _:
            header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}})
            path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(3))
    with pytest.raises(ModelError):
        import_torchvision("squeezenet1_1", path)
    assert not Path("/tmp/amp4ec-was-unpickled").exists()


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="--weights none") as caught:
        import_torchvision("mobilenet_v2", "default")
    assert "no route to host" in str(caught.value)

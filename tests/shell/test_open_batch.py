"""Stages whose batch is open: several items at once give what each gives alone, with both runtimes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge_agent.runtimes import LoadedStage, open_runtime
from orchestrator.models.importer import ImportedModel, import_module, import_torchvision
from orchestrator.models.slice import slice_stage
from shared.batching import find_batching, open_batch
from shared.errors import StageError
from shared.manifest import TOLERANCE
from shared.tensor import Array
from tests.fakes import nets

RUNTIMES = ("torch", "onnxruntime")


class Vision(nn.Module):
    """ViT in small: patches, a class token, positions, attention, the token's class."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x[:, 0])


class Windows(nn.Module):
    """Swin in small: shifted windows become items of their own, with a mask for each window."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.group = nn.GroupNorm(2, 8)
        self.register_buffer("mask", torch.randn(4, 16, 16))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.roll(self.group(image).permute(0, 2, 3, 1), (-1, -1), (1, 2))
        x = self.norm(x).view(-1, 2, 4, 2, 4, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 8)
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = (q @ k.transpose(1, 2)).view(-1, 4, 16, 16) + self.mask
        x = torch.softmax(scores.view(-1, 16, 16), -1) @ v
        x = x.view(-1, 2, 2, 4, 4, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 8, 8, 8)
        return x.mean((1, 2))


def _image(edge: int, channels: int = 3) -> dict[str, torch.Tensor]:
    return {"image": torch.zeros(1, channels, edge, edge)}


def _tokens() -> dict[str, torch.Tensor]:
    return {name: torch.ones(1, 12, dtype=torch.int64) for name in ("ids", "mask")}


MODELS: dict[str, Callable[[], ImportedModel]] = {
    "convolutional": lambda: import_module(nets.convolutional(), _image(16), "convolutional"),
    "encoder": lambda: import_module(nets.encoder(), _tokens(), "encoder"),
    "vision": lambda: import_module(Vision(), _image(16), "vision"),
    "windows": lambda: import_module(Windows(), _image(8, 8), "windows"),
    "squeezenet": lambda: import_torchvision("squeezenet1_1", weights="none"),
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> ImportedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return MODELS[request.param]()


def items(model: ImportedModel, count: int) -> dict[str, Array]:
    random = np.random.default_rng(5)
    inputs: dict[str, Array] = {}
    for value in model.manifest.graph.inputs:
        shape = (count, *value.spec.shape[1:])
        if value.spec.dtype == "int64":
            inputs[value.name] = random.integers(0, 2, shape) | (np.arange(shape[1]) == 0)
        else:
            inputs[value.name] = random.standard_normal(shape, np.float32)
    return inputs


def stages(model: ImportedModel, runtime: str, *, opened: bool) -> list[LoadedStage]:
    """The model in two stages, cut where items can cross together."""
    manifest = model.manifest
    batching = find_batching(manifest.graph)
    assert batching.fixed == ""
    profile = manifest.with_seconds([1.0] * len(manifest.blocks)).profile()
    cuts = [cut.index for cut in profile.cuts if cut.items_apart]
    bounds = [0, *cuts[len(cuts) // 2 :][:1], len(manifest.blocks)]
    loaded = []
    for start, stop in pairwise(bounds):
        stage = slice_stage(manifest, start, stop)
        if opened:
            stage = open_batch(stage, batching)
        loaded.append(open_runtime(runtime).load(stage, model.blobs))
    assert len(loaded) == (2 if cuts else 1)
    return loaded


def run(through: list[LoadedStage], inputs: dict[str, Array]) -> dict[str, Array]:
    for stage in through:
        inputs = stage.run(inputs)
    return inputs


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_together_is_as_alone(model: ImportedModel, runtime: str) -> None:
    alone, together = (stages(model, runtime, opened=opened) for opened in (False, True))
    for count in (1, 2, 5):
        inputs = items(model, count)
        got = run(together, inputs)
        each = [
            run(alone, {name: array[at : at + 1] for name, array in inputs.items()})
            for at in range(count)
        ]
        for name, array in got.items():
            want = np.concatenate([one[name] for one in each])
            assert array.shape == want.shape
            assert np.abs(array - want).max() <= TOLERANCE * np.abs(want).max()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_of_unlike_numbers_of_items_are_refused(runtime: str) -> None:
    model = MODELS["encoder"]()
    (first, *_) = stages(model, runtime, opened=True)
    inputs: dict[str, Any] = items(model, 4)
    with pytest.raises(StageError, match="inputs of stage"):
        first.run({**inputs, "mask": inputs["mask"][:1]})
    with pytest.raises(StageError):
        first.run({name: array[:0] for name, array in inputs.items()})

"""torchvision's classification models: by name, with their weights, transform and labels."""

from __future__ import annotations

import difflib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# isort: off
import orchestrator.models.torchvision_shim  # noqa: F401  # its side effect must come before torchvision
import torchvision

# isort: on
from orchestrator.models.weights import (
    apply_state,
    calibrate_batch_norm,
    draw_batch_norm,
    fill_zero_layers,
    read_state,
)
from shared.errors import ModelError
from shared.manifest import WeightsMark
from shared.transform import Interpolation, Transform

DOWNLOAD_TIMEOUT_S = 30.0
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads that only training uses; published state dicts have them."""


@dataclass(frozen=True, slots=True)
class Built:
    """A module in eval mode and what torchvision says about its input and output."""

    module: torch.nn.Module
    mark: WeightsMark
    transform: Transform
    labels: tuple[str, ...] | None
    input_edge: int


def list_models() -> tuple[str, ...]:
    """The names of torchvision's classification models, sorted."""
    return tuple(sorted(torchvision.models.list_models(module=torchvision.models)))


def build(name: str, weights: str | Path, seed: int) -> Built:
    """The model `name` with `weights`; see `importer.import_torchvision`.

    Raises:
        ModelError: no such model, or weights that cannot be had or do not fit.
    """
    if name not in list_models():
        close = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.5)
        hint = f"one of torchvision's classification models, such as {', '.join(close)}"
        raise ModelError("unknown model", expected=hint if close else hint[:43], got=repr(name))
    entry = torchvision.models.get_model_weights(name).DEFAULT
    transform = _transform(entry.transforms())
    labels = tuple(entry.meta["categories"]) if "categories" in entry.meta else None
    module: torch.nn.Module
    match weights:
        case "default":
            module, mark = _pretrained(name, entry), WeightsMark.DEFAULT
        case "none":
            module, mark = _random(name, transform.crop, seed), WeightsMark.NONE
        case _:
            module, mark = _from_file(name, transform.crop, Path(weights)), WeightsMark.FILE
    return Built(module.eval(), mark, transform, labels, transform.crop)


def _pretrained(name: str, entry: Any) -> torch.nn.Module:
    try:
        with _download_timeout():
            return torchvision.models.get_model(name, weights=entry)
    except (OSError, RuntimeError) as error:
        # URLError is an OSError; a damaged download is a RuntimeError from the hash check.
        raise ModelError(
            f"the pretrained weights of {name!r} could not be downloaded ({error}); use"
            " --weights none for random weights, or --weights FILE for a state dict you have",
            expected=str(entry.url),
        ) from error


def _random(name: str, edge: int, seed: int) -> torch.nn.Module:
    # The global generator is what torchvision's initialisers draw from: seeded here, restored after.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = torchvision.models.get_model(name, weights=None, **_options(name, edge))
        fill_zero_layers(module)
        draw_batch_norm(module)
        calibrate_batch_norm(module, (3, edge, edge))
    return module


def _from_file(name: str, edge: int, path: Path) -> torch.nn.Module:
    state = read_state(path)
    options = _options(name, edge)
    if name in ("googlenet", "inception_v3"):
        # The published weights of these two were trained on another normalisation.
        options["transform_input"] = True
    module = torchvision.models.get_model(name, weights=None, **options)
    state = {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}
    apply_state(module, state, what=f"{name} from {path}")
    return module


def _options(name: str, edge: int) -> dict[str, Any]:
    """What a model without pretrained weights must be told."""
    if name in ("googlenet", "inception_v3"):
        # Their own initialisation takes minutes through SciPy; the heads serve only training.
        return {"init_weights": False, "aux_logits": False}
    return {"image_size": edge} if name.startswith("vit_") else {}


def _transform(preset: Any) -> Transform:
    """torchvision's `ImageClassification` preset as data."""
    return Transform(
        resize=int(preset.resize_size[0]),
        crop=int(preset.crop_size[0]),
        mean=tuple(float(value) for value in preset.mean),
        std=tuple(float(value) for value in preset.std),
        interpolation=Interpolation(preset.interpolation.value),
    )


@contextmanager
def _download_timeout() -> Iterator[None]:
    """torch's downloader has no timeout of its own and would hang where packets are dropped."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)

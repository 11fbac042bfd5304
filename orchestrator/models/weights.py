"""State dicts: read without running code, fitted to a module, or made up sanely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from orchestrator.models.reference import smooth_images
from orchestrator.models.threads import one_thread
from shared.errors import ModelError

_SHOWN = 4
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_CALIBRATION_IMAGES = 4
_SCALES = (0.5, 1.0)
_SHIFT_MEAN = _SHIFT_STD = 0.5


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in `path`: safetensors, or torch's format read with `weights_only=True`.

    Raises:
        ModelError: there is no such file, or it is neither.
    """
    if not path.is_file():
        raise ModelError(
            "weights", expected="default, none or a file that exists", got=repr(str(path))
        )
    state = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise ModelError(
            f"weights file {path}", expected="a state dict: names to tensors", got=_kind(state)
        )
    # What DataParallel puts before each name.
    return {key.removeprefix("module."): value for key, value in state.items()}


def apply_state(module: torch.nn.Module, state: dict[str, torch.Tensor], what: str) -> None:
    """Load `state` into `module`, every key and shape checked.

    Raises:
        ModelError: keys are missing or too many, or shapes differ; names a few and counts all.
    """
    wanted = module.state_dict()
    # torch's own loading makes up this counter when an old file lacks it; inference does not read it.
    missing = [
        key for key in wanted if key not in state and not key.endswith("num_batches_tracked")
    ]
    unexpected = [key for key in state if key not in wanted]
    wrong = [
        f"{key} {list(state[key].shape)} for {list(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if missing or unexpected or wrong:
        parts = (
            _few("missing", missing),
            _few("unexpected", unexpected),
            _few("of another shape", wrong),
        )
        raise ModelError(
            f"weights do not fit the model: {what}",
            expected=f"{len(wanted)} tensors of the model's names and shapes",
            got="; ".join(part for part in parts if part),
        )
    module.load_state_dict(state, strict=False)


def fill_zero_layers(module: torch.nn.Module) -> None:
    """Give linear layers that start at zero small random weights, from torch's current generator.

    Vision transformers start with a zero head; every answer would be zero, and so would every difference.
    """
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear) and not layer.weight.any():
            torch.nn.init.trunc_normal_(layer.weight, std=0.02)


def draw_batch_norm(module: torch.nn.Module) -> None:
    """Give BatchNorm random scales and shifts, from torch's current generator.

    Training leaves a network that forgives small differences in its input. A random one with every scale
    at 1 and every shift at 0, as they start, does the opposite: with half of each layer's units cut off by
    their ReLU, each layer spreads neighbouring inputs further apart, and float32 rounding with them. Measured
    with those (statistics calibrated), eager float32 ends 1e-5 (GoogLeNet, ResNet-50) to 3e-5 (Inception-v3)
    from float64, so no other order of the same sums can promise 1e-5. Scales below 1 and shifts that are
    mostly above 0 let more of a layer pass: all of torchvision's then end near 1e-6, as trained networks do,
    and answer more differently to different inputs, not less.
    """
    with torch.no_grad():
        for norm in _batch_norms(module):
            if norm.affine:
                norm.weight.uniform_(*_SCALES)
                norm.bias.normal_(_SHIFT_MEAN, _SHIFT_STD)


def calibrate_batch_norm(module: torch.nn.Module, shape: tuple[int, ...]) -> None:
    """Give BatchNorm the statistics of a few random inputs, from torch's current generator.

    With the initial ones (mean 0, variance 1) the activations of a random network shrink layer by layer
    (MobileNetV2's logits end near 4e-9), and comparing two such outputs says nothing. The inputs go from
    smooth patterns to white noise, so that both lie within what the statistics were taken from. One batch
    of few images: a channel still has thousands of values in the first layers and some 200 in the last.

    `shape` is [3, H, W].
    """
    norms = _batch_norms(module)
    if not norms:
        return
    whole = (_CALIBRATION_IMAGES, *shape)
    noise = torch.linspace(0, 1, _CALIBRATION_IMAGES).reshape(-1, 1, 1, 1)
    images = (1 - noise).sqrt() * smooth_images(whole, None) + noise.sqrt() * torch.randn(whole)
    module.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0  # the statistics are this batch's
        norm.train()
    with one_thread(), torch.no_grad():
        module(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


def _batch_norms(module: torch.nn.Module) -> list[Any]:
    kind = torch.nn.modules.batchnorm._BatchNorm  # noqa: SLF001
    return [layer for layer in module.modules() if isinstance(layer, kind)]


def _is_safetensors(path: Path) -> bool:
    """By content: eight bytes of header length, then a JSON object."""
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or head[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"weights file {path}", expected="safetensors", got=str(error)[:200]
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # The restricted unpickler meets arbitrary bytes here and fails in as many ways.
        first_line = str(error).strip().partition("\n")[0][:200]
        raise ModelError(
            f"weights file {path}",
            expected="safetensors, or a state dict of tensors only (nothing else is unpickled)",
            got=first_line,
        ) from error


def _few(what: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{len(items)} {what} ({', '.join(items[:_SHOWN])}{more})"


def _kind(state: Any) -> str:
    if isinstance(state, dict):
        odd = next(
            (key for key, value in state.items() if not isinstance(value, torch.Tensor)), None
        )
        return f"a dict whose {odd!r} is not a tensor"
    return type(state).__name__

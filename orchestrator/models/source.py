"""MODEL on a command line, told apart: where a model comes from, as a value. No torch, and no file is opened.

::

    resnet18                 one of torchvision's classification models
    nets/mine.pt2            an archive that torch.export wrote
    nets/mine.onnx           an ONNX file, from any framework
    package.module:factory   a Python callable that gives a torch.nn.Module, with --input-shape
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath

from shared.errors import ConfigurationError
from shared.graph import DTYPE_BYTES, MAX_DIM, MAX_RANK, MAX_TENSOR_BYTES
from shared.ids import check_name, name_from

FORMS = "a torchvision model's name, FILE.pt2 (torch.export), FILE.onnx, or module:factory"
SHAPE_FORM = "[NAME:]1x3x224x224[:DTYPE]"
DEFAULT, NONE = "default", "none"
"""What `weights` may be beside the path of a file."""

_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_SHAPE = re.compile(
    r"((?P<name>.+):)?(?P<shape>[0-9]+(x[0-9]+)*)(:(?P<dtype>[a-z]+[0-9]*))?", re.ASCII
)
_INSTEAD = {
    **dict.fromkeys(
        (".pt", ".pth", ".bin", ".ckpt", ".safetensors"),
        "this looks like weights without a model: name the model, and give the file as --weights FILE",
    ),
    **dict.fromkeys(
        (".pb", ".h5", ".keras", ".tflite"),
        "this looks like a TensorFlow model: convert it to ONNX (tf2onnx) and give the .onnx file",
    ),
    ".py": "to have a model made by a Python file, write MODULE:FACTORY (without .py)",
}


class SourceKind(StrEnum):
    """What kind of thing a model is read from."""

    TORCHVISION = "torchvision"
    EXPORTED = "torch.export"
    ONNX = "onnx"
    FACTORY = "factory"


@dataclass(frozen=True, slots=True)
class InputShape:
    """One `--input-shape`: the form of one input.

    An empty `name` stands for the input at this position; without a `dtype` it is the model's own,
    float32 where the model does not say.
    """

    shape: tuple[int, ...]
    dtype: str | None = None
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> InputShape:
        """As in `1x3x224x224`, `ids:1x128` or `mask:1x128:int64`.

        Raises:
            ConfigurationError: not of that form, a dtype nobody knows, or an absurd size.
        """
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise ConfigurationError(
                f"--input-shape {text!r} is no shape", expected=SHAPE_FORM, got=repr(text)
            )
        shape = tuple(int(dim[:12]) for dim in match["shape"].split("x"))
        dtype = match["dtype"]
        if dtype is not None and dtype not in DTYPE_BYTES:
            raise ConfigurationError(
                f"--input-shape {text!r}: dtype", expected=" | ".join(DTYPE_BYTES), got=dtype
            )
        if len(shape) > MAX_RANK or not all(0 < dim <= MAX_DIM for dim in shape):
            raise ConfigurationError(
                f"--input-shape {text!r}: size",
                expected=f"at most {MAX_RANK} sizes, each 1..{MAX_DIM}",
                got=match["shape"],
            )
        if math.prod(shape) * DTYPE_BYTES[dtype or "float32"] > MAX_TENSOR_BYTES:
            raise ConfigurationError(
                f"--input-shape {text!r}: bytes",
                expected=f"at most {MAX_TENSOR_BYTES}",
                got=str(math.prod(shape) * DTYPE_BYTES[dtype or "float32"]),
            )
        return cls(shape, dtype, match["name"] or "")

    def __str__(self) -> str:
        parts = [self.name, "x".join(map(str, self.shape)), self.dtype]
        return ":".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from, and what it will be called.

    `reference` is the zoo's name, the file's path or `module:factory`; `weights` is `default` (those that
    come with it), `none` (random ones) or a file's path.
    """

    kind: SourceKind
    reference: str
    name: str
    weights: str = DEFAULT
    inputs: tuple[InputShape, ...] = ()


def parse_source(
    model: str,
    *,
    weights: str = DEFAULT,
    inputs: Sequence[InputShape] = (),
    name: str | None = None,
) -> ModelSource:
    """What `model` means, decided by its spelling alone.

    Args:
        model: one of `FORMS`.
        weights: see `ModelSource`.
        inputs: the inputs' shapes, for what does not have them fixed.
        name: what to call it; otherwise the zoo's name, the file's stem or the factory's own name.

    Raises:
        ConfigurationError: none of the forms, flags that do not go with it, or no legal name in it.
    """
    kind = _kind(model)
    if weights != DEFAULT:
        _check_weights(kind, model, weights)
    _check_inputs(kind, model, inputs)
    if name is None:
        own = model.rpartition(":")[2].rpartition(".")[2]
        stem = own if kind is SourceKind.FACTORY else PurePath(model).stem
        # The zoo's names are legal as they are; a file's are made so.
        name = model if kind is SourceKind.TORCHVISION else name_from(stem.lstrip("_"), model)
    return ModelSource(kind, model, check_name("model", name), weights, tuple(inputs))


def _kind(model: str) -> SourceKind:
    suffix = PurePath(model).suffix.lower()
    if suffix == ".onnx":
        return SourceKind.ONNX
    if suffix == ".pt2":
        return SourceKind.EXPORTED
    if _FACTORY.fullmatch(model):
        return SourceKind.FACTORY
    if suffix in _INSTEAD:
        raise ConfigurationError(f"{model}: {_INSTEAD[suffix]}", expected=FORMS, got=repr(model))
    if not re.fullmatch(r"\w+", model, re.ASCII):
        raise ConfigurationError(
            f"{model!r} is no model that could be read", expected=FORMS, got=repr(model)
        )
    return SourceKind.TORCHVISION


def _check_weights(kind: SourceKind, model: str, weights: str) -> None:
    match kind:
        case SourceKind.ONNX | SourceKind.EXPORTED:
            raise ConfigurationError(
                f"{model} holds its own weights: leave out --weights", expected=DEFAULT, got=weights
            )
        case SourceKind.FACTORY if weights == NONE:
            raise ConfigurationError(
                f"{model} makes its own weights: leave out --weights, or name a file",
                expected=f"{DEFAULT} or a file",
                got=weights,
            )
        case _:
            pass


def _check_inputs(kind: SourceKind, model: str, inputs: Sequence[InputShape]) -> None:
    match kind:
        case SourceKind.TORCHVISION | SourceKind.EXPORTED if inputs:
            raise ConfigurationError(
                f"{model} says itself what it takes: leave out --input-shape",
                expected="no --input-shape",
                got=", ".join(map(str, inputs)),
            )
        case SourceKind.FACTORY if not inputs:
            raise ConfigurationError(
                f"{model} is a factory, which cannot say what its model takes: add --input-shape,"
                " once for each input",
                expected=f"--input-shape {SHAPE_FORM}",
                got="none",
            )
        case _:
            pass
    names = [shape.name for shape in inputs if shape.name]
    if len(set(names)) != len(names):
        raise ConfigurationError(
            "--input-shape: names", expected="each once", got=", ".join(sorted(names))
        )

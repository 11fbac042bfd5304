"""Torch models that our own tracing cannot take: by way of ONNX, which has operators and branches we lack.

Two ways lead there. What `torch.export` can follow has no control flow that depends on values, so one run
records all of it, and operators off our list become ONNX's. What it cannot follow is compiled from its source
by TorchScript, branches and loops included; recording one run would freeze the branch that this run took. The
result is an ONNX model like one from a file. It is held against the original's own answers.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from orchestrator.models.call import Call
from orchestrator.models.importer import ImportedModel
from orchestrator.models.reference import original_answers
from orchestrator.models.source import ModelSource
from orchestrator.models.threads import one_thread
from shared.errors import ModelError
from shared.graph import Kernels

_OPSET = 17


@dataclass(frozen=True, slots=True)
class Untraced:
    """A module that tracing refused, and why; `names` are what its inputs are called."""

    source: ModelSource
    module: torch.nn.Module
    call: Call
    names: tuple[str, ...]
    why: ModelError
    branches: bool
    """Whether there may be control flow that depends on values."""

    def imported(self, level: str, kernels: Kernels) -> ImportedModel:
        """The model by way of ONNX; in one piece where that cannot be taken apart either.

        Raises:
            ModelError: it cannot be exported, or ONNX Runtime cannot run it; says why tracing it failed, too.
        """
        if any(find_spec(name) is None for name in ("onnx", "onnxruntime")):
            raise ModelError(
                f"{self.why.message}; to have it served whole, pip install 'amp4ec[orchestrator,onnx]'",
                expected=self.why.expected,
                got=self.why.got,
            ) from self.why
        from orchestrator.models.onnx_file import read_onnx
        from orchestrator.models.onnx_import import OnnxModel

        try:
            with tempfile.TemporaryDirectory(prefix="amp4ec-") as folder:
                path = Path(folder) / "model.onnx"
                self._export(path)
                file = replace(read_onnx(path, ()), path=Path(self.source.reference))
            model = OnnxModel.of(
                self.source, file, original_answers(self.module, self.call), self.why.message
            )
            return model.imported(level, kernels)
        except ModelError as error:
            if error is self.why:
                raise
            raise ModelError(
                f"{self.why.message}; nor can it be served whole: {error.message}",
                expected=error.expected or self.why.expected,
                got=error.got or self.why.got,
            ) from error

    def _export(self, path: Path) -> None:
        count = self._count_outputs()
        names = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
        try:
            with _quiet(), one_thread(), torch.no_grad():
                module: Any = (
                    torch.jit.script(self.module)
                    if self.branches
                    else _Flat(self.module, self.call)
                )
                torch.onnx.export(
                    module,
                    self._arguments(),
                    str(path),
                    dynamo=False,
                    opset_version=_OPSET,
                    input_names=list(self.names),
                    output_names=names,
                )
        except Exception as error:
            # Compiler and exporter raise errors of many unrelated types, all meaning the same here.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ModelError(
                f"it cannot be {'compiled and ' if self.branches else ''}exported to ONNX:"
                f" {type(error).__name__}: {(lines or ['no reason given'])[0][:300]}"
            ) from error

    def _count_outputs(self) -> int:
        """Run the module once: one that cannot be called as it stands has no other form either."""
        try:
            with one_thread(), torch.no_grad():
                result = self.call.copied().run(self.module)
        except Exception as error:  # somebody's own code
            raise self.why from error
        return sum(_is_tensor(leaf) for leaf in tree_leaves(result))

    def _arguments(self) -> tuple[torch.Tensor, ...]:
        call = self.call.copied()
        return (*call.args, *call.kwargs.values())


def input_names(module: torch.nn.Module, call: Call) -> tuple[str, ...]:
    """What the inputs of `call` are called, in order: the keywords, or the parameters of `forward`."""
    if call.kwargs:
        return tuple(call.kwargs)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [
        p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds
    ]
    return tuple(
        known[index] if index < len(known) else f"input_{index}" for index in range(len(call.args))
    )


class _Flat(torch.nn.Module):
    """A module called with its inputs in order, that gives its output tensors in order."""

    def __init__(self, module: torch.nn.Module, call: Call) -> None:
        super().__init__()
        self.module = module
        self._call = call

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        call = Call(tensors)
        if self._call.kwargs:
            call = Call(kwargs=dict(zip(self._call.kwargs, tensors, strict=True)))
        return tuple(leaf for leaf in tree_leaves(call.run(self.module)) if _is_tensor(leaf))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself (that it is the older of two) and of each constant."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    # The shortcut for transformers is one opaque operator, which has no ONNX form.
    torch.backends.mha.set_fastpath_enabled(False)
    log = logging.getLogger("torch.onnx")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before
        torch.backends.mha.set_fastpath_enabled(fastpath)

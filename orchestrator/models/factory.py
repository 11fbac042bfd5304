"""`module:factory`: a torch module made by somebody's own Python code.

That code runs, with everything it does: on the machine of the operator who typed its name, as if they had
imported it themselves, and nowhere else.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.models.call import Call
from orchestrator.models.importer import ImportedModel, import_module
from orchestrator.models.onnx_export import Untraced, input_names
from orchestrator.models.source import DEFAULT, ModelSource
from orchestrator.models.trace import UntraceableError
from orchestrator.models.weights import apply_state, read_state
from shared.errors import ModelError
from shared.graph import Kernels
from shared.manifest import WeightsMark

SEED = 0
"""What torch's generator starts from when a factory is called: the same model every time."""


@dataclass(frozen=True, slots=True)
class FactoryModel:
    """What a factory made, and inputs of the shapes that were given for it."""

    source: ModelSource
    module: torch.nn.Module
    example: tuple[torch.Tensor, ...] | dict[str, torch.Tensor]

    @classmethod
    def make(cls, source: ModelSource) -> FactoryModel:
        """Import the module, with the current directory on its path, and call the factory.

        Raises:
            ModelError: there is no such thing, it fails, or gives no torch module; or `source.weights` is a
                file that cannot be read or does not fit.
        """
        with _importable(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            module = _made(source.reference)
        if source.weights != DEFAULT:
            path = Path(source.weights)
            apply_state(module, read_state(path), what=f"{source.reference} from {path}")
        return cls(source, module.eval(), _example(source, module))

    def imported(self, level: str, kernels: Kernels) -> ImportedModel:
        """The model in our form; by way of ONNX where it cannot be traced.

        Raises:
            ModelError: it cannot be had that way either.
        """
        with _importable():  # a forward may import as well
            try:
                return import_module(
                    self.module,
                    self.example,
                    self.source.name,
                    level=level,
                    weights=WeightsMark.FILE,
                    kernels=kernels,
                )
            except ModelError as error:
                return self._by_onnx(error).imported(level, kernels)

    def _by_onnx(self, why: ModelError) -> Untraced:
        call = Call.of(self.example)
        return Untraced(
            self.source,
            self.module,
            call,
            input_names(self.module, call),
            why,
            branches=isinstance(why, UntraceableError),
        )


@contextmanager
def _importable() -> Iterator[None]:
    """The current directory on `sys.path`, as `python -m` has it and an installed command does not."""
    here = os.getcwd()  # noqa: PTH109 - a string is what sys.path takes
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _made(reference: str) -> torch.nn.Module:
    name, _, attribute = reference.partition(":")
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(f"importing {name}", error) from error
        raise ModelError(
            f"there is no Python module {name!r} to make the model with",
            expected="a module that is installed here, or a file in the current directory",
            got=f"none named {error.name!r}; the current directory is {Path.cwd()}",
        ) from error
    except (
        Exception,
        SystemExit,
    ) as error:  # somebody's own code: whatever it raises means the same here
        raise _failed(f"importing {name}", error) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = sorted(n for n, value in vars(found).items() if callable(value) and n[0] != "_")
            raise ModelError(
                f"{name} has no {attribute!r}",
                expected=f"one of what it has: {', '.join(names)[:200]}" if names else "a factory",
                got=attribute,
            )
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(
            f"{reference} cannot be called", expected="a factory", got=type(found).__name__
        )
    try:
        made = found()
    except (Exception, SystemExit) as error:  # as above
        raise _failed(f"calling {reference} without arguments", error) from error
    if not isinstance(made, torch.nn.Module):
        raise ModelError(
            f"{reference} gave no model", expected="a torch.nn.Module", got=type(made).__name__
        )
    return made


def _failed(doing: str, error: BaseException) -> ModelError:
    first_line = str(error).strip().partition("\n")[0][:300]
    return ModelError(f"{doing} failed: {type(error).__name__}: {first_line}")


def _example(
    source: ModelSource, module: torch.nn.Module
) -> tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
    """Zeros of the given forms; by keyword where they were given names."""
    names = [shape.name for shape in source.inputs]
    tensors = [
        torch.zeros(shape.shape, dtype=getattr(torch, shape.dtype or "float32"))
        for shape in source.inputs
    ]
    if not any(names):
        return tuple(tensors)
    parameters = inspect.signature(module.forward).parameters
    free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    wrong = [name for name in names if name not in parameters and not (free and name)]
    if wrong:
        raise ModelError(
            f"--input-shape of {source.reference}: "
            + (f"no input {wrong[0]!r}" if wrong[0] else "some have names and some have none"),
            expected=f"names of what its forward takes: {', '.join(parameters)}",
            got=", ".join(map(str, source.inputs)),
        )
    return dict(zip(names, tensors, strict=True))

"""What runs a stage: one file per inference runtime, the same three verbs for all.

`load` turns a graph and its weight blobs into a stage, `run` takes and gives NumPy arrays by name, `unload`
gives the memory back. Asking what is available imports no runtime; opening one does.

Another one is one new file here. It begins with what can be said of it without importing anything heavy, as
constants that are read and not run::

    NAME = "mine"                       its name in births and plans
    NEEDS = ("mine_package",)           what it imports, first what it is built on
    EXTRA = "amp4ec[mine]"              the extra that brings those
    INT8 = False                        whether it runs int8 graphs (`shared.operators.QUANTISED`)

and has `open_runtime()`, which gives a `Runtime`. Births offer it, models are timed with it where they are
prepared, and held against the original's answers, with nothing else to be told.
"""

from __future__ import annotations

import ast
import functools
import importlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from shared.errors import StageError
from shared.graph import StageGraph

# ONNX Runtime (1.31) reports to its maker from the moment it is imported, and keeps a database and an
# identity of the device in the user's cache for it. A device talks to whom its owner chose; who wants the
# reports sets the variable.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Array: TypeAlias = npt.NDArray[np.generic]
Blobs: TypeAlias = Mapping[str, Path | bytes]
"""Weights in safetensors form by SHA-256 in hex: a file, or the bytes themselves."""


def has_shape(array: Array, shape: tuple[int, ...], *, open_batch: bool) -> bool:
    """Whether a stage whose graph says `shape` of an input takes `array`."""
    if not open_batch:
        return array.shape == shape
    return array.ndim == len(shape) and array.shape[0] > 0 and array.shape[1:] == shape[1:]


def check_items(graph: StageGraph, inputs: Mapping[str, Array]) -> None:
    """Inputs of another number of items each would be laid over each other.

    Raises:
        StageError: axis 0 of an open batch's inputs differs.
    """
    if graph.open_batch and len({array.shape[0] for array in inputs.values()}) > 1:
        raise StageError(
            f"inputs of stage {graph.name}",
            expected="the same number of items in each",
            got=", ".join(f"{name}: {array.shape[0]}" for name, array in inputs.items()),
        )


class LoadedStage(Protocol):
    """A stage in memory, warmed up. Not for several threads at once."""

    @property
    def graph(self) -> StageGraph:
        """What was loaded."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for `inputs`, one array per input of the graph, of its dtype and shape.

        Where the graph's batch is open axis 0 may be any number of items, the same in every input.

        Arrays may be strided both ways: a 4-D activation whose memory is channels-last is taken and given
        without a copy. An input that only passes through comes back as the same object. Inputs are never
        written to; outputs may share memory with them.

        Raises:
            StageError: an input is missing, unknown or of another dtype or shape, or an operator failed.
        """
        ...

    def unload(self) -> None:
        """Give the memory back; weights that another loaded stage uses stay."""
        ...


class Runtime(Protocol):
    """An inference runtime."""

    @property
    def name(self) -> str:
        """Its name in births and plans."""
        ...

    @property
    def version(self) -> str:
        """The version of what it is built on."""
        ...

    def load(self, graph: StageGraph, blobs: Blobs, *, threads: int = 1) -> LoadedStage:
        """Load a stage and run it once on zeros.

        `threads` is for the whole process, and should follow the CPU share: see `threads_for`.

        Raises:
            GraphError: the graph is malformed.
            StageError: a blob or weight is missing, damaged or of another form, or an operator failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Installable:
    """A runtime's module here, and what it says of itself; see above."""

    module: str
    needs: tuple[str, ...]
    extra: str
    int8: bool


@functools.cache
def _described(folders: tuple[str, ...]) -> dict[str, _Installable]:
    """The runtimes by name, from the constants of their files; nothing of them is run."""
    found: dict[str, _Installable] = {}
    for path in sorted(path for folder in folders for path in Path(folder).glob("*_runtime.py")):
        said = {
            target.id: ast.literal_eval(node.value)
            for node in ast.parse(path.read_bytes()).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name) and target.id in ("NAME", "NEEDS", "EXTRA", "INT8")
        }
        found[said["NAME"]] = _Installable(path.stem, said["NEEDS"], said["EXTRA"], said["INT8"])
    return found


def _runtimes() -> dict[str, _Installable]:
    return _described(tuple(__path__))


def available_runtimes() -> dict[str, str]:
    """The runtimes that can be opened here, with their versions; imports none of them."""
    found: dict[str, str] = {}
    for name, runtime in _runtimes().items():
        if all(find_spec(module) is not None for module in runtime.needs):
            try:
                found[name] = version(runtime.needs[0])
            except PackageNotFoundError:
                found[name] = "unknown"
    return found


def requirements_of(name: str) -> tuple[tuple[str, ...], str]:
    """What a runtime, installed or not, imports, and the extra that brings it."""
    runtime = _runtimes()[name]
    return runtime.needs, runtime.extra


def int8_runtimes() -> tuple[str, ...]:
    """The runtimes, installed or not, that run int8 graphs (level O2)."""
    return tuple(name for name, runtime in _runtimes().items() if runtime.int8)


def open_runtime(name: str) -> Runtime:
    """The runtime `name`; this imports it (seconds, and tens of seconds at a small CPU share).

    Raises:
        StageError: it is not available here.
    """
    available = available_runtimes()
    if name not in available:
        raise StageError(
            f"runtime {name!r} is not installed",
            expected=" | ".join(available)
            or f"an extra: {' or '.join(runtime.extra for runtime in _runtimes().values())}",
            got=repr(name),
        )
    module = importlib.import_module(f"edge_agent.runtimes.{_runtimes()[name].module}")
    opener: Callable[[], Runtime] = module.open_runtime
    return opener()


def threads_for(cpu_share: float) -> int:
    """Threads for a process that may use `cpu_share` CPUs.

    Threads follow the quota, not the cores: more threads than whole CPUs halve the throughput.
    """
    return max(1, math.floor(cpu_share))

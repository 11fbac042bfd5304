"""The promise that answers are the original model's, held to when a model is imported.

The imported model runs as it will be served, in one piece and block by block (which is every cut at once), on
the inputs that the original module answered. Where fast kernels stray too far with the weights at hand (a
network may amplify what float32 rounds, and then no two orders of the same sums agree), the plain ones are
taken: the original's own, bit for bit, and slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edge_agent.runtimes import LoadedStage, open_runtime
from orchestrator.models.slice import slice_stage
from shared.errors import ModelError
from shared.graph import Kernels
from shared.manifest import TOLERANCE
from shared.tensor import Array

if TYPE_CHECKING:  # it imports torch
    from orchestrator.models.importer import ImportedModel

MARGIN = TOLERANCE / 2
"""What the few inputs may show, so that what they do not show stays within the promise."""

Step = Callable[[str], None]
Import = Callable[[Kernels], "ImportedModel"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The largest error over all references, and the least CPU seconds of one run in one piece."""

    error: float
    seconds: float


def exact_model(import_model: Import, runtimes: Iterable[str], step: Step) -> ImportedModel:
    """The model with the fastest kernels that keep the promise; its manifest records the error.

    Args:
        import_model: imports it for the kernels it is given.
        runtimes: each of them must keep the promise.
        step: gets a line when plain kernels are taken.

    Raises:
        ModelError: it cannot be imported, or even plain kernels do not give the original's answers.
        StageError: a runtime cannot load or run it.
    """
    names = tuple(runtimes)
    fast = import_model(Kernels.FAST)
    measured = [compare(fast, name) for name in names]
    error = max((found.error for found in measured), default=0.0)
    if error <= MARGIN:
        return _recorded(fast, error)
    plain = import_model(Kernels.PLAIN)
    slower = [compare(plain, name) for name in names]
    left = max(found.error for found in slower)
    model = fast.manifest.model
    if left > MARGIN:
        raise ModelError(
            f"{model} does not give the original model's answers, not even with plain kernels",
            expected=f"a relative error of at most {MARGIN:.0e}",
            got=f"{left:.1e}, and {error:.1e} with fast ones",
        )
    cost = max(b.seconds / a.seconds for a, b in zip(measured, slower, strict=True)) - 1
    step(
        f"{model}: fast kernels differ from the original by {error:.1e} with these weights, more than"
        f" {MARGIN:.0e}; served with plain ones, off by {left:.1e}, {max(cost, 0.0):.0%} slower"
    )
    return _recorded(plain, left)


def compare(imported: ImportedModel, runtime: str) -> Comparison:
    """Run `imported` with `runtime` and compare with the original's answers; about six runs.

    In one piece on all references, and block by block on the first: there every tensor that may cross a cut
    is taken out and put in again.

    Raises:
        StageError: the runtime is not installed, or cannot run the model.
    """
    engine = open_runtime(runtime)
    count = len(imported.manifest.blocks)
    errors, seconds = [], []

    def load(start: int, stop: int) -> LoadedStage:
        return engine.load(slice_stage(imported.manifest, start, stop), imported.blobs)

    # Loaded until the blocks are done, which then find their weights packed.
    whole = load(0, count)
    try:
        for reference in imported.references:
            began = time.thread_time()
            outputs = whole.run(reference.inputs)
            seconds.append(time.thread_time() - began)
            errors.append(_error(outputs, reference.outputs))
        first = imported.references[0]
        values = first.inputs
        for index in range(count):
            block = load(index, index + 1)
            values = block.run(values)
            block.unload()
        errors.append(_error(values, first.outputs))
    finally:
        whole.unload()
    return Comparison(max(errors), max(min(seconds), 1e-7))


def relative_error(result: Array, expected: Array) -> float:
    """The largest difference over the largest expected value; infinite where only one is finite."""
    if np.array_equal(result, expected, equal_nan=True):
        return 0.0
    wide = expected.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = float(np.abs(result.astype(np.float64) - wide).max() / np.abs(wide).max())
    return float("inf") if np.isnan(error) else error


def _error(outputs: dict[str, Array], expected: dict[str, Array]) -> float:
    return max(relative_error(outputs[name], array) for name, array in expected.items())


def _recorded(imported: ImportedModel, error: float) -> ImportedModel:
    return replace(imported, manifest=replace(imported.manifest, max_relative_error=error))

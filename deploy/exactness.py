"""The promise that answers are the original model's, held to when a model is imported.

The imported model runs as it will be served, in one piece and block by block (which is every cut at once), on
the inputs that the original module answered. Where fast kernels stray too far with the weights at hand (a
network may amplify what float32 rounds, and then no two orders of the same sums agree), the plain ones are
taken: the original's own, bit for bit, and slower. Only the runtime built on the original's framework has
those (torch for modules; for ONNX files ONNX Runtime, which then runs them in one piece with nothing fused);
another one that strays is not measured for that model, and so never chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edge_agent.runtimes import LoadedStage, open_runtime
from orchestrator.models.slice import slice_stage
from shared.errors import ModelError, StageError
from shared.graph import Kernels
from shared.manifest import TOLERANCE
from shared.tensor import Array

if TYPE_CHECKING:  # it imports torch
    from orchestrator.models.importer import ImportedModel

MARGIN = TOLERANCE / 2
"""What the few inputs may show, so that what they do not show stays within the promise."""

TORCH = "torch"
"""The framework that modules come from: where its own runtime strays, that decides for all."""

Step = Callable[[str], None]
Import = Callable[[Kernels], "ImportedModel"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The largest error over all references, and the least CPU seconds of one run in one piece."""

    error: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Exact:
    """A model whose manifest records its error, and the runtimes that keep the promise with it."""

    imported: ImportedModel
    runtimes: tuple[str, ...]


def exact_model(import_model: Import, runtimes: Iterable[str], step: Step) -> Exact:
    """The model with the fastest kernels that keep the promise; its manifest records the error.

    The original's framework decides about the kernels; another runtime that strays or cannot run the model
    is left out, and condemns nothing. For a model of another framework any runtime that keeps the promise
    will do.

    Args:
        import_model: imports it for the kernels it is given.
        runtimes: those it may be served with.
        step: gets a line when plain kernels are taken, and one for each runtime left out.

    Raises:
        ModelError: it cannot be imported, or no runtime gives the original's answers, not even with plain
            kernels.
        StageError: the original's framework, or the only runtime there is, cannot load or run it.
    """
    names = tuple(runtimes)
    fast = import_model(Kernels.FAST)
    tried = _compare_all(fast, names, step)
    kept = _exact(tried)
    model, original = fast.manifest.model, fast.framework
    decided = original != TORCH or TORCH in kept or TORCH not in names
    if not names or (kept and decided):
        _tell_left_out(model, tried, kept, step)
        return _recorded(fast, kept)
    error = max((found.error for found in tried.values()), default=float("inf"))
    if original not in names:  # nothing else has plain kernels
        raise ModelError(
            f"{model} does not give the original model's answers with {', '.join(names)}",
            expected=f"a relative error of at most {MARGIN:.0e}",
            got=f"{error:.1e}",
        )
    before = tried.get(original, Comparison(error, float("inf")))
    plain = import_model(Kernels.PLAIN)
    after = compare(plain, original)
    if after.error > MARGIN:
        raise ModelError(
            f"{model} does not give the original model's answers, not even with plain kernels",
            expected=f"a relative error of at most {MARGIN:.0e}",
            got=f"{after.error:.1e}, and {before.error:.1e} with fast ones",
        )
    step(
        f"{model}: fast kernels differ from the original by {before.error:.1e} with these weights, more than"
        f" {MARGIN:.0e}; served with plain ones, off by {after.error:.1e},"
        f" {max(after.seconds / before.seconds - 1, 0.0):.0%} slower"
    )
    for name in names:
        if name != original:
            step(f"{model}: not served with {name}, which has no plain kernels")
    return _recorded(plain, {original: after})


def _compare_all(
    imported: ImportedModel, names: tuple[str, ...], step: Step
) -> dict[str, Comparison]:
    """Each runtime that can run the model, compared; a line for each that cannot.

    Raises:
        StageError: the original's framework or the only runtime cannot.
    """
    found: dict[str, Comparison] = {}
    for name in names:
        try:
            found[name] = compare(imported, name)
        except StageError as error:
            if name == imported.framework or len(names) == 1:
                raise
            step(f"{imported.manifest.model}: not served with {name}: {error}")
    return found


def _exact(tried: dict[str, Comparison]) -> dict[str, Comparison]:
    return {name: found for name, found in tried.items() if found.error <= MARGIN}


def _tell_left_out(
    model: str, tried: dict[str, Comparison], kept: dict[str, Comparison], step: Step
) -> None:
    for name, found in tried.items():
        if name not in kept:
            step(
                f"{model}: not served with {name}, which differs from the original by {found.error:.1e}"
                f" with these weights, more than {MARGIN:.0e}"
            )


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


def _recorded(imported: ImportedModel, kept: dict[str, Comparison]) -> Exact:
    error = max((found.error for found in kept.values()), default=0.0)
    manifest = replace(imported.manifest, max_relative_error=error)
    return Exact(replace(imported, manifest=manifest), tuple(kept))

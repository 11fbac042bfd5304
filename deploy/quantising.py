"""Level O2 on the operator's machine: ranges from samples, the best method, and how well it answers.

Nothing here knows what the right answers are. The measure is the same model at level O1: how often both put
the same class first, and how far their outputs are apart, on samples that no range was taken from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deploy.exactness import relative_error
from deploy.levels import describe_quantisation
from deploy.samples import SCARCE, Inputs, Samples
from edge_agent.runtimes import LoadedStage, Runtime, open_runtime
from orchestrator.models.quantise import QuantisedModel, quantise, values_to_watch
from orchestrator.models.ranges import Method, Observer
from orchestrator.models.slice import slice_stage
from shared.errors import ModelError
from shared.manifest import TOLERANCE, Manifest, Quantisation
from shared.tensor import Array

RUNTIME = "onnxruntime"
"""What takes the ranges and judges: the runtime that has the operators of int8 graphs."""

Outputs = Mapping[str, Array]
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Tried:
    method: Method
    model: QuantisedModel
    error: float


def quantise_model(
    manifest: Manifest, blobs: Mapping[str, bytes], samples: Samples, step: Step
) -> QuantisedModel:
    """The model at level O2; its manifest says how well it agrees with itself at O1.

    Of the methods to choose ranges the one is taken whose outputs are nearest to O1's on the samples that the
    ranges are from; it is judged on the others.

    Args:
        manifest: the model at O1.
        blobs: its weights by digest.
        samples: what it shall work on.
        step: gets a line per step.

    Raises:
        ModelError: it cannot be taken apart, values that are not finite, or stages that do not give the whole
            model's numbers.
        StageError: the runtime is not here, or cannot run it.
    """
    if manifest.whole:
        raise ModelError(
            f"{manifest.model} is served whole ({manifest.whole}): level O2 is made operator by operator",
            expected="level O0 or O1, or a file that is int8 already",
            got="level O2",
        )
    engine = open_runtime(RUNTIME)
    count = len(samples.watched)
    if len(samples) < SCARCE:
        step(
            f"only {len(samples)} samples: ranges and agreement are rough; {SCARCE} or more are better"
        )
    step(f"taking ranges from {count} samples")
    observer = _observed(engine, manifest, blobs, samples.watched)
    exact = _whole(engine, manifest, blobs)
    wanted = [exact.run(inputs) for inputs in samples.watched]
    judged = [exact.run(inputs) for inputs in samples.held_out]
    exact.unload()
    tried = []
    for method in Method:
        model = quantise(manifest, blobs, observer.ranges(method))
        tried.append(_Tried(method, model, _distance(engine, model, samples.watched, wanted)))
    best = min(tried, key=lambda each: each.error)
    found = _judged(engine, best.model, samples.held_out, judged)
    quantisation = Quantisation(
        method=best.method.value,
        samples=len(samples),
        held_out=len(samples.held_out),
        agreement_ratio=found[0],
        max_relative_error=found[1],
    )
    step(describe_quantisation(quantisation))
    return replace(
        best.model,
        manifest=replace(
            best.model.manifest, quantisation=quantisation, max_relative_error=found[1]
        ),
    )


def agreement(results: Sequence[Outputs], expected: Sequence[Outputs]) -> float:
    """The share of rows whose largest value is in the same place; a row is an output's last axis.

    For a classifier of one row: top-1 agreement.
    """
    same = total = 0
    for result, other in zip(results, expected, strict=True):
        for name, array in other.items():
            rows = np.argmax(array.reshape(-1, array.shape[-1] if array.ndim else 1), axis=1)
            found = np.argmax(result[name].reshape(len(rows), -1), axis=1)
            same += int((rows == found).sum())
            total += len(rows)
    return same / total


def _observed(
    engine: Runtime, manifest: Manifest, blobs: Mapping[str, bytes], samples: Sequence[Inputs]
) -> Observer:
    names = values_to_watch(manifest, blobs)
    given = {value.name for value in manifest.graph.inputs}
    whole = slice_stage(manifest, 0, len(manifest.blocks))
    made = tuple(name for name in names if name not in given)
    stage = engine.load(replace(whole, outputs=made or whole.outputs), blobs)
    observer = Observer(names)
    try:
        for look in (observer.ends, observer.fill):
            for inputs in samples:
                look({**stage.run(inputs), **inputs})
    finally:
        stage.unload()
    return observer


def _distance(
    engine: Runtime, model: QuantisedModel, samples: Sequence[Inputs], expected: Sequence[Outputs]
) -> float:
    """Mean square difference of the outputs, over their mean square."""
    stage = _whole(engine, model.manifest, model.blobs)
    off = size = 0.0
    for inputs, other in zip(samples, expected, strict=True):
        result = stage.run(inputs)
        for name, array in other.items():
            off += float(np.square(result[name].astype(np.float64) - array).mean())
            size += float(np.square(array.astype(np.float64)).mean())
    stage.unload()
    return off / size if size else off


def _judged(
    engine: Runtime, model: QuantisedModel, samples: Sequence[Inputs], expected: Sequence[Outputs]
) -> tuple[float, float]:
    """Agreement and the largest relative difference; checks first that stages give the whole's numbers."""
    whole = _whole(engine, model.manifest, model.blobs)
    results = [whole.run(inputs) for inputs in samples]
    whole.unload()
    values: Outputs = samples[0]
    for index in range(len(model.manifest.blocks)):
        stage = engine.load(slice_stage(model.manifest, index, index + 1), model.blobs)
        values = stage.run(values)
        stage.unload()
    apart = max(relative_error(values[name], array) for name, array in results[0].items())
    if apart > TOLERANCE:
        raise ModelError(
            f"{model.manifest.model} at level O2: stages do not give the whole model's numbers",
            expected=f"a relative difference of at most {TOLERANCE:.0e}",
            got=f"{apart:.1e}",
        )
    errors = [
        relative_error(result[name], array)
        for result, other in zip(results, expected, strict=True)
        for name, array in other.items()
    ]
    return agreement(results, expected), max(errors)


def _whole(engine: Runtime, manifest: Manifest, blobs: Mapping[str, bytes]) -> LoadedStage:
    return engine.load(slice_stage(manifest, 0, len(manifest.blocks)), blobs)

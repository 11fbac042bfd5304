"""What each way to send a cut's tensors makes of them: bytes, CPU seconds, the error in the model's output.

Measured on the activations of one input: our photograph where the model takes images, else the smoothest of
its reference inputs. Random noise has neither the zeros nor the structure that zstd lives on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from deploy.exactness import relative_error
from deploy.photo import PHOTO
from edge_agent.runtimes import LoadedStage, open_runtime
from orchestrator.models.slice import slice_stage
from shared.compression import (
    COMPRESSIONS,
    PLAIN,
    Compression,
    PackedTensor,
    Rounding,
    pack,
    unpack,
)
from shared.manifest import Manifest
from shared.profile import CutProfile, PackedCut
from shared.tensor import Array, WireTensor, from_wire

_TIMES = 3

Values = dict[str, Array]
Result = TypeVar("Result")


def measure_cuts(
    manifest: Manifest, blobs: dict[str, bytes], runtime: str, inputs: Values
) -> tuple[CutProfile, ...]:
    """The cuts of `manifest` with every way to send them; some CPU seconds.

    Args:
        manifest: the model.
        blobs: its weights by digest.
        runtime: computes the activations, and what becomes of rounded ones.
        inputs: by the graph's names, for a model that takes no images.

    Raises:
        StageError: the runtime is not installed, or cannot run the model.
    """
    engine, count = open_runtime(runtime), len(manifest.blocks)
    blocks: list[LoadedStage] = []
    try:
        for index in range(count):
            stage = slice_stage(manifest, index, index + 1)
            blocks.append(engine.load(stage, blobs))
        values = [_input(manifest, inputs)]
        for block in blocks:
            # A runtime may use its outputs' memory again.
            values.append({name: array.copy("K") for name, array in block.run(values[-1]).items()})
        return tuple(
            replace(cut, packed=_ways(values[cut.index], blocks[cut.index :], values[-1]))
            for cut in manifest.cuts
        )
    finally:
        for block in blocks:
            block.unload()


def _input(manifest: Manifest, inputs: Values) -> Values:
    if manifest.preprocess is None:
        return inputs
    from edge_agent.preprocess import preprocess

    (value,) = manifest.graph.inputs
    return {value.name: preprocess(PHOTO.read_bytes(), manifest.preprocess)}


def _ways(crossing: Values, after: Sequence[LoadedStage], outputs: Values) -> tuple[PackedCut, ...]:
    """Every compression that makes the tensors smaller; `outputs` are those of the model."""
    errors: dict[Rounding, float] = {Rounding.NONE: 0.0}
    found = []
    for how in COMPRESSIONS:
        if how == PLAIN:
            continue
        sent, pack_s = _timed(lambda how=how: _pack(crossing, how))  # type: ignore[misc]
        if not any(isinstance(tensor, PackedTensor) for tensor in sent.values()):
            continue
        received, unpack_s = _timed(lambda sent=sent: _unpack(sent))  # type: ignore[misc]
        if how.rounding not in errors:
            values = received
            for block in after:
                values = block.run(values)
            errors[how.rounding] = max(
                relative_error(values[name], wanted) for name, wanted in outputs.items()
            )
        if not np.isfinite(errors[how.rounding]):
            continue
        found.append(
            PackedCut(
                str(how),
                sum(
                    tensor.nbytes if isinstance(tensor, PackedTensor) else tensor.data.nbytes
                    for tensor in sent.values()
                ),
                pack_s,
                unpack_s,
                errors[how.rounding],
            )
        )
    return tuple(found)


def _pack(values: Values, how: Compression) -> dict[str, WireTensor | PackedTensor]:
    return {name: pack(array, how) for name, array in values.items()}


def _unpack(sent: dict[str, WireTensor | PackedTensor]) -> Values:
    return {
        name: unpack(tensor, most_bytes=2**63)
        if isinstance(tensor, PackedTensor)
        else from_wire(tensor)
        for name, tensor in sent.items()
    }


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What `work` makes, and the median of its CPU seconds."""
    samples = []
    for _ in range(_TIMES):
        began = time.thread_time()
        made = work()
        samples.append(time.thread_time() - began)
    return made, statistics.median(samples)

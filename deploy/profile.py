"""How long each block of a model takes on this machine, with one runtime, at 1.0 CPU.

Blocks run one after the other on each other's outputs, as in a pipeline, so that weights are as cold and
activations as ordinary as they will be there. A block run alone pays for entering and leaving the runtime,
which in a stage is paid once; so pairs of blocks and the whole model are timed as well, and the blocks are
brought down to its time.

CPU time and one thread: a quota, a busy neighbour or more cores must not show in the figures.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.photo import PHOTO
from edge_agent.calibration import calibration_graphs
from edge_agent.runtimes import LoadedStage, Runtime, open_runtime
from orchestrator.models.examples import index_bounds, whole_numbers
from orchestrator.models.macs import macs
from orchestrator.models.slice import slice_stage
from shared.graph import CostClass, Graph, Node, TensorSpec, cost_class
from shared.manifest import Manifest
from shared.messages.node import Calibration
from shared.package import Measured
from shared.tensor import Array
from shared.transform import Transform

_BUDGET_S = 1.2
"""CPU seconds for the blocks, and as many for either half of the pairs and for the whole model."""
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 15
_LEAST_SHARE = 0.05
"""No block is brought below this part of its own measured time."""


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """Median CPU seconds: of each block run alone, of each and the next as one, of the whole model as one."""

    blocks: tuple[float, ...]
    pairs: tuple[float, ...]
    whole: float


def measure(
    manifest: Manifest, blobs: Mapping[str, bytes], runtime: str, calibration: Calibration
) -> Measured:
    """Time `manifest` with `runtime`; a few CPU seconds.

    Args:
        manifest: the model.
        blobs: its weights by digest.
        runtime: the runtime's name.
        calibration: this machine's, with that runtime.

    Raises:
        StageError: the runtime is not installed, or cannot run the model.
    """
    engine = open_runtime(runtime)
    times = time_blocks(manifest, blobs, engine)
    seconds = without_entry_cost(times)
    return Measured(
        block_seconds=seconds,
        input_seconds=0.0 if manifest.preprocess is None else time_input(manifest.preprocess),
        input_bytes=None if manifest.preprocess is None else PHOTO.stat().st_size,
        runtime_bytes=calibration.runtime_bytes,
        reference=dict(calibration.seconds),
        block_shares=block_shares(manifest, calibration.seconds),
    )


def time_blocks(manifest: Manifest, blobs: Mapping[str, bytes], engine: Runtime) -> BlockTimes:
    """Run the blocks in turn, then all pairs of neighbours, then the whole, and take medians."""
    count = len(manifest.blocks)
    inputs = _example(manifest.graph)

    def medians(*bounds: int) -> list[float]:
        """Of the stages between `bounds`, one after the other."""
        stages: list[LoadedStage] = []
        try:
            for start, stop in itertools.pairwise(bounds):
                stages.append(engine.load(slice_stage(manifest, start, stop), blobs))
            rounds = _rounds(stages, inputs)
        finally:
            for stage in stages:
                stage.unload()
        return [statistics.median(times) for times in zip(*rounds, strict=True)]

    blocks = medians(*range(count + 1))
    pairs = [0.0] * (count - 1)
    # Two pipelines: pairs from the first block on, and from the second.
    for bounds in ((*range(0, count, 2), count), (0, *range(1, count, 2), count)):
        for (start, stop), seconds in zip(
            itertools.pairwise(bounds), medians(*bounds), strict=True
        ):
            if stop - start == 2:
                pairs[start] = seconds
    (whole,) = medians(0, count)
    return BlockTimes(tuple(blocks), tuple(pairs), whole)


def without_entry_cost(times: BlockTimes) -> tuple[float, ...]:
    """Block times that sum to the whole model's: each less what entering and leaving it costs.

    What a cut costs is what its two neighbours take more apart than as a pair; each bears half. It differs
    from cut to cut: a runtime with a layout of its own (ONNX Runtime) turns every tensor that crosses. What
    a block then has below the least share is not taken from it, and the rest is scaled to the sum.
    """
    cuts = [
        max(0.0, first + second - pair)
        for (first, second), pair in zip(itertools.pairwise(times.blocks), times.pairs, strict=True)
    ]
    left = [
        max(_LEAST_SHARE * seconds, seconds - (before + after) / 2)
        for seconds, before, after in zip(times.blocks, [0.0, *cuts], [*cuts, 0.0], strict=True)
    ]
    scale = times.whole / sum(left)
    return tuple(seconds * scale for seconds in left)


def time_input(transform: Transform) -> float:
    """Median CPU seconds to decode our photograph and make the model's input of it."""
    from edge_agent.preprocess import preprocess

    photo = PHOTO.read_bytes()
    samples = []
    for _ in range(7):
        began = time.thread_time()
        preprocess(photo, transform)
        samples.append(time.thread_time() - began)
    return statistics.median(samples[1:])


def block_shares(
    manifest: Manifest, reference: Mapping[str, float]
) -> tuple[tuple[float, ...], ...]:
    """How each block's time divides over the classes that nodes are calibrated with; each row sums to 1.

    A row has the order of `CostClass`. A block's operators are charged what this machine took for as much
    work of their class when it was calibrated (`reference`), and each an operator's overhead beside it.
    """
    graphs = calibration_graphs()
    # Seconds for a unit of each class's work.
    rates = np.array(
        [
            reference.get(name, 0.0) / _work(graph.nodes, graph.specs())[column]
            for column, (name, graph) in enumerate((name, graphs[name]) for name in CostClass)
        ]
    )
    specs = manifest.graph.specs()
    rows = []
    for block in manifest.blocks:
        nodes = () if manifest.graph.is_whole else manifest.graph.nodes[slice(*block.nodes)]
        seconds = _work(nodes, specs) * rates
        total = float(seconds.sum())
        # A block without an operator, an opaque one, no figure to go by: nothing says what bounds it.
        shares = seconds / total if total > 0 else np.full(len(rates), 1.0 / len(rates))
        rows.append(tuple(round(float(share), 6) for share in shares))
    return tuple(rows)


def _work(nodes: Iterable[Node], specs: dict[str, TensorSpec]) -> NDArray[np.float64]:
    """Multiply-adds by class, bytes moved for what only moves memory, and a count of operators.

    In the order of `CostClass`.
    """
    work = dict.fromkeys(CostClass, 0.0)
    for node in nodes:
        kind = cost_class(node, specs)
        moved = node.spec.nbytes + sum(specs[ref].nbytes for ref in node.refs())
        work[kind] += moved if kind is CostClass.MEMORY else macs(node, specs)
        work[CostClass.OVERHEAD] += 1.0
    return np.array([*work.values()])


def _rounds(stages: Sequence[LoadedStage], inputs: dict[str, Array]) -> list[list[float]]:
    """CPU seconds of each stage per round, the first round (cold buffers) left out."""
    rounds: list[list[float]] = []
    spent = 0.0
    while len(rounds) <= _LEAST_ROUNDS or (len(rounds) <= _MOST_ROUNDS and spent < _BUDGET_S):
        values = inputs
        times = []
        for stage in stages:
            began = time.thread_time()
            values = stage.run(values)
            times.append(max(1e-7, time.thread_time() - began))
        rounds.append(times)
        spent += sum(times)
    return rounds[1:]


def _example(graph: Graph) -> dict[str, Array]:
    """Inputs of ordinary size; the same every time."""
    random, bounds = np.random.default_rng(0), index_bounds(graph)
    return {
        value.name: random.standard_normal(value.spec.shape).astype(value.spec.dtype)
        if np.dtype(value.spec.dtype).kind == "f"
        else whole_numbers(value.spec, bounds.get(value.name), random)
        for value in graph.inputs
    }

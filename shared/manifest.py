"""Everything the control plane knows about a model: its graph, where it may be cut, what each block costs.

A manifest is JSON and names its weights by digest only. Blocks are numbered 0..L-1 and hold the nodes
[start, stop) of the graph; cut j (0 < j < L) lies before block j.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from shared.batching import cuts_apart, find_batching
from shared.errors import GraphError
from shared.graph import Graph, validate
from shared.profile import BlockProfile, CutProfile, LeafProfile, ModelProfile
from shared.transform import Transform

TOLERANCE = 1e-5
"""The promise: the largest difference to the original's output, relative to its largest value."""


class Level(StrEnum):
    """How far the graph was optimised; O0 and O1 promise the original's answers within `TOLERANCE`."""

    O0 = "O0"
    """As traced, less what does nothing at inference."""
    O1 = "O1"
    """BatchNorm folded into the convolution or linear layer before it, global pools as plain averages."""
    O2 = "O2"
    """As O1, on eight bits: static scales from the user's own samples, per channel for weights. Not exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """How well a model at level O2 answers, against itself at O1 on samples that no range was taken from.

    `method` says how ranges were chosen; of `samples` so many were `held_out`. `agreement_ratio` is the share
    of the held-out ones with the same class first, `max_relative_error` the largest difference of an output,
    relative to the largest output.
    """

    method: str
    samples: int
    held_out: int
    agreement_ratio: float
    max_relative_error: float


class WeightsMark(StrEnum):
    """Where the weights are from; answers of a model with random weights say so."""

    DEFAULT = "default"
    NONE = "none"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Block:
    """The smallest piece of a model that may be cut around.

    `nodes` is [start, stop) in the graph, `macs` the multiply-adds of one job, `weight_bytes` what its blob
    holds, `peak_bytes` the most bytes of live activations while it runs (those that only pass through
    included), `seconds` its measured time at 1.0 CPU (0.0: not measured), `blob` the SHA-256 of its
    weights (null: it has none).
    """

    index: int
    name: str
    nodes: tuple[int, int]
    macs: int
    weight_bytes: int
    peak_bytes: int
    seconds: float = 0.0
    blob: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """One model, ready to be planned for and sliced.

    `input_bytes` and `output_bytes` are those of the graph's own dense tensors. `leaves` are the leaf
    modules of the model before folding, for the paper's rules. `max_relative_error` is what was measured
    when it was imported: the largest difference to the original's outputs, relative to the largest output
    (null: not measured). `level` is how the graph was optimised, which is less than was asked for where
    only the plain kernels keep the promise (`graph.kernels`). `quantisation` is there at level O2. `whole`
    says why the model is served in one piece (empty: it may be cut).
    """

    model: str
    level: Level
    weights: WeightsMark
    graph: Graph
    blocks: tuple[Block, ...]
    cuts: tuple[CutProfile, ...]
    input_bytes: int
    output_bytes: int
    leaves: tuple[LeafProfile, ...] = ()
    preprocess: Transform | None = None
    labels: tuple[str, ...] | None = None
    max_relative_error: float | None = None
    quantisation: Quantisation | None = None
    whole: str = ""
    schema: int = 1

    def with_seconds(self, seconds: Sequence[float]) -> Manifest:
        """The same model with measured block times (seconds at 1.0 CPU, one per block).

        Raises:
            GraphError: not one time per block.
        """
        if len(seconds) != len(self.blocks):
            raise GraphError(
                f"block times of {self.model!r}",
                expected=f"{len(self.blocks)}, one per block",
                got=str(len(seconds)),
            )
        blocks = (
            replace(block, seconds=time) for block, time in zip(self.blocks, seconds, strict=True)
        )
        return replace(self, blocks=tuple(blocks))

    def profile(
        self,
        *,
        input_seconds: float = 0.0,
        runtime_bytes: int = 0,
        input_bytes: int | None = None,
    ) -> ModelProfile:
        """What the planner takes.

        `input_bytes` is the size of a job as it travels to stage 0; None: as the dense tensors.

        Raises:
            ConfigurationError: no block has a measured time.
        """
        batching = find_batching(self.graph)
        apart = cuts_apart(self.graph, batching, [block.nodes[0] for block in self.blocks[1:]])
        return ModelProfile(
            model=self.model,
            blocks=tuple(
                BlockProfile(b.index, b.name, b.macs, b.weight_bytes, b.seconds, b.peak_bytes)
                for b in self.blocks
            ),
            cuts=tuple(
                replace(cut, items_apart=each) for cut, each in zip(self.cuts, apart, strict=True)
            ),
            input_bytes=self.input_bytes if input_bytes is None else input_bytes,
            output_bytes=self.output_bytes,
            input_seconds=input_seconds,
            runtime_bytes=runtime_bytes,
            leaves=self.leaves,
            whole=self.whole,
            fixed_batch=batching.fixed,
        )


def validate_manifest(manifest: Manifest) -> None:
    """Check that graph, blocks and cuts fit together; for manifests that came over the wire.

    Raises:
        GraphError: the graph is malformed, or blocks do not cover its nodes in order, or the cuts are not
            those between the blocks, or there are any in a model that cannot be taken apart.
    """
    validate(manifest.graph)
    if manifest.graph.is_whole and len(manifest.blocks) > 1:
        raise GraphError(
            f"manifest of {manifest.model!r}: blocks of a model that is served whole",
            expected="1",
            got=str(len(manifest.blocks)),
        )
    at = 0
    for index, block in enumerate(manifest.blocks):
        start, stop = block.nodes
        if block.index != index or start != at or stop <= start:
            raise GraphError(
                f"manifest of {manifest.model!r}: block {index}",
                expected=f"index {index}, nodes from {at}, at least one",
                got=f"index {block.index}, nodes [{start}, {stop})",
            )
        at = stop
    if at != len(manifest.graph.nodes):
        raise GraphError(
            f"manifest of {manifest.model!r}: blocks",
            expected=f"all {len(manifest.graph.nodes)} nodes of the graph",
            got=f"the first {at}",
        )
    if [cut.index for cut in manifest.cuts] != list(range(1, len(manifest.blocks))):
        raise GraphError(
            f"manifest of {manifest.model!r}: cuts",
            expected=f"1..{len(manifest.blocks) - 1}",
            got=str([cut.index for cut in manifest.cuts])[:200],
        )

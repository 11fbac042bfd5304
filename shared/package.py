"""A model ready to be served: its manifest, and what was measured of it.

This is what `amp4ec serve` uploads as one JSON artifact (the weights travel beside it, a blob per block)
and all that the orchestrator needs to plan, to slice and to write answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from shared.codec import decode_json, encode_json
from shared.errors import ConfigurationError
from shared.graph import CostClass
from shared.manifest import Manifest, validate_manifest
from shared.messages.stage import Blob
from shared.profile import ModelProfile

_SUM_TOLERANCE = 1e-3
"""Shares travel rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One runtime's measurements on the machine that profiled the model, at 1.0 CPU.

    `block_seconds` are CPU seconds per block, `input_seconds` those of decoding and preprocessing an
    image, `input_bytes` the size of that image's file, which is what travels to stage 0 (null: jobs are
    the graph's own dense tensors), `runtime_bytes` what the process holds with the runtime and no model.
    `reference` is that machine's own calibration (seconds by class of operator): a node's calibration
    against it gives the node's speed. `block_shares` say how each block's time divides over those classes, in
    the order of `CostClass`; each row sums to 1 (empty: not known).
    """

    block_seconds: tuple[float, ...]
    input_seconds: float = 0.0
    input_bytes: int | None = None
    runtime_bytes: int = 0
    reference: dict[str, float] = field(default_factory=dict)
    block_shares: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPackage:
    """`measured` is by runtime; `weights` are the blobs that the manifest's blocks name."""

    manifest: Manifest
    measured: dict[str, Measured]
    weights: tuple[Blob, ...]
    schema: int = 1

    def to_bytes(self) -> bytes:
        """The artifact; equal packages give equal bytes, and so one digest."""
        return encode_json(self)

    def profile(self, runtime: str) -> ModelProfile:
        """What the planner takes, as measured with `runtime`.

        Raises:
            ConfigurationError: the model was not measured with that runtime, or not block by block.
        """
        measured = self.measured.get(runtime)
        if measured is None:
            raise ConfigurationError(
                f"{self.manifest.model!r} was not measured with the runtime",
                expected=f"one of {', '.join(sorted(self.measured)) or 'none'}",
                got=runtime,
            )
        _check_shares(measured, len(self.manifest.blocks))
        return self.manifest.with_seconds(measured.block_seconds).profile(
            input_seconds=measured.input_seconds,
            runtime_bytes=measured.runtime_bytes,
            input_bytes=measured.input_bytes,
        )


def read_package(data: bytes) -> ModelPackage:
    """A package that came over the wire, checked whole.

    Raises:
        ProtocolError: not a package.
        GraphError: the manifest contradicts itself or uses an operator off the list.
        ConfigurationError: a digest that blocks name is not among the weights, or measurements
            that do not fit the blocks.
    """
    package = decode_json(data, ModelPackage)
    if package.schema != 1:
        raise ConfigurationError("package schema", expected="1", got=str(package.schema))
    validate_manifest(package.manifest)
    have = {blob.digest for blob in package.weights}
    for block in package.manifest.blocks:
        if block.blob is not None and block.blob not in have:
            raise ConfigurationError(
                f"weights of block {block.index}", expected="a blob of the package", got=block.blob
            )
    for runtime in package.measured:
        package.profile(runtime)
    return package


def _check_shares(measured: Measured, num_blocks: int) -> None:
    rows = measured.block_shares
    if not rows:
        return
    if len(rows) != num_blocks:
        raise ConfigurationError(
            "block_shares", expected=f"{num_blocks} rows, one for each block", got=str(len(rows))
        )
    for index, row in enumerate(rows):
        if (
            len(row) != len(CostClass)
            or not all(0.0 <= share <= 1.0 for share in row)
            or not math.isclose(sum(row), 1.0, abs_tol=_SUM_TOLERANCE)
        ):
            raise ConfigurationError(
                f"block_shares of block {index}",
                expected=f"shares of {', '.join(CostClass)} that sum to 1",
                got=repr(row),
            )

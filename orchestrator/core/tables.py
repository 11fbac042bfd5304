"""The cost of every possible stage on every kind of node, as arrays.

The equations are those of `cost.py`; here they are worked out for all `[start, stop)` at once. Nodes that are
equal in all but their name are one kind, so that ten equal devices cost the search no more than one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.core import cost
from shared.profile import DEFAULT_ZONE, ModelProfile, NodeProfile

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_all_but_name = operator.attrgetter(
    *(field for field in NodeProfile.__dataclass_fields__ if field != "name")
)


@dataclass(frozen=True, slots=True)
class Kind:
    """Nodes that are equal in all but their name; `node` is the first of them, `names` are sorted."""

    node: NodeProfile
    names: tuple[str, ...]


def group_nodes(nodes: Iterable[NodeProfile]) -> tuple[Kind, ...]:
    """Group equal nodes, kinds in the order of their first node's name."""
    kinds: dict[object, list[NodeProfile]] = {}
    for node in sorted(nodes, key=lambda node: node.name):
        kinds.setdefault(_all_but_name(node), []).append(node)
    return tuple(Kind(same[0], tuple(node.name for node in same)) for same in kinds.values())


@dataclass(frozen=True, slots=True)
class ModelTables:
    """What a model asks of any node. With L blocks, boundaries 0..L; index `[start, stop]`, shape (L+1, L+1).

    `boundary_bytes` has shape (L+1,), `block_s` (L,). All `_s` are seconds at 1.0 CPU of the profiled
    machine; `link_s` is what unpacking and packing the tensors at a stage's two ends takes; `work_s` is that
    of a node without factors of its own, with `link_s` and, where start is 0, preprocessing (`input_s`).
    `memory_bytes` is what a stage needs, without headroom. Entries with stop <= start mean nothing;
    `possible` is False there. `exposed` has, per start, the exposure ratio of a stage outside the `home_zone`
    of the input; none outside may start before block `first_outside`.
    """

    boundary_bytes: FloatArray
    block_s: FloatArray
    link_s: FloatArray
    input_s: float
    work_s: FloatArray
    memory_bytes: IntArray
    possible: npt.NDArray[np.bool_]
    exposed: FloatArray
    home_zone: str
    first_outside: int

    @property
    def num_blocks(self) -> int:
        """L."""
        return len(self.boundary_bytes) - 1

    def fits(self, node: NodeProfile) -> npt.NDArray[np.bool_]:
        """The stages that a node's memory and zone allow."""
        fits = self.possible & (self.memory_bytes <= cost.usable_bytes(node))
        if node.zone != self.home_zone:
            fits[: self.first_outside] = False
        return fits

    def work_on(self, node: NodeProfile) -> FloatArray:
        """`work_s` with each block's factor on that node.

        Raises:
            ConfigurationError: the node's factors are for another model.
        """
        if not node.block_factors and node.input_factor == 1.0:
            return self.work_s
        block_s = self.block_s * np.array(node.factors(self.num_blocks))
        return _work(block_s, self.input_s * node.input_factor) + self.link_s


@dataclass(frozen=True, slots=True)
class StageTables:
    """Each stage on each kind, shape (K, L+1, L+1); infinite where it is none, does not fit or may not be.

    `latency_s` is compute + receive + send, `energy_j` that of one job. The exposure of a pipeline is the
    greatest of its stages', since the earlier a stage outside starts, the more it sees. `price_per_hour` has
    shape (K,).
    """

    period_s: FloatArray
    latency_s: FloatArray
    energy_j: FloatArray
    exposure_ratio: FloatArray
    price_per_hour: FloatArray


def model_tables(
    profile: ModelProfile,
    in_flight: int,
    *,
    home_zone: str = DEFAULT_ZONE,
    first_outside: int = 0,
) -> ModelTables:
    """Work out a model's tables; `in_flight` jobs are buffered in the worst case."""
    size = len(profile.blocks) + 1
    block_s = np.array([block.seconds for block in profile.blocks])
    weights = np.zeros(size, dtype=np.int64)
    np.cumsum([block.weight_bytes for block in profile.blocks], out=weights[1:])
    possible = np.triu(np.ones((size, size), dtype=np.bool_), k=1)
    # peaks[start, stop] is the largest of blocks start..stop-1, so block b counts from column b + 1 on
    peaks = np.zeros((size, size), dtype=np.int64)
    peaks[:, 1:] = [block.peak_bytes for block in profile.blocks]
    np.maximum.accumulate(np.where(possible, peaks, 0), axis=1, out=peaks)
    boundary = np.array(profile.boundary_bytes(), dtype=np.int64)
    buffers = in_flight * np.maximum(boundary[:, None], boundary[None, :])
    unpack_s = np.array([0.0, *(cut.unpack_s for cut in profile.cuts), 0.0])
    pack_s = np.array([0.0, *(cut.pack_s for cut in profile.cuts), 0.0])
    link_s = unpack_s[:, None] + pack_s[None, :]
    return ModelTables(
        boundary_bytes=boundary.astype(np.float64),
        block_s=block_s,
        link_s=link_s,
        input_s=profile.input_seconds,
        work_s=_work(block_s, profile.input_seconds) + link_s,
        memory_bytes=weights[None, :] - weights[:, None] + peaks + profile.runtime_bytes + buffers,
        possible=possible,
        exposed=np.array(cost.exposures(profile)),
        home_zone=home_zone,
        first_outside=first_outside,
    )


def stage_tables(model: ModelTables, kinds: Sequence[Kind]) -> StageTables:
    """Price every stage on every kind, in the order of `kinds`."""
    size = model.num_blocks + 1
    period, latency, energy, exposure = np.empty((4, len(kinds), size, size))
    for index, kind in enumerate(kinds):
        node = kind.node
        moved = model.boundary_bytes[:, None] + model.boundary_bytes[None, :]
        messages = node.message_s * cost.MESSAGES_PER_STAGE + node.byte_s * moved
        compute = model.work_on(node) / node.rate + messages
        receive = (model.boundary_bytes / node.down_bytes_per_s)[:, None]
        send = (model.boundary_bytes / node.up_bytes_per_s)[None, :]
        fits = model.fits(node)
        period[index] = np.where(fits, np.maximum(compute, np.maximum(receive, send)), np.inf)
        latency[index] = np.where(fits, compute + receive + send, np.inf)
        energy[index] = np.where(fits, node.power_w * compute, np.inf)
        outside = model.exposed[:, None] if node.zone != model.home_zone else 0.0
        exposure[index] = np.where(fits, outside, np.inf)
    prices = np.array([kind.node.price_per_hour for kind in kinds])
    return StageTables(period, latency, energy, exposure, prices)


def _work(block_s: FloatArray, input_s: float) -> FloatArray:
    """Seconds of the blocks [start, stop), shape (L+1, L+1), `input_s` added where start is 0."""
    sums = np.concatenate(([0.0], np.cumsum(block_s)))
    work: FloatArray = sums[None, :] - sums[:, None]
    work[0] += input_s
    return work

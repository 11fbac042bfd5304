"""What is known before anything runs: how heavy a model's blocks are and how strong a node is.

Blocks are numbered 0..L-1. Cut j (0 < j < L) lies before block j. Seconds are measured on one machine
(the profiled machine) at 1.0 CPU; a node's `speed` is relative to that machine, so that block i takes
`seconds_i * block_factors_i / (cpu * speed)` on the node (ALGORITHMS.md, section 3, where the factors are 1:
a node may be slower at some operators than at others). Field names are those of the JSON and
TOML files there. A value that makes no sense never exists: construction raises ConfigurationError that
names the field, what was expected and what came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from shared.compression import Compression
from shared.errors import ConfigurationError

DEFAULT_ZONE = "default"
"""The zone of what does not name one."""
_LARGEST_WHOLE = 2**63 - 1
"""Beyond that a whole number cannot always become a float."""
UNCOMPRESSED = "none"
"""The compression of tensors that travel as they are."""


@dataclass(frozen=True, slots=True)
class BlockProfile:
    """One block: the smallest piece of the model that may be cut around.

    `macs` are multiply-adds of one job, `weight_bytes` its parameters and buffers, `peak_bytes` the most
    bytes of live tensors while it runs (0: not measured), `seconds` its time at 1.0 CPU.
    """

    index: int
    name: str
    macs: int
    weight_bytes: int
    seconds: float
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        where = f"block {self.index}"
        _count(where, "index", self.index)
        _count(where, "macs", self.macs)
        _count(where, "weight_bytes", self.weight_bytes)
        _not_negative(where, "seconds", self.seconds)
        _count(where, "peak_bytes", self.peak_bytes)


@dataclass(frozen=True, slots=True)
class PackedCut:
    """What one of `shared.compression` makes of a cut's tensors, as measured.

    `bytes` is what travels, `pack_s` and `unpack_s` are CPU seconds of the profiled machine, `error` is the
    largest difference that it makes to the model's output, relative to the largest output: 0 where
    nothing is rounded.
    """

    compression: str
    bytes: int
    pack_s: float
    unpack_s: float
    error: float = 0.0

    def __post_init__(self) -> None:
        where = f"compression {self.compression!r}"
        Compression.parse(self.compression)
        _count(where, "bytes", self.bytes)
        for field in ("pack_s", "unpack_s", "error"):
            _not_negative(where, field, getattr(self, field))


@dataclass(frozen=True, slots=True)
class CutProfile:
    """The cut before block `index`: `bytes` is the sum over the `tensors` live tensors that cross it.

    `packed` has the ways to send them in fewer bytes that were measured. `pack_s` and `unpack_s` are CPU
    seconds of the profiled machine that sending and receiving them costs beyond copying `bytes`.
    `items_apart`: several items' tensors can cross it in one message, one item behind the other.
    """

    index: int
    bytes: int
    tensors: int
    packed: tuple[PackedCut, ...] = ()
    pack_s: float = 0.0
    unpack_s: float = 0.0
    items_apart: bool = True

    def __post_init__(self) -> None:
        where = f"cut {self.index}"
        _count(where, "index", self.index, least=1)
        _count(where, "bytes", self.bytes)
        _count(where, "tensors", self.tensors, least=1)
        _not_negative(where, "pack_s", self.pack_s)
        _not_negative(where, "unpack_s", self.unpack_s)
        object.__setattr__(self, "packed", tuple(self.packed))

    def way(self, compression: str) -> PackedCut:
        """How the tensors travel with a compression; as they are where it was not measured."""
        for packed in self.packed:
            if packed.compression == compression:
                return packed
        return PackedCut(UNCOMPRESSED, self.bytes, self.pack_s, self.unpack_s)


def _packed(cut: CutProfile, way: PackedCut) -> CutProfile:
    return replace(cut, bytes=way.bytes, pack_s=way.pack_s, unpack_s=way.unpack_s)


@dataclass(frozen=True, slots=True)
class LeafProfile:
    """One leaf module in call order, for the paper's rules: `cost` is the paper's, `block` its block."""

    name: str
    type: str
    cost: int
    block: int

    def __post_init__(self) -> None:
        where = f"leaf {self.name}"
        _count(where, "cost", self.cost)
        _count(where, "block", self.block)


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """A model as the planner sees it: L blocks, the L - 1 cuts between them, and its two ends.

    `input_bytes` is the job's input as it travels to the first stage, `input_seconds` the time to decode
    and preprocess it at 1.0 CPU, `output_bytes` the result, `runtime_bytes` what the runtime takes on each
    node before a weight is loaded. `whole` says why the model cannot be cut (empty: it can).
    `fixed_batch` says why it takes one item at a time (empty: it need not).
    """

    model: str
    blocks: tuple[BlockProfile, ...]
    cuts: tuple[CutProfile, ...]
    input_bytes: int
    output_bytes: int
    input_seconds: float = 0.0
    runtime_bytes: int = 0
    leaves: tuple[LeafProfile, ...] = ()
    whole: str = ""
    fixed_batch: str = ""

    def __post_init__(self) -> None:
        where = f"profile of {self.model!r}"
        # A list would make the value mutable, and unhashable.
        for field in ("blocks", "cuts", "leaves"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not self.blocks:
            raise ConfigurationError(f"{where}: blocks", expected="at least one block", got="none")
        _indices(where, "blocks", [block.index for block in self.blocks], first=0)
        _indices(where, "cuts", [cut.index for cut in self.cuts], first=1)
        if len(self.cuts) != len(self.blocks) - 1:
            raise ConfigurationError(
                f"{where}: cuts",
                expected=f"{len(self.blocks) - 1}, one between each two blocks",
                got=str(len(self.cuts)),
            )
        _count(where, "input_bytes", self.input_bytes)
        _count(where, "output_bytes", self.output_bytes)
        _not_negative(where, "input_seconds", self.input_seconds)
        _count(where, "runtime_bytes", self.runtime_bytes)
        _positive(where, "seconds of all blocks", sum(block.seconds for block in self.blocks))
        for leaf in self.leaves:
            if leaf.block >= len(self.blocks):
                raise ConfigurationError(
                    f"{where}: block of leaf {leaf.name!r}",
                    expected=f"0..{len(self.blocks) - 1}",
                    got=str(leaf.block),
                )

    @property
    def work_s(self) -> float:
        """Seconds of one job at 1.0 CPU on the profiled machine, preprocessing included."""
        return self.input_seconds + math.fsum(block.seconds for block in self.blocks)

    def boundary_bytes(self) -> tuple[int, ...]:
        """Bytes at boundary 0..L: the input, the L - 1 cuts, the output (`a_j` of ALGORITHMS.md)."""
        return (self.input_bytes, *(cut.bytes for cut in self.cuts), self.output_bytes)

    def sent(self, compressions: Mapping[int, str]) -> ModelProfile:
        """The same model with the tensors of some cuts (by index) compressed."""
        if not compressions:
            return self
        cuts = list(self.cuts)
        for index, compression in compressions.items():
            cuts[index - 1] = _packed(cuts[index - 1], cuts[index - 1].way(compression))
        return replace(self, cuts=tuple(cuts))

    def travelling(self, compression: str, max_error: float = 0.0) -> ModelProfile:
        """The same model with tensors between stages in fewer bytes.

        Where a compression was not measured, or changes the output by more than `max_error`, they travel as
        they are.
        """
        cuts = []
        for cut in self.cuts:
            way = cut.way(compression)
            if way.error > max_error:
                way = cut.way(UNCOMPRESSED)
            cuts.append(_packed(cut, way))
        return replace(self, cuts=tuple(cuts))


@dataclass(frozen=True, slots=True)
class NodeProfile:
    """A device: `cpu` is the share of cores it may use, `speed` one core's relative to the profiled one.

    `block_factors` has, for one model, what each block's seconds are to be multiplied with beyond that; empty
    is 1 for each; `input_factor` is the same for reading and preprocessing the job's input.
    `message_s` is the wall time that receiving or sending one message costs the node's own CPU, `byte_s` what
    each byte of it adds (copies, system calls, the codec); 0 leaves the plain cost of ALGORITHMS.md.
    """

    name: str
    cpu: float
    speed: float
    memory_bytes: int
    up_bytes_per_s: float
    down_bytes_per_s: float
    message_s: float
    price_per_hour: float = 0.0
    power_w: float = 0.0
    zone: str = DEFAULT_ZONE
    byte_s: float = 0.0
    block_factors: tuple[float, ...] = ()
    input_factor: float = 1.0

    def __post_init__(self) -> None:
        where = f"node {self.name!r}"
        if not isinstance(self.block_factors, tuple | list):
            raise ConfigurationError(
                f"{where}: block_factors",
                expected="a list of numbers, one for each block",
                got=repr(self.block_factors),
            )
        # A list would make the value mutable, and unhashable.
        object.__setattr__(self, "block_factors", tuple(self.block_factors))
        if not isinstance(self.name, str) or not self.name:
            raise ConfigurationError(f"{where}: name", expected="some text", got=repr(self.name))
        _positive(where, "cpu", self.cpu)
        _positive(where, "speed", self.speed)
        _count(where, "memory_bytes", self.memory_bytes, least=1)
        _positive(where, "up_bytes_per_s", self.up_bytes_per_s)
        _positive(where, "down_bytes_per_s", self.down_bytes_per_s)
        _not_negative(where, "message_s", self.message_s)
        _not_negative(where, "byte_s", self.byte_s)
        _not_negative(where, "price_per_hour", self.price_per_hour)
        _not_negative(where, "power_w", self.power_w)
        if not isinstance(self.zone, str) or not self.zone:
            raise ConfigurationError(f"{where}: zone", expected="some text", got=repr(self.zone))
        for factor in self.block_factors:
            _positive(where, "block_factors", factor)
        _positive(where, "input_factor", self.input_factor)

    @property
    def rate(self) -> float:
        """Seconds of the profiled machine that this node works off in one second."""
        return self.cpu * self.speed

    @property
    def best_rate(self) -> float:
        """The same with nothing but the work that suits it best: no mix is worked off faster."""
        return self.rate / min(self.input_factor, *(self.block_factors or (1.0,)))

    def factors(self, num_blocks: int) -> tuple[float, ...]:
        """`block_factors`, one for each block of a model; ones where it has none.

        Raises:
            ConfigurationError: they are for a model with another number of blocks.
        """
        if not self.block_factors:
            return (1.0,) * num_blocks
        if len(self.block_factors) != num_blocks:
            raise ConfigurationError(
                f"node {self.name!r}: block_factors",
                expected=f"{num_blocks}, one for each block of the model, or none",
                got=str(len(self.block_factors)),
            )
        return self.block_factors


def _number(where: str, field: str, value: object, expected: str) -> float:
    # bool is an int to Python and a mistake to us
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or (abs(value) > _LARGEST_WHOLE if isinstance(value, int) else not math.isfinite(value))
    ):
        raise ConfigurationError(f"{where}: {field}", expected=expected, got=repr(value))
    return value


def _positive(where: str, field: str, value: object) -> None:
    expected = "a finite number above 0"
    if _number(where, field, value, expected) <= 0:
        raise ConfigurationError(f"{where}: {field}", expected=expected, got=repr(value))


def _not_negative(where: str, field: str, value: object) -> None:
    expected = "a finite number, 0 or more"
    if _number(where, field, value, expected) < 0:
        raise ConfigurationError(f"{where}: {field}", expected=expected, got=repr(value))


def _count(where: str, field: str, value: object, *, least: int = 0) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not least <= value <= _LARGEST_WHOLE
    ):
        raise ConfigurationError(
            f"{where}: {field}",
            expected=f"a whole number, {least} or more",
            got=repr(value)[:100],
        )


def _indices(where: str, field: str, indices: list[int], *, first: int) -> None:
    expected = list(range(first, first + len(indices)))
    if indices != expected:
        wrong = next(i for i, e in zip(indices, expected, strict=True) if i != e)
        raise ConfigurationError(
            f"{where}: indices of {field}",
            expected=f"{first}, {first + 1}, ... in order",
            got=f"{wrong} at position {indices.index(wrong)}",
        )

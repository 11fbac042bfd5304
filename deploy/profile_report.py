"""A profile with what a reader wants to know beside it: layers, runtime, machine; as a value and as JSON.

The JSON is the planner's profile (ALGORITHMS.md, section 3) with optional fields more, so that the same file
is read by `amp4ec plan --profile`, by `amp4ec profile` again, and by anything that knows the planner's form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy.profile_layers import Layer, heads, kernel_text
from shared.codec import decode_json, to_builtins
from shared.errors import ConfigurationError, ProtocolError
from shared.profile import ModelProfile
from shared.profile_file import load_profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """How a profile came about; empty where a file does not say."""

    runtime: str = ""
    machine: str = ""
    level: str = ""
    weights: str = ""
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockRow:
    """What a block is, from its layers; `paper_cost` is None where the model has no modules."""

    kind: str = ""
    parameters: int | None = None
    activation_bytes: int | None = None
    paper_cost: int | None = None


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """A profile and how it came about."""

    profile: ModelProfile
    made: Made = field(default_factory=Made)

    def rows(self) -> list[BlockRow]:
        """One per block."""
        layers: dict[int, list[Layer]] = {}
        for layer in self.made.layers:
            layers.setdefault(layer.block, []).append(layer)
        costs: dict[int, int] = {}
        for leaf in self.profile.leaves:
            costs[leaf.block] = costs.get(leaf.block, 0) + leaf.cost
        first = heads(self.made.layers)
        return [
            BlockRow(
                kind=kernel_text(first[block.index]) if block.index in first else "",
                parameters=_sum("parameters", layers.get(block.index)),
                activation_bytes=_sum("activation_bytes", layers.get(block.index)),
                paper_cost=costs.get(block.index, 0) if self.profile.leaves else None,
            )
            for block in self.profile.blocks
        ]

    def document(self) -> dict[str, Any]:
        """As JSON: the planner's profile, and the optional fields."""
        found: dict[str, Any] = to_builtins(self.profile)
        for block, row in zip(found["blocks"], self.rows(), strict=True):
            block |= {
                "type": row.kind,
                "parameters": row.parameters,
                "activation_bytes": row.activation_bytes,
                "paper_cost": row.paper_cost,
            }
        return {**found, **to_builtins(self.made)}


def read_report(data: bytes) -> ProfileReport:
    """A saved profile.

    Raises:
        ConfigurationError: not JSON, not a profile, or one that contradicts itself; names the field.
    """
    profile = load_profile(data)
    try:
        return ProfileReport(profile, decode_json(data, Made))
    except ProtocolError as error:
        raise ConfigurationError(
            f"profile file: {error.message}", expected=error.expected, got=error.got
        ) from error


def _sum(name: str, layers: Sequence[Layer] | None) -> int | None:
    return None if layers is None else sum(getattr(layer, name) for layer in layers)

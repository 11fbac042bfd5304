"""What a model is offered of nodes that it shares with others.

Memory is exclusive: what the others hold, or are about to load, is not offered.

CPU is reserved for a rate that was asked for: a stage that takes `compute_s` on the whole node and gets
`rate` jobs per second takes `rate * compute_s` of it, and nobody else is offered that share. What is left is
predicted to be split evenly among the models without a rate that use the node, whether they have jobs or
not: a plan then holds when all of them are busy. A model with a rate counts on all that is not reserved
for others. Nothing but the plans keeps a reservation: on a node, jobs of all models queue together.

Links are not split: no more than one stage computes on a node at a time, and links are seldom what limits it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.core import cost
from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.footprint import Footprint, footprints
from orchestrator.core.generation import Generation
from orchestrator.core.plan import PipelinePlan
from orchestrator.core.served import Served
from shared.profile import NodeProfile

LEAST_SHARE = 0.01
"""Of a node's CPU; a node that has less to offer is left out. Also the smallest quota that a kernel takes."""
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Use:
    """Where one model computes: the nodes of its newest generation.

    `reserved` is the share of each node's CPU that its rate takes; None when no rate was asked for. While it
    moves, that is the larger of the old and the new share.
    """

    model: str
    nodes: Collection[str]
    reserved: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Offers:
    """Nodes as one model may plan with them, and the share of each one's CPU that is in that."""

    profiles: tuple[NodeProfile, ...]
    shares: Mapping[str, float] = field(default_factory=dict)


def use_of(served: Served) -> Use | None:
    """What the others have to leave to a model; None when it runs nowhere and is about to run nowhere."""
    newest = served.newest
    if newest is None:
        return None
    if newest.entry.options.rate_per_s is None:
        return Use(served.name, newest.nodes())
    reserved: dict[str, float] = {}
    for generation in served.all_generations():
        for node in generation.nodes():
            share = generation.reserved.get(node, 0.0)
            reserved[node] = max(reserved.get(node, 0.0), share)
    return Use(served.name, newest.nodes(), reserved)


def uses_of(models: Iterable[Served]) -> list[Use]:
    """Those of several models."""
    return [use for served in models if (use := use_of(served)) is not None]


def share_left(uses: Iterable[Use], node: str, *, has_rate: bool) -> float:
    """The share of a node's CPU that is left beside what others use of it."""
    left, sharing = 1.0, 1
    for use in uses:
        if use.reserved is not None:
            left -= use.reserved.get(node, 0.0)
        elif node in use.nodes:
            sharing += 1
    left = max(left, 0.0)
    return left if has_rate else left / sharing


def offers(
    entry: ModelEntry,
    profiles: Iterable[NodeProfile],
    uses: Sequence[Use],
    held: Mapping[str, Footprint],
) -> Offers:
    """What is left of whole nodes for a model, beside what others use and hold (`footprints`)."""
    offered: list[NodeProfile] = []
    shares: dict[str, float] = {}
    for profile in profiles:
        share = share_left(uses, profile.name, has_rate=entry.options.rate_per_s is not None)
        if share >= LEAST_SHARE:
            shares[profile.name] = share
            offered.append(part_of(entry, profile, share, held.get(profile.name)))
    return Offers(tuple(offered), shares)


def reserve(
    rate_per_s: float | None, pipelines: Sequence[PipelinePlan], shares: Mapping[str, float]
) -> dict[str, float]:
    """The share of each node's CPU that a rate takes in pipelines priced under `shares`; {} without a rate.

    Pipelines take jobs in proportion to their throughput. Where they do not reach the rate, it is what they
    reach; so a node is never reserved beyond what was offered of it.
    """
    if rate_per_s is None:
        return {}
    reached = [cost.pipeline_throughput([s.period_s for s in p.stages]) for p in pipelines]
    part = min(rate_per_s / sum(reached), 1.0)
    return {
        stage.node: part * throughput * stage.compute_s * shares[stage.node]
        for throughput, pipeline in zip(reached, pipelines, strict=True)
        for stage in pipeline.stages
    }


def memory_holders(generations: Iterable[Generation]) -> list[str]:
    """Which model holds how much of which node, the largest first, for an error that has to name them."""
    by_model: dict[str, list[Generation]] = {}
    for generation in generations:
        by_model.setdefault(generation.entry.name, []).append(generation)
    held = [
        (taken.bytes, model, node)
        for model, mine in by_model.items()
        for node, taken in footprints(mine).items()
    ]
    held.sort(key=lambda each: (-each[0], each[1], each[2]))
    return [f"{model} holds {_size(size)} of {node}" for size, model, node in held]


def cpu_holders(uses: Iterable[Use]) -> list[str]:
    """For which model how much of which node's CPU is reserved, the largest share first."""
    reserved = [
        (share, use.model, node)
        for use in uses
        for node, share in (use.reserved or {}).items()
        if share >= LEAST_SHARE
    ]
    reserved.sort(key=lambda each: (-each[0], each[1], each[2]))
    return [f"{model} has {share:.0%} of the CPU of {node}" for share, model, node in reserved]


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1_000_000 else f"{size_bytes} bytes"


def holding(part: NodeProfile, whole: NodeProfile, held_bytes: int) -> NodeProfile:
    """A part of a node whose memory has room for what is held there, as far as the node itself has."""
    memory_bytes = min(
        max(part.memory_bytes, _with_headroom(held_bytes)), max(whole.memory_bytes, 1)
    )
    if memory_bytes == part.memory_bytes:
        return part
    return dataclasses.replace(part, memory_bytes=memory_bytes)


def part_of(
    entry: ModelEntry, profile: NodeProfile, share: float, held: Footprint | None
) -> NodeProfile:
    """A part of a node: what it costs goes with it, so that a job's energy and price stay the same."""
    memory_bytes = profile.memory_bytes
    if held is not None:
        # A runtime that another model has loaded already is there.
        there = min(held.runtimes.get(entry.runtime, 0), entry.profile.runtime_bytes)
        memory_bytes = _with_headroom(cost.usable_bytes(profile) - held.bytes + there)
    if share >= 1.0 - ROUNDING and memory_bytes == profile.memory_bytes:
        return profile
    return dataclasses.replace(
        profile,
        cpu=profile.cpu * share,
        message_s=profile.message_s / share,
        byte_s=profile.byte_s / share,
        price_per_hour=profile.price_per_hour * share,
        power_w=profile.power_w * share,
        memory_bytes=memory_bytes,
    )


def _with_headroom(usable_bytes: int) -> int:
    """The least memory of which a stage may take `usable_bytes` (`cost.usable_bytes` the other way round)."""
    part, whole = cost.HEADROOM
    return max(-(-usable_bytes * whole // part), 1)

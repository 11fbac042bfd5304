"""What stages take of a node's memory, when some of it is there once for several of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.core import cost
from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.generation import Generation
from orchestrator.core.plan import DEFAULT_IN_FLIGHT
from shared.profile import NodeProfile


@dataclass(slots=True)
class Footprint:
    """Bytes on one node: a runtime's base once, a block's weights once, the rest for each stage.

    `weights` are by blob digest, since that is what an agent shares them by, also between models.
    """

    weights: dict[str, int] = field(default_factory=dict)
    runtimes: dict[str, int] = field(default_factory=dict)
    rest: int = 0

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(self.weights.values()) + sum(self.runtimes.values()) + self.rest

    def add(self, entry: ModelEntry, blocks: tuple[int, int]) -> None:
        """One more stage, `[start, stop)` of a model; its terms are those of `cost.stage_memory`."""
        start, stop = blocks
        profile, boundary = entry.profile, entry.profile.boundary_bytes()
        inside = profile.blocks[start:stop]
        self.weights |= {entry.weights_key(block.index): block.weight_bytes for block in inside}
        base = max(self.runtimes.get(entry.runtime, 0), profile.runtime_bytes)
        self.runtimes[entry.runtime] = base
        self.rest += max(block.peak_bytes for block in inside)
        self.rest += cost.window_buffers(boundary[start], boundary[stop], DEFAULT_IN_FLIGHT)


def footprints(generations: Iterable[Generation]) -> dict[str, Footprint]:
    """What generations take together, by node."""
    by_node: dict[str, Footprint] = {}
    for generation in generations:
        for pipeline in generation.pipelines():
            for stage in pipeline.stages:
                by_node.setdefault(stage.node, Footprint()).add(generation.entry, stage.blocks)
    return by_node


def crowded(
    candidate: Generation, others: Iterable[Generation], profiles: Iterable[NodeProfile]
) -> list[str]:
    """Nodes whose memory cannot hold a candidate beside the others, by name.

    `profiles` are whole nodes, nothing of them taken yet. Where the candidate is alone it is not asked: the
    planner has seen to that, and a node that shrank since is a matter for the next plan.
    """
    together = footprints([candidate, *others])
    shared = {name for other in others for name in other.nodes()} & candidate.nodes()
    limits = {profile.name: cost.usable_bytes(profile) for profile in profiles}
    return sorted(n for n in shared if n in limits and together[n].bytes > limits[n])

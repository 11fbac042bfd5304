"""What a picture of a plan shows, in a terminal or a file: stages, links, and how busy each of them is.

A stage's CPU, its downlink and its uplink work at the same time, so each has a share of the pipeline's period
in which it is busy. The one at 100 % is the bottleneck. A link between two stages is as busy as the slower of
the two ends: the sender's uplink, or the receiver's downlink.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from deploy.text import size
from orchestrator.core.plan import PipelinePlan
from shared.profile import UNCOMPRESSED, ModelProfile

_SAME = 1e-9
"""A share of the period by which two servers may differ and count as equally busy."""


@dataclass(frozen=True, slots=True)
class LinkView:
    """Bytes on their way to the next stage, from the client or to it, and their compression.

    `seconds` is what the slower end takes, `busy_ratio` its share of the period.
    """

    bytes: int
    compression: str
    seconds: float
    busy_ratio: float
    bottleneck: bool

    @property
    def sent(self) -> str:
        """The bytes in words, and how they were made fewer."""
        how = "" if self.compression == UNCOMPRESSED else f" {self.compression}"
        return f"{size(self.bytes)}{how}"


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage; `weight_bytes` is in `memory_bytes`."""

    node: str
    blocks: tuple[int, int]
    seconds: float
    busy_ratio: float
    bottleneck: bool
    weight_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class PipelineView:
    """A pipeline: `len(stages) + 1` links, the first from the client, the last back to it.

    `copies` are the pipelines that look just the same, on the nodes `others`.
    """

    stages: tuple[StageView, ...]
    links: tuple[LinkView, ...]
    period_s: float
    others: tuple[str, ...] = ()

    @property
    def copies(self) -> int:
        """How many pipelines are shown as this one."""
        return 1 + len(self.others)


def view(profile: ModelProfile, pipelines: Sequence[PipelinePlan]) -> list[PipelineView]:
    """The pipelines, equal ones together, in the order of the plan."""
    found: dict[object, list[PipelinePlan]] = {}
    for pipeline in pipelines:
        found.setdefault(_look(pipeline), []).append(pipeline)
    return [
        _pipeline(profile, same[0], tuple(_nodes(other) for other in same[1:]))
        for same in found.values()
    ]


def _look(pipeline: PipelinePlan) -> object:
    """What two pipelines must have in common to be shown as one: all but the names."""
    return tuple(
        (s.blocks, s.compression, f"{s.compute_s:.6g}", f"{s.receive_s:.6g}", f"{s.send_s:.6g}")
        for s in pipeline.stages
    )


def _nodes(pipeline: PipelinePlan) -> str:
    return " > ".join(stage.node for stage in pipeline.stages)


def _pipeline(
    profile: ModelProfile, pipeline: PipelinePlan, others: tuple[str, ...]
) -> PipelineView:
    stages = pipeline.stages
    period = max(stage.period_s for stage in stages)
    boundary = profile.sent(pipeline.compressions()).boundary_bytes()

    def slowest(seconds: float) -> bool:
        return seconds >= period * (1 - _SAME)

    ends = [(None, stages[0]), *pairwise(stages), (stages[-1], None)]
    links = []
    for sender, receiver in ends:
        seconds = max(sender.send_s if sender else 0.0, receiver.receive_s if receiver else 0.0)
        num_bytes = boundary[receiver.blocks[0] if receiver else len(profile.blocks)]
        how = sender.compression if sender and receiver else UNCOMPRESSED
        links.append(LinkView(num_bytes, how, seconds, seconds / period, slowest(seconds)))
    return PipelineView(
        stages=tuple(
            StageView(
                stage.node,
                stage.blocks,
                stage.compute_s,
                stage.compute_s / period,
                slowest(stage.compute_s),
                sum(block.weight_bytes for block in profile.blocks[slice(*stage.blocks)]),
                stage.memory_bytes,
            )
            for stage in stages
        ),
        links=tuple(links),
        period_s=period,
        others=others,
    )

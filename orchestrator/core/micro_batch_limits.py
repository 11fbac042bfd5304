"""How many items of a batch a plan allows in one message, and what keeps it from more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.core import cost
from orchestrator.core.micro_batch import MAX_MICRO_BATCH, MOST_BYTES, MicroBatchLimits
from orchestrator.core.plan import DEFAULT_IN_FLIGHT, PipelinePlan, StagePlan
from shared.batch_costs import sizes_up_to
from shared.compression import Compression
from shared.profile import ModelProfile, NodeProfile

LONGEST_S = 2.0
"""Of one message at one stage: while it computes, the stage hears nothing, not even a keep-alive."""


def limits_for(
    profile: ModelProfile,
    nodes: Mapping[str, NodeProfile],
    pipeline: PipelinePlan,
    *,
    wanted: int | None = None,
    max_latency_s: float | None = None,
    in_flight: int = DEFAULT_IN_FLIGHT,
) -> MicroBatchLimits:
    """The largest micro-batch that fits a pipeline.

    Args:
        profile: of the model.
        nodes: by name; those that are not there limit nothing.
        pipeline: who runs what.
        wanted: items in a message that were asked for; None leaves it to what is measured.
        max_latency_s: of an answer, where there is such a limit; a message takes as long as all its items.
        in_flight: messages inside the pipeline that memory is kept for.
    """
    stage_s = tuple(stage.compute_s for stage in pipeline.stages)
    most, reason = MAX_MICRO_BATCH, f"no more than {MAX_MICRO_BATCH} items go in one message"
    if (fixed := _one_item(profile, pipeline)) is not None:
        most, reason = 1, fixed
    else:
        asked = sizes_up_to(MAX_MICRO_BATCH) if wanted is None else range(1, MAX_MICRO_BATCH + 1)
        sent = profile.sent(pipeline.compressions())
        for size in asked[1:]:
            reasons = _against(
                sent, pipeline, size, nodes=nodes, max_latency_s=max_latency_s, in_flight=in_flight
            )
            against = next(reasons, None)
            if against is not None:
                most, reason = asked[asked.index(size) - 1], f"{size} items {against}"
                break
    if wanted is not None and wanted <= most:
        reason = f"{wanted} asked for"
    elif wanted is not None:
        reason = f"{wanted} asked for, but {reason}"
    return MicroBatchLimits(most, reason, wanted, stage_s)


def _one_item(profile: ModelProfile, pipeline: PipelinePlan) -> str | None:
    """Why no two items can go through together at all; None where they can."""
    if profile.fixed_batch:
        return profile.fixed_batch
    for stage in pipeline.stages[:-1]:
        if not profile.cuts[stage.blocks[1] - 1].items_apart:
            return f"the items of a batch lie within each other at cut {stage.blocks[1]}"
        if not Compression.parse(stage.compression).exact:
            return "what is rounded between stages must not depend on its company"
    return None


def _against(
    profile: ModelProfile,
    pipeline: PipelinePlan,
    size: int,
    *,
    nodes: Mapping[str, NodeProfile],
    max_latency_s: float | None,
    in_flight: int,
) -> Iterator[str]:
    """What speaks against messages of so many items."""
    boundary = profile.boundary_bytes()
    if size * max(boundary[stage.blocks[0]] for stage in pipeline.stages) > MOST_BYTES:
        yield f"are more than {MOST_BYTES >> 20} MiB in one message"
    if max_latency_s is not None and size * cost.pipeline_latency(pipeline.stages) > max_latency_s:
        yield f"may take more than the {max_latency_s * 1000:.0f} ms allowed"
    for stage in pipeline.stages:
        if size * stage.compute_s > LONGEST_S:
            yield f"may keep {stage.node} from listening for more than {LONGEST_S:g} s"
        node = nodes.get(stage.node)
        if node is not None:
            needed = stage.memory_bytes + (size - 1) * _item_bytes(profile, stage, in_flight)
            if needed > cost.usable_bytes(node):
                yield f"do not fit the memory of {stage.node}"


def _item_bytes(profile: ModelProfile, stage: StagePlan, in_flight: int) -> int:
    """What each further item of every message takes: its part of the live tensors, and of what waits."""
    start, stop = stage.blocks
    boundary = profile.boundary_bytes()
    peak_bytes = max(block.peak_bytes for block in profile.blocks[start:stop])
    return peak_bytes + cost.window_buffers(boundary[start], boundary[stop], in_flight)

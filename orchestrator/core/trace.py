"""Completes a trace: what the stages did not measure is transit, so the parts sum to the latency.

Source: DESIGN.md section 2, "A result carries a trace". Clocks are not assumed equal; only durations
are used, each from one clock.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from shared.trace import StageTiming, StageTrace

if TYPE_CHECKING:
    from collections.abc import Sequence


def complete_trace(
    latency_s: float,
    stages: Sequence[StageTiming],
    hops_s: Sequence[float],
    waited_s: float = 0.0,
) -> tuple[StageTrace, ...]:
    """Share `latency_s` out over the stages, so that all parts sum to it and none is negative.

    `stages`: S timings in pipeline order. `hops_s`: S + 1 predicted seconds: to stage 0, between
    neighbours, and from the last stage back. `waited_s`: what passed before the dispatch that brought
    the result (the dispatcher's queue, and earlier attempts); it is counted as queue of stage 0.

    - Transit is `latency_s - waited_s - sum(queue_s + compute_s)`, shared in proportion to `hops_s`
      (equally when all are zero); the last stage gets its own hop and the way back.
    - When the stages claim more than there was (their clocks run faster, or one is wrong), no transit
      is left and the claims are scaled down in proportion, so that the sum still holds.
    - A claim that cannot be (negative, not a number) counts as not measured: it comes out as transit.
      One above the whole is first cut to the whole.

    Raises `ValueError` on a latency that is negative or not finite, no stages, or not S + 1 hops.
    """
    if not (math.isfinite(latency_s) and latency_s >= 0.0):
        raise ValueError(f"latency_s: expected finite seconds >= 0, got {latency_s!r}")
    if not stages:
        raise ValueError("stages: expected at least one, got none")
    if len(hops_s) != len(stages) + 1:
        raise ValueError(f"hops_s: expected {len(stages) + 1} values, got {len(hops_s)}")
    waited_s = _between(waited_s, latency_s)
    left_s = latency_s - waited_s
    queues = [_between(stage.queue_s, left_s) for stage in stages]
    computes = [_between(stage.compute_s, left_s) for stage in stages]
    measured_s = math.fsum(queues) + math.fsum(computes)
    transit_s = left_s - measured_s
    if transit_s < 0.0:
        scale = left_s / measured_s
        queues = [queue_s * scale for queue_s in queues]
        computes = [compute_s * scale for compute_s in computes]
        transit_s = 0.0
    queues[0] += waited_s
    shares = _shares(hops_s)
    return tuple(
        StageTrace(
            stage=stage.stage,
            node=stage.node,
            queue_s=queue_s,
            compute_s=compute_s,
            transit_s=transit_s * share,
        )
        for stage, queue_s, compute_s, share in zip(stages, queues, computes, shares, strict=True)
    )


def _between(seconds: float, most_s: float) -> float:
    """`seconds` cut to [0, most_s]; what is no duration at all counts as 0."""
    if not seconds > 0.0:  # also catches nan
        return 0.0
    return min(seconds, most_s)


def _shares(hops_s: Sequence[float]) -> list[float]:
    """One share of the transit per stage (they sum to 1); the last holds the way back too."""
    hops = [hop if math.isfinite(hop) and hop > 0.0 else 0.0 for hop in hops_s]
    largest = max(hops)
    # divided by the largest first: a sum of huge predictions must not overflow
    weights = [hop / largest for hop in hops] if largest > 0.0 else [1.0] * len(hops)
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    back = shares.pop()
    shares[-1] += back
    return shares

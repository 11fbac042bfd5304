"""Where one job's time went: what a stage measures itself, and the finished line of an answer's trace.

A stage knows how long an item waited in its own queue and how long it computed; clocks of two
machines are never compared, so the way between stages cannot be measured. The orchestrator works it
out (`orchestrator.core.trace.complete_trace`) and each answer carries one `StageTrace` per stage.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageTiming:
    """What one stage measured of one item, by its own clock (seconds)."""

    stage: int
    node: str
    queue_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class StageTrace:
    """One stage's share of an answer's latency (seconds, none negative).

    `transit_s` is the way to this stage; the last stage's also holds the way back to the
    orchestrator. `queue_s + compute_s + transit_s` over all stages is the latency.
    """

    stage: int
    node: str
    queue_s: float
    compute_s: float
    transit_s: float

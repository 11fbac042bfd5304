"""What the dispatcher measured in a second, as events for the cluster's core."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.core import cluster_events as events
from orchestrator.dispatch_notes import Report


def measurements(report: Report, now: float) -> Iterator[events.Event]:
    """Each stage's mean times, and the sizes of the jobs that came."""
    for (model, pipeline, generation, stage, node), total in report.stages.items():
        yield events.StageMeasured(
            now,
            model,
            pipeline,
            generation,
            stage,
            node,
            total.items,
            total.cpu_s / total.items,
            total.compute_s / total.items,
        )
    for load in report.snapshot.models:
        yield events.InputsCounted(now, load.model, load.sent_items, load.sent_bytes)

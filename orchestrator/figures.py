"""Figures of the last seconds: what is measured of each model, and the summary on `metrics`."""

from __future__ import annotations

import resource
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.core.result_cache import CacheLoad
from orchestrator.dispatch_notes import Report
from shared.codec import to_builtins
from shared.messages.model import Figures, PredictionError
from shared.messages.operation import (
    CacheMetrics,
    LastLabel,
    Metrics,
    ModelMetrics,
    NodeStanding,
)

WINDOW_S = 10.0
_MOST_LATENCIES = 8192


@dataclass(slots=True)
class _Recent:
    """Of one model, newest last: (when, items answered), (when, latency)."""

    items: deque[tuple[float, int]] = field(default_factory=deque)
    latencies: deque[tuple[float, float]] = field(
        default_factory=lambda: deque(maxlen=_MOST_LATENCIES)
    )


class Measured:
    """What each model did over the last `WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._recent: dict[str, _Recent] = {}

    def add(self, now: float, report: Report) -> None:
        """Take what was answered since the last report."""
        for model, answered in report.answered.items():
            recent = self._recent.setdefault(model, _Recent())
            recent.items.append((now, answered.items))
            recent.latencies.extend((now, latency_s) for latency_s in answered.latencies_s)

    def forget(self, model: str) -> None:
        """The model is not served any more."""
        self._recent.pop(model, None)

    def figures(self, model: str, now: float) -> Figures:
        """Items per second, and their median latency; None of both without an answer in the window.

        The rate is over the whole window: over less, the first seconds of a burst would flatter.
        """
        recent = self._recent.get(model)
        if recent is None:
            return Figures()
        while recent.items and now - recent.items[0][0] > WINDOW_S:
            recent.items.popleft()
        while recent.latencies and now - recent.latencies[0][0] > WINDOW_S:
            recent.latencies.popleft()
        if not recent.items or not recent.latencies:
            return Figures()
        items = sum(count for _, count in recent.items)
        median_s = statistics.median(latency_s for _, latency_s in recent.latencies)
        return Figures(throughput_per_s=round(items / WINDOW_S, 1), latency_s=round(median_s, 4))


def metrics(
    report: Report,
    nodes_online: int,
    standings: Mapping[str, NodeStanding],
    own: Mapping[str, int],
    errors: Mapping[str, PredictionError],
    *,
    sent_at_ms: int,
    labels: Mapping[str, LastLabel] | None = None,
) -> Metrics:
    """The summary of one second.

    Args:
        report: the dispatcher's.
        nodes_online: how many nodes can be planned for.
        standings: the nodes that are gone, silent or left out.
        own: the control plane's own counters.
        errors: how far predicted stage times are from measured ones, by model.
        sent_at_ms: wall time.
        labels: what classifiers said last, by model, where that is to be told.
    """
    counters = report.snapshot.counters
    totals: dict[str, int] = {
        name: value for name, value in to_builtins(counters).items() if isinstance(value, int)
    }
    for kind, by_code in (
        ("failed", counters.failed),
        ("rejected", counters.rejected),
        ("rejected", report.refused),
    ):
        for code, count in by_code.items():
            key = f"{kind}_{code}"
            totals[key] = totals.get(key, 0) + count
    totals |= {f"dropped_{why}": count for why, count in report.dropped.items()}
    totals |= own
    usage = resource.getrusage(resource.RUSAGE_SELF)
    models = {}
    for load in report.snapshot.models:
        answered = report.answered.get(load.model)
        latencies_s = sorted(answered.latencies_s + answered.cached_latencies_s) if answered else []
        models[load.model] = ModelMetrics(
            queued=load.queued_items,
            in_flight=sum(pipeline.in_flight for pipeline in load.pipelines),
            answered_per_s=round(answered.requests / report.interval_s, 1) if answered else 0.0,
            latency_p50_s=_quantile(latencies_s, 0.5),
            latency_p95_s=_quantile(latencies_s, 0.95),
            prediction_error=errors.get(load.model),
            cache=_cache(load.cache),
            last=(labels or {}).get(load.model),
        )
    return Metrics(
        counters=totals,
        models=models,
        nodes_online=nodes_online,
        nodes=dict(standings),
        cpu_s=round(usage.ru_utime + usage.ru_stime, 2),
        memory_bytes=usage.ru_maxrss * 1024,
        sent_at_ms=sent_at_ms,
    )


def _cache(load: CacheLoad | None) -> CacheMetrics | None:
    if load is None:
        return None
    known = load.hits + load.joined
    asked = known + load.misses
    return CacheMetrics(
        hits=load.hits,
        joined=load.joined,
        misses=load.misses,
        hit_ratio=round(known / asked, 4) if asked else None,
        entries=load.entries,
        size_bytes=load.size_bytes,
    )


def _quantile(ordered: list[float], share: float) -> float | None:
    if not ordered:
        return None
    return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 4)

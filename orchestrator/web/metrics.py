"""What Prometheus scrapes: the state of the cluster as metric families, made anew for each visit.

Nothing is kept between visits, so the names of nodes, models and stages that are gone are gone here too, and
labels are as many as there are nodes, models and stages of plans in force. The process that leads tells all;
one that stands by says that it does, or sums over processes would count everything twice. Names are by the
conventions of Prometheus: base units, `_total` for what only grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from orchestrator.dispatch_notes import Outcomes
from orchestrator.latency_histogram import LatencyHistogram
from shared.client.status import ClusterStatus
from shared.messages.health import Grade, Health
from shared.messages.model import ModelState
from shared.messages.node import Telemetry
from shared.messages.operation import Metrics

_ITEMS = {
    "dispatched": "Inputs sent to first stages, all attempts.",
    "retried": "Inputs queued again after a failure or a timeout.",
    "recovered": "Inputs queued again after a lost pipeline or a reconnection.",
    "poisoned": "Inputs given up because nodes died of them.",
}
_TELEMETRY: tuple[tuple[str, str, Callable[[Telemetry], float | None]], ...] = (
    ("cpu_ratio", "CPU time used, of what the node may use.", lambda t: t.cpu_percent / 100),
    ("memory_used_bytes", "Resident memory of the agent.", lambda t: t.memory_used_bytes),
    ("memory_limit_bytes", "What the agent may take at most.", lambda t: t.memory_limit_bytes),
    ("disk_free_bytes", "Where the agent keeps blobs.", lambda t: t.disk_free_bytes),
    ("round_trip_seconds", "From the node to the broker and back.", lambda t: t.round_trip_s),
    ("queued_inputs", "That wait at the node's stages.", lambda t: t.queue),
    ("uptime_seconds", "Since the agent was started.", lambda t: t.uptime_s),
)
_DROPPED = "dropped_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is there to tell.

    `status` is the cluster as its topics show it; the rest is known to the process that leads, and None or
    empty elsewhere. `outcomes` are jobs by model and outcome, since it began to lead.
    """

    version: str
    connected: bool
    status: ClusterStatus
    health: Health | None = None
    metrics: Metrics | None = None
    outcomes: Outcomes = field(default_factory=dict)
    latencies: Mapping[str, LatencyHistogram] = field(default_factory=dict)


def exposition(scene: Scene) -> bytes:
    """The text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(scene))
    ProcessCollector(registry=registry)
    text: bytes = generate_latest(registry)
    return text


class _Families(Collector):
    """All families of one scene."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def collect(self) -> Iterator[Metric]:
        scene = self._scene
        yield from _process(scene)
        if scene.health is None:
            return
        yield from _health(scene.health)
        yield from _jobs(scene)
        if scene.metrics is not None:
            yield from _load(scene.metrics)
            yield from _caches(scene.metrics)
            yield from _counters(scene.metrics)
        yield from _models(scene.status.models)
        yield from _stages(scene.status.models)
        yield from _nodes(scene.status)


def _gauge(
    name: str,
    text: str,
    labels: tuple[str, ...],
    rows: Iterable[tuple[tuple[str, ...], float | None]],
) -> Iterator[Metric]:
    """One family, where there is something to tell."""
    family = GaugeMetricFamily(f"amp4ec_{name}", text, labels=labels)
    for values, number in rows:
        if number is not None:
            family.add_metric(values, number)
    if family.samples:
        yield family


def _counter(
    name: str,
    text: str,
    labels: tuple[str, ...],
    rows: Iterable[tuple[tuple[str, ...], float | None]],
) -> Iterator[Metric]:
    family = CounterMetricFamily(f"amp4ec_{name}", text, labels=labels)
    for values, number in rows:
        if number is not None:
            family.add_metric(values, number)
    if family.samples:
        yield family


def _process(scene: Scene) -> Iterator[Metric]:
    info = InfoMetricFamily("amp4ec_build", "The version of this orchestrator.")
    info.add_metric((), {"version": scene.version})
    yield info
    leads = scene.health is not None
    yield from _gauge(
        "orchestrator_leads", "Whether this process leads (1) or stands by (0).", (), [((), leads)]
    )
    yield from _gauge(
        "broker_connected", "Whether this process is connected to the broker.", (),
        [((), scene.connected)],
    )  # fmt: skip


def _health(health: Health) -> Iterator[Metric]:
    yield from _gauge(
        "health", "1 for the state that the cluster is in, 0 for the others.", ("state",),
        [((grade,), grade == health.health) for grade in get_args(Grade)],
    )  # fmt: skip
    by_part: dict[tuple[str, str], int] = {}
    for found in health.findings:
        key = (found.about, found.grade)
        by_part[key] = by_part.get(key, 0) + 1
    yield from _gauge(
        "health_findings", "What is not as it should be, by part and grade.", ("about", "grade"),
        by_part.items(),
    )  # fmt: skip
    yield from _gauge(
        "nodes_online", "Nodes that can be planned for.", (), [((), health.nodes_online)]
    )
    standbys = len(health.standbys)
    yield from _gauge("standbys", "Processes that would take over.", (), [((), standbys)])


def _jobs(scene: Scene) -> Iterator[Metric]:
    served = {state.model for state in scene.status.models} | {""}
    yield from _counter(
        "jobs", "Jobs by outcome: ok, or the code of the error. No model: it is not served.",
        ("model", "outcome"),
        [(key, count) for key, count in sorted(scene.outcomes.items()) if key[0] in served],
    )  # fmt: skip
    family = HistogramMetricFamily(
        "amp4ec_job_latency_seconds",
        "From a job's arrival to its answer, each input of a batch for itself.",
        labels=("model",),
    )
    for model, latency in sorted(scene.latencies.items()):
        if model in served:
            buckets = [
                ("+Inf" if bound == float("inf") else str(bound), count)
                for bound, count in latency.cumulative()
            ]
            family.add_metric((model,), buckets, latency.sum_s)
    if family.samples:
        yield family


def _load(metrics: Metrics) -> Iterator[Metric]:
    models = metrics.models.items()
    yield from _gauge(
        "model_queued_inputs", "Inputs that wait for a pipeline.", ("model",),
        [((name,), load.queued) for name, load in models],
    )  # fmt: skip
    yield from _gauge(
        "model_in_flight_inputs", "Inputs that pipelines work on.", ("model",),
        [((name,), load.in_flight) for name, load in models],
    )  # fmt: skip


def _caches(metrics: Metrics) -> Iterator[Metric]:
    caches = [(name, load.cache) for name, load in metrics.models.items() if load.cache is not None]
    yield from _counter(
        "cache_inputs", "Inputs asked of the result cache: hit, joined (an equal one ran), miss.",
        ("model", "result"),
        [
            ((name, result), count)
            for name, cache in caches
            for result, count in (
                ("hit", cache.hits), ("joined", cache.joined), ("miss", cache.misses),
            )
        ],
    )  # fmt: skip
    yield from _gauge(
        "cache_size_bytes", "What the result cache holds.", ("model",),
        [((name,), cache.size_bytes) for name, cache in caches],
    )  # fmt: skip


def _counters(metrics: Metrics) -> Iterator[Metric]:
    for name, text in _ITEMS.items():
        yield from _counter(f"inputs_{name}", text, (), [((), metrics.counters.get(name, 0))])
    yield from _counter(
        "messages_dropped", "Messages that came to nothing, by reason.", ("reason",),
        [
            ((name.removeprefix(_DROPPED),), count)
            for name, count in sorted(metrics.counters.items())
            if name.startswith(_DROPPED)
        ],
    )  # fmt: skip
    yield from _counter(
        "orchestrator_internal_errors", "Failures of the orchestrator's own.", (),
        [((), metrics.counters.get("internal_errors", 0))],
    )  # fmt: skip


def _models(models: Iterable[ModelState]) -> Iterator[Metric]:
    models = tuple(models)
    states = ("serving", "loading", "unserved", "failed")
    yield from _gauge(
        "model_state", "1 for the state that a model is in, 0 for the others.", ("model", "state"),
        [((each.model, state), each.state == state) for each in models for state in states],
    )  # fmt: skip
    yield from _gauge(
        "model_generation", "The number of the plan in force; grows with each plan.", ("model",),
        [((each.model,), each.generation) for each in models],
    )  # fmt: skip
    yield from _gauge(
        "model_pipelines", "Pipelines of the plan in force.", ("model",),
        [((each.model,), len(each.pipelines)) for each in models],
    )  # fmt: skip
    yield from _gauge(
        "model_predicted_jobs_per_second", "What the plan in force should reach.", ("model",),
        [((each.model,), each.predicted.throughput_per_s) for each in models],
    )  # fmt: skip
    yield from _gauge(
        "model_predicted_latency_seconds", "Of a job alone, by the plan in force.", ("model",),
        [((each.model,), each.predicted.latency_s) for each in models],
    )  # fmt: skip
    yield from _gauge(
        "model_prediction_error_ratio", "Predicted stage times against measured ones.", ("model",),
        [
            ((each.model,), each.prediction_error.now_ratio)
            for each in models
            if each.prediction_error is not None
        ],
    )  # fmt: skip


def _stages(models: Iterable[ModelState]) -> Iterator[Metric]:
    rows = [
        ((model.model, pipeline.pipeline, str(stage.stage), stage.node), stage)
        for model in models
        for pipeline in model.pipelines
        for stage in pipeline.stages
    ]
    labels = ("model", "pipeline", "stage", "node")
    yield from _gauge(
        "stage_compute_seconds", "Of one input at a stage, as measured.", labels,
        [(key, stage.measured_s) for key, stage in rows],
    )  # fmt: skip
    yield from _gauge(
        "stage_predicted_seconds", "Of one input at a stage, by the plan.", labels,
        [(key, stage.predicted_s) for key, stage in rows],
    )  # fmt: skip
    yield from _gauge(
        "stage_output_bytes", "What a stage sends for one input, before compression.", labels,
        [(key, stage.output_bytes) for key, stage in rows],
    )  # fmt: skip


def _nodes(status: ClusterStatus) -> Iterator[Metric]:
    nodes = [((node.state.node,), node) for node in status.nodes]
    yield from _gauge(
        "node_up", "Whether a node is online; gone nodes are forgotten in time.", ("node",),
        [(key, node.state.state == "online" and node.standing is None) for key, node in nodes],
    )  # fmt: skip
    yield from _gauge(
        "node_cordoned", "Whether an operator has cordoned or drained a node.", ("node",),
        [(key, node.cordon is not None) for key, node in nodes],
    )  # fmt: skip
    online = [(key, node) for key, node in nodes if node.state.state == "online"]
    yield from _gauge(
        "node_cpus", "CPUs that a node may use.", ("node",),
        [(key, node.state.hardware.cpu) for key, node in online if node.state.hardware is not None],
    )  # fmt: skip
    heard = [(key, node.telemetry) for key, node in online if node.telemetry is not None]
    for name, text, read in _TELEMETRY:
        yield from _gauge(f"node_{name}", text, ("node",), [(key, read(t)) for key, t in heard])
    yield from _counter(
        "node_network_received_bytes", "By the agent, since it was started.", ("node",),
        [(key, t.network_received_bytes) for key, t in heard],
    )  # fmt: skip
    yield from _counter(
        "node_network_sent_bytes", "By the agent, since it was started.", ("node",),
        [(key, t.network_sent_bytes) for key, t in heard],
    )  # fmt: skip

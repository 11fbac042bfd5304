"""The dashboard and the rules beside it ask for metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.latency_histogram import LatencyHistogram
from orchestrator.web.metrics import Scene, exposition
from shared.client.status import ClusterStatus, NodeView
from shared.messages.health import Finding, Health
from shared.messages.model import Figures, ModelState, PipelineRow, PredictionError, StageRow
from shared.messages.operation import CacheMetrics, Metrics, ModelMetrics
from tests.core.cluster_world import birth, telemetry

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARD = json.loads((GRAFANA / "amp4ec.json").read_text())


def scene() -> Scene:
    """One of everything that is ever told."""
    stage = StageRow(
        stage=0, node="a", blocks=(0, 4), weight_bytes=1, output_bytes=1, predicted_s=0.1,
        measured_s=0.1,
    )  # fmt: skip
    model = ModelState(
        state="serving",
        model="m",
        generation=1,
        pipelines=[PipelineRow(pipeline="m-0", stages=[stage])],
        predicted=Figures(throughput_per_s=1.0, latency_s=1.0),
        prediction_error=PredictionError(first_sight_ratio=0.1, now_ratio=0.1, stages=1, items=1),
    )
    cache = CacheMetrics(hits=1, joined=1, misses=1, hit_ratio=0.5, entries=1, size_bytes=1)
    load = ModelMetrics(
        queued=0, in_flight=0, answered_per_s=0.0, latency_p50_s=None, latency_p95_s=None,
        cache=cache,
    )  # fmt: skip
    metrics = Metrics(
        counters={"dropped_bad_result": 1}, models={"m": load}, nodes_online=1, cpu_s=0.0,
        memory_bytes=0,
    )  # fmt: skip
    finding = Finding(grade="degraded", about="queue", text="full")
    node = NodeView(state=birth("a"), telemetry=telemetry("a", round_trip_s=0.1, disk_free_bytes=1))
    histogram = LatencyHistogram()
    histogram.add([0.1])
    return Scene(
        version="1",
        connected=True,
        status=ClusterStatus(orchestrator=None, nodes=(node,), models=(model,)),
        health=Health(text="", health="degraded", findings=[finding]),
        metrics=metrics,
        outcomes={("m", "ok"): 1},
        latencies={"m": histogram},
    )


def told() -> dict[str, set[str]]:
    """The labels of each sample that there is."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposition(scene()).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions(document: Any) -> list[str]:
    """Every query in a document, of whatever depth."""
    if isinstance(document, dict):
        own = [
            text
            for key, text in document.items()
            if key in ("expr", "definition") and isinstance(text, str)
        ]
        return own + [each for value in document.values() for each in expressions(value)]
    if isinstance(document, list):
        return [each for value in document for each in expressions(value)]
    return []


def rules() -> list[str]:
    blocks = re.findall(r"```yaml\n(.*?)```", (GRAFANA / "README.md").read_text(), re.DOTALL)
    return [each for block in blocks for each in expressions(yaml.safe_load(block))]


@pytest.mark.parametrize("query", expressions(DASHBOARD) + rules())
def test_a_query_asks_for_metrics_and_labels_that_there_are(query: str) -> None:
    known = told()
    asked = re.findall(r"\b((?:amp4ec|process)_\w+)\s*(\{[^}]*\})?", query)
    assert asked, query
    for name, selector in asked:
        assert name in known, query
        # What a scrape adds is `instance`.
        used = set(re.findall(r"(\w+)\s*(?:=~|!=|=)", selector)) - {"instance"}
        assert used <= known[name], query
        shown = re.search(r"by \(([\w, ]+)\)", query)
        if shown:
            assert set(re.split(r", ", shown[1])) <= known[name], query


def test_every_metric_of_the_cluster_that_people_ask_for_is_shown() -> None:
    """What is told and never drawn is listed, so that a new metric is decided on."""
    drawn = " ".join(expressions(DASHBOARD))
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in told()}
    missing = {name for name in families if name.startswith("amp4ec") and name not in drawn}
    assert missing == {
        "amp4ec_broker_connected",
        "amp4ec_build_info",
        "amp4ec_cache_size_bytes",
        "amp4ec_inputs_dispatched_total",
        "amp4ec_model_pipelines",
        "amp4ec_model_prediction_error_ratio",
        "amp4ec_node_cordoned",
        "amp4ec_node_cpus",
        "amp4ec_node_disk_free_bytes",
        "amp4ec_node_memory_limit_bytes",
        "amp4ec_node_queued_inputs",
        "amp4ec_node_round_trip_seconds",
        "amp4ec_node_uptime_seconds",
        "amp4ec_orchestrator_internal_errors_total",
        "amp4ec_stage_output_bytes",
    }


def test_panels_are_apart_and_fit_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"

"""What messages say in a line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.codec import decode_json, encode_json, encode_json_sparse
from shared.messages.cordon import Cordon
from shared.messages.model import Figures, ModelState, PipelineRow, StageRow
from shared.messages.node import NodeState, Ping, Telemetry
from shared.messages.operation import (
    Happening,
    Metrics,
    ModelMetrics,
    OrchestratorState,
    Standby,
)
from shared.messages.stage import Assignment, Report, StageReport
from shared.sentences import Worded, sentence, size_in_words, worded
from tests.core.cluster_world import birth, telemetry


def stage(number: int, node: str) -> StageRow:
    blocks = (number * 10, number * 10 + 10)
    return StageRow(
        stage=number, node=node, blocks=blocks, weight_bytes=1, output_bytes=1, predicted_s=0.01
    )


def report(number: int, reason: str = "") -> StageReport:
    return StageReport(
        model="m", pipeline="m-0", generation=2, stage=number,
        state="failed" if reason else "ready", reason=reason,
    )  # fmt: skip


MODEL = ModelState(
    state="serving",
    model="m",
    generation=3,
    pipelines=[PipelineRow(pipeline="m-0", stages=[stage(0, "a"), stage(1, "b")])],
    predicted=Figures(throughput_per_s=41.26, latency_s=0.0312),
    reason="asked for",
)
LOAD = ModelMetrics(
    queued=3, in_flight=4, answered_per_s=42.1, latency_p50_s=0.0191, latency_p95_s=1.31
)
METRICS = Metrics(counters={}, models={"m": LOAD}, nodes_online=2, cpu_s=0.0, memory_bytes=0)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (birth("a", cpu=0.66667), "a is online: 0.667 CPUs, 1.0 GB, torch 2, zone default"),
        (birth("a", runtimes={}), "a is online: 1 CPUs, 1.0 GB, no runtime, zone default"),
        (NodeState(state="offline", node="a", incarnation=1), "a left"),
        (NodeState(state="offline", node="a", incarnation=1, reason="left"), "a left"),
        (NodeState(state="lost", node="a", incarnation=1, reason="cut"), "a is lost: cut"),
        (telemetry("a"), "a: CPU 50%, memory 1 B of 2 B"),
        (
            telemetry("a", round_trip_s=0.00413, queue=2),
            "a: CPU 50%, memory 1 B of 2 B, broker 4.13 ms away, 2 wait",
        ),
        (Assignment(node="a", revision=1), "a is to hold nothing"),
        (Report(node="a", incarnation=1, revision=1), "a: holds nothing"),
        (
            Report(node="a", incarnation=1, revision=1, stages=[report(0), report(1, "no memory")]),
            "a: m generation 2 stage 0 ready, m generation 2 stage 1 failed: no memory",
        ),
        (Cordon(node="a", drain=True, at=""), "a is to be kept empty"),
        (Cordon(node="a", drain=False, at="", reason="fan"), "a is to get no further model: fan"),
        (Ping(node="a"), "a is asked whether it is there"),
        (Standby(name="x", serial=1), "x would take over, at once"),
        (
            MODEL,
            "m is served as generation 3 on a[0:10] > b[10:20], predicted 41.3/s in 31.2 ms (asked for)",
        ),
        (ModelState(state="unserved", model="m", generation=0), "m is not served"),
        (
            OrchestratorState(state="online", incarnation=1, term=2, leader="x", standbys=["y"]),
            "x leads under term 2, y stands by",
        ),
        (OrchestratorState(state="lost", incarnation=1, leader="x"), "x is lost"),
        (replace(METRICS, models={}, nodes_online=1), "1 node online"),
        (METRICS, "2 nodes online; m 42.1/s in 19.1 ms (p95 1.31 s), 3 wait, 4 in flight"),
    ],
)
def test_a_sentence_says_what_the_fields_say(message: Worded, words: str) -> None:
    assert sentence(message) == words
    line = encode_json(worded(message)).decode()
    assert line.startswith('{"text":"')
    assert decode_json(line, type(message)) == replace(message, text=words)


def test_a_sentence_stays_short_however_much_there_is() -> None:
    models = {f"model-{number}": LOAD for number in range(500)}
    assert len(sentence(replace(METRICS, models=models))) < 500
    stages = [report(number) for number in range(500)]
    line = sentence(Report(node="a", incarnation=1, revision=1, stages=stages))
    assert line.endswith(" and 496 more")
    pipelines = [PipelineRow(pipeline=str(number), stages=[stage(0, "a")]) for number in range(99)]
    assert " and 95 more" in sentence(replace(MODEL, pipelines=pipelines))


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (52_862_976, "52.9 MB"), (25e9, "25.0 GB")],
)
def test_sizes(size: float, words: str) -> None:
    assert size_in_words(size) == words


def test_an_event_begins_with_when_and_what_and_leaves_out_what_is_not_said() -> None:
    happening = Happening(event="node_joined", text="node a joined", at="now", node="a")
    line = encode_json_sparse(happening)
    assert line == (
        b'{"at":"now","text":"node a joined","event":"node_joined","level":"info","node":"a","v":1}'
    )
    assert decode_json(line, Happening) == happening


def test_nothing_of_telemetry_is_lost_by_its_sentence() -> None:
    told = telemetry("a")
    assert replace(worded(told), text="") == told
    assert decode_json(encode_json(worded(told)), Telemetry) == worded(told)

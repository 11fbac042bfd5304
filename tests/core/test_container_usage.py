"""What the engine counts beside what agents say: samples of both, and when they agree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deploy.containers.usage import AgentSamples, Sample, Source, compare, engine_sample
from shared.messages.node import Hardware, NodeState, Telemetry

MIB = 2**20


def stats(**memory: int) -> dict[str, Any]:
    """As the engine answers, less what nobody reads."""
    return {
        "read": "2026-11-21T19:25:43.250000001Z",
        "cpu_stats": {"cpu_usage": {"total_usage": 1_500_000_000}},
        "memory_stats": {"usage": 100 * MIB, "stats": memory},
        "networks": {
            "eth0": {"rx_bytes": 5, "tx_bytes": 7},
            "eth1": {"rx_bytes": 10, "tx_bytes": 20},
        },
    }


@pytest.mark.parametrize(
    ("memory", "left_bytes"),
    [
        ({"total_inactive_file": 30 * MIB, "inactive_file": 1 * MIB}, 70 * MIB),  # version 1
        ({"inactive_file": 30 * MIB}, 70 * MIB),  # version 2
        ({}, 100 * MIB),
        ({"inactive_file": 200 * MIB}, 0),
    ],
)
def test_page_cache_that_can_be_dropped_is_not_use(memory: dict[str, int], left_bytes: int) -> None:
    sample = engine_sample("a", stats(**memory))
    assert sample is not None
    assert sample.memory_bytes == left_bytes
    assert sample.cpu_s == 1.5
    assert (sample.received_bytes, sample.sent_bytes) == (15, 27)
    assert sample.at_s == pytest.approx(1795289143.25)


@pytest.mark.parametrize("name", ["cpu_stats", "memory_stats"])
def test_a_container_that_does_not_run_has_no_sample(name: str) -> None:
    assert engine_sample("a", {**stats(), name: {}}) is None


def telemetry(uptime_s: float, cpu_percent: float, incarnation: int = 1) -> Telemetry:
    return Telemetry(
        node="a",
        incarnation=incarnation,
        uptime_s=uptime_s,
        cpu_percent=cpu_percent,
        memory_used_bytes=50 * MIB,
        memory_limit_bytes=100 * MIB,
        network_received_bytes=1,
        network_sent_bytes=2,
        round_trip_s=None,
        queue=0,
        stability=1.0,
    )


def test_an_agents_percentages_are_of_its_share() -> None:
    samples = AgentSamples()
    assert samples.take(telemetry(1.0, 50.0), 100.0) is None  # of what, nobody knows yet
    hardware = Hardware(cpu=0.4, cores=2, memory_bytes=100 * MIB, architecture="x86_64")
    samples.born(NodeState(state="online", node="a", incarnation=1, hardware=hardware))
    said = [samples.take(telemetry(at, 50.0), 100.0 + at) for at in (1.0, 2.0, 4.0)]
    assert [sample.cpu_s for sample in said if sample] == pytest.approx([0.2, 0.4, 0.8])
    again = samples.take(telemetry(1.0, 100.0, incarnation=2), 110.0)
    assert again is not None
    assert again.cpu_s == pytest.approx(0.4)


def side(source: Source, offset_s: float, cpus: float, **usage: float) -> list[Sample]:
    """Eleven samples, one a second, of a node that does the same all the time."""
    return [
        Sample(
            at_s=offset_s + second,
            node="a",
            source=source,
            cpu_s=cpus * second,
            memory_bytes=round(usage.get("memory", 50 * MIB)),
            received_bytes=round(usage.get("received", 1e6) * second),
            sent_bytes=round(usage.get("sent", 1e6) * second),
        )
        for second in range(11)
    ]


def agreement(agent: list[Sample], engine: list[Sample]) -> dict[str, bool]:
    return {each.figure: each.agrees for each in compare([*agent, *engine])}


def test_sides_that_agree() -> None:
    found = agreement(side("agent", 100.0, 0.4), side("engine", 100.3, 0.42))
    assert found == {"cpu": True, "memory": True, "received": True, "sent": True}


@pytest.mark.parametrize(
    ("figure", "usage"),
    [
        ("memory", {"memory": 60 * MIB}),
        ("received", {"received": 1.2e6}),
        ("sent", {"sent": 0.8e6}),
    ],
)
def test_a_figure_that_is_off_is_said(figure: str, usage: dict[str, float]) -> None:
    found = agreement(side("agent", 100.0, 0.4, **usage), side("engine", 100.3, 0.4))
    assert [name for name, agrees in found.items() if not agrees] == [figure]


def test_cpu_that_is_off_is_said_but_not_where_it_is_too_little_to_tell() -> None:
    assert not agreement(side("agent", 0.0, 0.3), side("engine", 0.0, 0.4))["cpu"]
    assert agreement(side("agent", 0.0, 0.001), side("engine", 0.0, 0.006))["cpu"]


def test_only_the_time_that_both_saw_counts() -> None:
    """The engine was watched earlier, while the node did twice as much."""
    before = [replace(each, cpu_s=2 * each.cpu_s) for each in side("engine", 90.0, 0.4)]
    after = [replace(each, cpu_s=each.cpu_s + 8.0) for each in side("engine", 100.0, 0.4)]
    (cpu, *_) = compare([*before, *after[1:], *side("agent", 100.0, 0.4)])
    assert cpu.engine == pytest.approx(0.4, rel=0.11)


def test_a_node_that_only_one_side_saw_is_left_out() -> None:
    assert compare(side("engine", 0.0, 0.4)) == []

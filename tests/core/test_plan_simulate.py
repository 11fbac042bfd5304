"""The dry run agrees with the cost model where its assumptions hold, and differs where they do not."""

from __future__ import annotations

import pytest
from hypothesis import given, reject

from orchestrator.core.plan import PipelinePlan, Plan, PlanRequest, StagePlan
from orchestrator.core.planner import plan
from orchestrator.core.simulate import saturating_window, simulate
from shared.errors import ConfigurationError, PlanError
from shared.profile import ModelProfile, NodeProfile
from tests.core.plan_cases import models, several, some_nodes


def some_plan(profile: ModelProfile, nodes: list[NodeProfile]) -> Plan:
    """The best plan; an instance without one is left out."""
    try:
        return plan(PlanRequest(profile, tuple(nodes), in_flight=1))
    except PlanError:
        reject()
        raise


def pipeline(*stages: tuple[float, float, float]) -> PipelinePlan:
    """Stages of (receive, compute, send) seconds."""
    return PipelinePlan(
        tuple(StagePlan(f"n{i}", (i, i + 1), c, r, s, 0) for i, (r, c, s) in enumerate(stages))
    )


@several
@given(models(), some_nodes())
def test_throughput_within_five_percent_where_the_window_saturates(
    profile: ModelProfile, nodes: list[NodeProfile]
) -> None:
    found = some_plan(profile, nodes)
    window = max(saturating_window(pipe) for pipe in found.pipelines)
    ran = simulate(found.pipelines, jobs=600, window=window)
    assert ran.throughput_per_s == pytest.approx(found.predicted.throughput_per_s, rel=0.05)
    assert sum(ran.jobs_per_pipeline) == 600


@several
@given(models(), some_nodes())
def test_latency_is_the_models_where_jobs_are_alone(
    profile: ModelProfile, nodes: list[NodeProfile]
) -> None:
    found = some_plan(profile, nodes)
    for pipe in found.pipelines:
        ran = simulate([pipe], jobs=8, window=1)
        latency = sum(s.compute_s + s.receive_s + s.send_s for s in pipe.stages)
        assert ran.latency_s == pytest.approx(latency)
        assert ran.throughput_per_s == pytest.approx(1 / latency)


def test_a_small_window_starves_a_long_pipeline() -> None:
    pipe = pipeline((0.0, 0.1, 0.0), (0.0, 0.1, 0.0), (0.0, 0.1, 0.0))
    assert saturating_window(pipe) == 3
    rates = [simulate([pipe], 100, window).throughput_per_s for window in (1, 2, 3, 9)]
    assert rates == pytest.approx([10 / 3, 20 / 3, 10.0, 10.0])
    # Beyond the saturating window only latency grows
    assert simulate([pipe], 1_000, 9).latency_s == pytest.approx(0.9, rel=0.01)


def test_links_overlap_with_compute() -> None:
    pipe = pipeline((0.2, 0.1, 0.05))
    assert simulate([pipe], 100, 4).throughput_per_s == pytest.approx(5.0)


def test_jobs_go_to_pipelines_in_proportion_to_their_pace() -> None:
    fast, slow = pipeline((0.0, 0.1, 0.0)), pipeline((0.0, 0.3, 0.0))
    ran = simulate([fast, slow], 400, 2)
    assert ran.jobs_per_pipeline == pytest.approx((300, 100), abs=2)
    assert ran.throughput_per_s == pytest.approx(10 + 10 / 3, rel=0.02)
    assert ran.makespan_s == pytest.approx(30.0, rel=0.02)


@pytest.mark.parametrize(
    ("pipelines", "jobs", "window", "field"),
    [(0, 100, 1, "pipelines"), (1, 7, 1, "jobs"), (1, 100, 0, "window")],
)
def test_what_cannot_be_simulated(pipelines: int, jobs: int, window: int, field: str) -> None:
    with pytest.raises(ConfigurationError, match=field):
        simulate([pipeline((0.0, 0.1, 0.0))] * pipelines, jobs, window)

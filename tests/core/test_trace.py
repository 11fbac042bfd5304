"""All parts of a trace sum to the latency, whatever the stages claim."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.trace import complete_trace
from shared.trace import StageTiming, StageTrace


def timing(stage: int, queue_s: float, compute_s: float) -> StageTiming:
    return StageTiming(stage=stage, node=f"n{stage}", queue_s=queue_s, compute_s=compute_s)


def total(trace: tuple[StageTrace, ...]) -> float:
    return math.fsum(part.queue_s + part.compute_s + part.transit_s for part in trace)


def test_what_was_not_measured_is_shared_by_predicted_hops() -> None:
    stages = [timing(0, 0.01, 0.02), timing(1, 0.0, 0.03)]
    trace = complete_trace(0.10, stages, [0.001, 0.002, 0.001])
    # 40 ms are left: a quarter to stage 0, the rest to stage 1, whose part holds the way back
    assert [part.transit_s for part in trace] == pytest.approx([0.01, 0.03])
    assert [part.node for part in trace] == ["n0", "n1"]
    assert [part.compute_s for part in trace] == [0.02, 0.03]


def test_waiting_in_the_dispatcher_is_queue_of_stage_0() -> None:
    trace = complete_trace(1.0, [timing(0, 0.1, 0.2)], [1.0, 1.0], waited_s=0.5)
    assert trace[0].queue_s == pytest.approx(0.6)
    assert trace[0].transit_s == pytest.approx(0.2)


def test_equal_hops_when_none_is_predicted() -> None:
    trace = complete_trace(0.3, [timing(0, 0, 0), timing(1, 0, 0)], [0.0, 0.0, 0.0])
    assert [part.transit_s for part in trace] == pytest.approx([0.1, 0.2])


def test_claims_above_the_whole_are_scaled_down() -> None:
    trace = complete_trace(0.1, [timing(0, 0.0, 0.1), timing(1, 0.05, 0.05)], [1, 1, 1])
    assert [part.transit_s for part in trace] == [0.0, 0.0]
    assert [part.compute_s for part in trace] == pytest.approx([0.05, 0.025])
    assert trace[1].queue_s == pytest.approx(0.025)


@given(
    latency_s=st.floats(0, 1e6),
    claims=st.lists(st.tuples(st.floats(), st.floats()), min_size=1, max_size=6),
    waited_s=st.floats(),
    data=st.data(),
)
def test_parts_are_never_negative_and_sum_to_the_latency(
    latency_s: float, claims: list[tuple[float, float]], waited_s: float, data: st.DataObject
) -> None:
    stages = [timing(index, *claim) for index, claim in enumerate(claims)]
    hops_s = data.draw(st.lists(st.floats(), min_size=len(stages) + 1, max_size=len(stages) + 1))
    trace = complete_trace(latency_s, stages, hops_s, waited_s)
    assert all(part.queue_s >= 0 and part.compute_s >= 0 and part.transit_s >= 0 for part in trace)
    assert total(trace) == pytest.approx(latency_s, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("latency_s", "num_stages", "num_hops"),
    [(-1.0, 1, 2), (math.nan, 1, 2), (math.inf, 1, 2), (1.0, 0, 1), (1.0, 2, 2)],
)
def test_what_the_caller_got_wrong(latency_s: float, num_stages: int, num_hops: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        complete_trace(latency_s, [timing(i, 0, 0) for i in range(num_stages)], [1.0] * num_hops)

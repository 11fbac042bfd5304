"""The cost model by hand, and the planner's arrays against it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given

from orchestrator.core import cost
from orchestrator.core.evaluate import evaluate, price
from orchestrator.core.hysteresis import gain_ratio, pays
from orchestrator.core.plan import Objective, PipelinePlan, Predicted, StagePlan
from orchestrator.core.tables import group_nodes, model_tables, stage_tables
from shared.errors import PlanError
from shared.profile import ModelProfile, NodeProfile
from tests.core.plan_cases import model, node, several, suited

# Two stages, everything in it: preprocessing, messages, unlike links, memory of each sort.
PROFILE = model(
    [0.010, 0.020, 0.030],
    [4_000, 1_000],
    weights=[100, 200, 400],
    peaks=[50, 20, 70],
    input_bytes=10_000,
    output_bytes=500,
    input_seconds=0.005,
    runtime_bytes=1_000,
)
FAST = node(
    "fast", 0.5, speed=2.0, up_bytes_per_s=100_000.0, down_bytes_per_s=1e6, message_s=0.001,
    price_per_hour=3.6, power_w=10.0, zone="home",
)  # fmt: skip
SLOW = node(
    "slow", 0.5, up_bytes_per_s=1e6, down_bytes_per_s=200_000.0, message_s=0.002,
    price_per_hour=0.36, power_w=2.0, zone="cloud",
)  # fmt: skip


def test_equations() -> None:
    assert cost.scaled_seconds(0.03, SLOW) == pytest.approx(0.06)
    assert cost.stage_compute(0.03, SLOW, 1e6) == pytest.approx(0.064)
    copying = dataclasses.replace(SLOW, byte_s=2e-9)
    assert cost.stage_compute(0.03, copying, 1e6) == pytest.approx(0.066)
    assert cost.stage_receive(1_000, SLOW) == pytest.approx(0.005)
    assert cost.stage_send(1_000, FAST) == pytest.approx(0.01)
    assert cost.stage_period(0.03, 0.01, 0.02) == 0.03
    assert cost.stage_period(0.01, 0.01, 0.02) == 0.02
    assert cost.pipeline_throughput([0.1, 0.2, 0.05]) == pytest.approx(5.0)
    assert cost.plan_throughput([5.0, 2.5]) == 7.5
    assert cost.plan_latency([0.1, 0.3]) == 0.3
    assert cost.plan_energy([1.0, 4.0], [3.0, 1.0]) == pytest.approx(1.75)
    assert cost.plan_cost_per_1000([3.6], 10.0) == pytest.approx(0.1)
    assert cost.plan_exposure([0.0, 0.4]) == 0.4


def test_memory_is_weights_peak_runtime_and_window_with_headroom() -> None:
    assert cost.window_buffers(400, 900, in_flight=3) == 2_700
    assert cost.stage_memory(700, 70, 1_000, 2_700) == 4_470
    assert cost.usable_bytes(node("n", memory_bytes=4_967)) == 4_470
    assert cost.usable_bytes(node("n", memory_bytes=4_966)) == 4_469


def test_a_two_stage_pipeline_by_hand() -> None:
    placed = [[("fast", (0, 2)), ("slow", (2, 3))]]
    priced = price(PROFILE, [FAST, SLOW], placed, in_flight=2, input_zone="home")
    # 35 ms at 1.0 CPU, preprocessing included, on a node of rate 1.0, and two messages
    first = StagePlan("fast", (0, 2), 0.037, 0.01, 0.01, 300 + 50 + 1_000 + 20_000)
    second = StagePlan("slow", (2, 3), 0.064, 0.005, 0.0005, 400 + 70 + 1_000 + 2_000)
    assert len(priced.pipelines) == 1
    for stage, by_hand in zip(priced.pipelines[0].stages, (first, second), strict=True):
        for field in StagePlan.__dataclass_fields__:
            wanted = getattr(by_hand, field)
            wanted = pytest.approx(wanted) if isinstance(wanted, float) else wanted
            assert getattr(stage, field) == wanted, field
    expected = Predicted(
        throughput_per_s=1 / 0.064,
        latency_s=0.037 + 0.01 + 0.01 + 0.064 + 0.005 + 0.0005,
        energy_j=10 * 0.037 + 2 * 0.064,
        cost_per_1000=1_000 * (0.001 + 0.0001) * 0.064,
        exposure_ratio=1 / 3,
    )
    for field in Predicted.__dataclass_fields__:
        assert getattr(priced.predicted, field) == pytest.approx(getattr(expected, field)), field


@pytest.mark.parametrize(
    ("zone", "exposure"), [("cloud", 1.0), ("home", 1 / 3), ("elsewhere", 1.0)]
)
def test_exposure(zone: str, exposure: float) -> None:
    placed = [[("fast", (0, 2)), ("slow", (2, 3))]]
    priced = price(PROFILE, [FAST, SLOW], placed, in_flight=1, input_zone=zone)
    assert priced.predicted.exposure_ratio == pytest.approx(exposure)


def test_copies_add_up() -> None:
    nodes = [node("a"), node("b", 0.5)]
    priced = price(
        model([0.1, 0.1]),
        nodes,
        [[("a", (0, 2))], [("b", (0, 2))]],
        in_flight=1,
        input_zone="default",
    )
    assert priced.predicted.throughput_per_s == pytest.approx(5.0 + 2.5)
    assert priced.predicted.latency_s == pytest.approx(0.4)


@several
@given(suited())
def test_arrays_say_what_the_equations_say(case: tuple[ModelProfile, list[NodeProfile]]) -> None:
    profile, nodes = case
    kinds = group_nodes(nodes)
    assert sorted(name for kind in kinds for name in kind.names) == [one.name for one in nodes]
    tables = stage_tables(model_tables(profile, in_flight=2), kinds)
    size = len(profile.blocks) + 1
    for (index, kind), i, j in itertools.product(enumerate(kinds), range(size), range(size)):
        period, latency = tables.period_s[index, i, j], tables.latency_s[index, i, j]
        if i >= j:
            assert np.isinf(period)
            assert np.isinf(latency)
            continue
        stage = cost.price_stage(profile, kind.node, (i, j), 2)
        if stage.memory_bytes > cost.usable_bytes(kind.node):
            assert np.isinf(period)
            assert np.isinf(latency)
            continue
        assert period == pytest.approx(stage.period_s, rel=1e-12, abs=1e-12)
        assert latency == pytest.approx(cost.pipeline_latency([stage]), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("placed", "expected", "got"),
    [
        ([], "at least one", "none"),
        ([[("ghost", (0, 3))]], "one of fast, slow", "ghost"),
        ([[("fast", (0, 2)), ("fast", (2, 3))]], "at most one of a model", "2"),
        ([[("fast", (0, 3))], [("fast", (0, 3))]], "at most one of a model", "2"),
        ([[("fast", (1, 3))]], "[0, stop) with stop in 1..3", "[1, 3)"),
        ([[("fast", (0, 1)), ("slow", (2, 3))]], "[1, stop) with stop in 2..3", "[2, 3)"),
        ([[("fast", (0, 0))]], "[0, stop) with stop in 1..3", "[0, 0)"),
        ([[("fast", (0, 4))]], "[0, stop) with stop in 1..3", "[0, 4)"),
        ([[("fast", (0, 2))]], "3 blocks", "2"),
    ],
)
def test_what_cannot_run_has_no_price(
    placed: list[list[tuple[str, tuple[int, int]]]], expected: str, got: str
) -> None:
    with pytest.raises(PlanError) as error:
        price(PROFILE, [FAST, SLOW], placed, in_flight=1, input_zone="home")
    assert (error.value.expected, error.value.got) == (expected, got)


def test_a_present_plan_is_priced_under_the_profiles_of_today() -> None:
    yesterday = [node("a"), node("b")]
    stages = (StagePlan("a", (0, 1), 9.0, 9.0, 9.0, 9), StagePlan("b", (1, 2), 9.0, 9.0, 9.0, 9))
    profile = model([0.1, 0.1], weights=[100, 100])
    before = evaluate(profile, yesterday, [PipelinePlan(stages)]).predicted
    assert before.throughput_per_s == pytest.approx(10.0)
    after = evaluate(profile, [node("a"), node("b", 0.5)], [PipelinePlan(stages)]).predicted
    assert after.throughput_per_s == pytest.approx(5.0)
    with pytest.raises(PlanError, match="do not fit node 'b'") as error:
        evaluate(profile, [node("a"), node("b", memory_bytes=110)], [PipelinePlan(stages)])
    assert (error.value.expected, error.value.got) == ("at most 99 bytes", "100 bytes")


@pytest.mark.parametrize(
    ("objective", "throughput", "latency", "gain"),
    [
        (Objective.THROUGHPUT, 11.5, 9.0, 0.15),
        (Objective.THROUGHPUT, 11.4, 0.01, 0.14),
        (Objective.THROUGHPUT, 5.0, 0.01, -0.5),
        (Objective.LATENCY, 1.0, 0.8, 0.25),
        (Objective.LATENCY, 100.0, 0.9, 1 / 9),
        (Objective.LATENCY, 100.0, 2.0, -0.5),
    ],
)
def test_a_switch_pays_above_the_threshold(
    objective: Objective, throughput: float, latency: float, gain: float
) -> None:
    present = Predicted(10.0, 1.0, 0.0, 0.0, 0.0)
    candidate = Predicted(throughput, latency, 0.0, 0.0, 0.0)
    assert gain_ratio(present, candidate, objective) == pytest.approx(gain)
    assert pays(present, candidate, objective, 0.1499) == (gain >= 0.1499)
    assert not pays(present, present, objective)
    assert pays(present, present, objective, threshold=0.0)

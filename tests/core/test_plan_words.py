"""The planner's words: goals, limits and zones as they are written, and what makes no sense in them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchestrator.core.figures import Objective, Predicted, burden, in_words
from orchestrator.core.goal import Weights, parse_goal, score, yardstick
from orchestrator.core.hysteresis import gain_ratio
from orchestrator.core.limits import KeepInput, Limits, done_ratios, parse_keep_input
from orchestrator.core.plan import PlanRequest
from shared.errors import ConfigurationError
from tests.core.plan_cases import model, node

LATENCY_COST = Weights(((Objective.LATENCY, 0.7), (Objective.COST, 0.3)))


def figures(**values: float) -> Predicted:
    names = ("throughput_per_s", "latency_s", "energy_j", "cost_per_1000", "exposure_ratio")
    return Predicted(**(dict.fromkeys(names, 1.0) | values))


@pytest.mark.parametrize("objective", Objective)
def test_one_objective(objective: Objective) -> None:
    assert parse_goal(str(objective)) is objective
    assert parse_goal(f" {objective} = 3 ") is objective


def test_weights_are_scaled_and_in_a_fixed_order() -> None:
    assert parse_goal("cost=3, latency=7") == LATENCY_COST
    assert str(LATENCY_COST) == "latency=0.7,cost=0.3"
    assert parse_goal(str(LATENCY_COST)) == LATENCY_COST


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed", "objective; expected one of throughput, latency, energy, cost, exposure"),
        ("", "got ''"),
        ("latency,cost", "expected a weight for each of several, as in latency=0.7,cost=0.3"),
        ("latency=0.7,", "expected a weight for each of several"),
        ("latency=0.7,speed=1", "got 'speed'"),
        ("latency=x,cost=1", "weight of latency; expected a finite number above 0; got 'x'"),
        ("latency=0,cost=1", "weight of latency"),
        ("latency=-1,cost=1", "weight of latency"),
        ("latency=nan,cost=1", "weight of latency"),
        ("latency=inf", "weight of latency"),
        ("latency=1,latency=2", "expected each objective once; got latency twice"),
    ],
)
def test_goals_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        parse_goal(text)
    assert message in str(error.value)


def test_a_score_is_relative_to_the_best_of_each_figure() -> None:
    marks = yardstick(LATENCY_COST, {Objective.LATENCY: 0.1, Objective.COST: 0.02}, {})
    assert score(figures(latency_s=0.1, cost_per_1000=0.02), LATENCY_COST, marks) == pytest.approx(
        1
    )
    slow = figures(latency_s=0.2, cost_per_1000=0.02)
    assert score(slow, LATENCY_COST, marks) == pytest.approx(0.7 * 2 + 0.3)


def test_a_score_where_the_best_is_nothing() -> None:
    free = yardstick(
        LATENCY_COST, {Objective.LATENCY: 0.1, Objective.COST: 0.0}, {Objective.COST: 0.5}
    )
    paid = figures(latency_s=0.1, cost_per_1000=0.5)
    assert score(paid, LATENCY_COST, free) == pytest.approx(0.7 + 0.3 * 2)
    private = Weights(((Objective.LATENCY, 1.0), (Objective.EXPOSURE, 1.0)))
    marks = yardstick(private, {Objective.LATENCY: 0.1, Objective.EXPOSURE: 0.0}, {})
    seen = figures(latency_s=0.1, exposure_ratio=0.4)
    assert score(seen, private, marks) == pytest.approx(0.5 + 0.5 * 1.4)


@pytest.mark.parametrize(
    ("objective", "before", "after", "gain"),
    [
        (Objective.ENERGY, 3.0, 2.0, 0.5),
        (Objective.COST, 2.0, 4.0, -0.5),
        (Objective.EXPOSURE, 0.5, 0.0, math.inf),
        (Objective.EXPOSURE, 0.0, 0.5, -1.0),
    ],
)
def test_gain_of_any_objective(
    objective: Objective, before: float, after: float, gain: float
) -> None:
    field = {
        Objective.ENERGY: "energy_j",
        Objective.COST: "cost_per_1000",
        Objective.EXPOSURE: "exposure_ratio",
    }[objective]
    assert gain_ratio(figures(**{field: before}), figures(**{field: after}), objective) == gain


def test_where_the_goal_sees_no_difference_throughput_is_the_gain() -> None:
    slow, fast = (figures(throughput_per_s=t, exposure_ratio=0.0) for t in (10.0, 15.0))
    assert gain_ratio(slow, fast, Objective.EXPOSURE) == pytest.approx(0.5)


def test_gain_of_weights() -> None:
    before, after = figures(latency_s=0.2), figures(latency_s=0.1)
    marks = yardstick(LATENCY_COST, {Objective.LATENCY: 0.1, Objective.COST: 1.0}, {})
    assert gain_ratio(before, after, LATENCY_COST, marks) == pytest.approx(1.7 - 1)
    # Without a yardstick each figure is relative to the better of the two
    assert gain_ratio(before, after, LATENCY_COST) == pytest.approx(1.7 - 1)
    traded = figures(latency_s=0.1, cost_per_1000=2.0)
    assert gain_ratio(before, traded, LATENCY_COST) == pytest.approx(1.7 / 1.3 - 1)
    assert gain_ratio(figures(cost_per_1000=0.0), figures(cost_per_1000=0.0), LATENCY_COST) == 0.0


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("max_latency_s", 0.0, "a finite number above 0"),
        ("max_latency_s", math.nan, "a finite number above 0"),
        ("min_throughput_per_s", -1.0, "a finite number above 0"),
        ("min_throughput_per_s", math.inf, "a finite number above 0"),
        ("max_energy_j", -0.1, "a finite number, 0 or more"),
        ("max_cost_per_1000", True, "a finite number, 0 or more"),
        ("max_cost_per_1000", "cheap", "a finite number, 0 or more"),
        ("max_exposure_ratio", 1.5, "a ratio in 0..1"),
    ],
)
def test_limits_that_make_no_sense(field: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=field) as error:
        Limits(**{field: value})
    assert (error.value.expected, error.value.got) == (expected, repr(value))


def test_what_a_plan_breaks_in_words() -> None:
    limits = Limits(max_latency_s=0.2, min_throughput_per_s=5.0, max_cost_per_1000=0.0)
    assert limits.objectives == (Objective.THROUGHPUT, Objective.LATENCY, Objective.COST)
    good = figures(latency_s=0.2, throughput_per_s=5.0, cost_per_1000=0.0)
    assert limits.broken(good) == ()
    assert limits.breach(good) == ""
    bad = figures(latency_s=0.231, throughput_per_s=4.0, cost_per_1000=0.0)
    assert limits.breach(bad) == (
        "breaks the limit: 4 jobs/s against 5 jobs/s, 231 ms against 200 ms"
    )


def test_figures_in_words() -> None:
    assert [in_words(one, 0.25) for one in Objective] == [
        "0.25 jobs/s",
        "250 ms",
        "0.25 J",
        "0.25 per 1,000",
        "25% exposed",
    ]
    assert burden(figures(throughput_per_s=4.0), Objective.THROUGHPUT) == 0.25


PROFILE = model([0.1] * 4, macs=[100, 0, 100, 200])


@pytest.mark.parametrize(
    ("text", "keep", "depth"),
    [
        ("home", KeepInput("home"), 1),
        ("home:3", KeepInput("home", 3), 3),
        ("home:25%", KeepInput("home", min_macs_ratio=0.25), 1),
        ("home:26%", KeepInput("home", min_macs_ratio=0.26), 3),
        ("home:100%", KeepInput("home", min_macs_ratio=1.0), 4),
        ("home:0%", KeepInput("home"), 1),
    ],
)
def test_how_deep_the_input_is_kept(text: str, keep: KeepInput, depth: int) -> None:
    assert parse_keep_input(text) == keep
    assert keep.depth(PROFILE) == depth


def test_the_share_of_a_model_without_counted_multiply_adds() -> None:
    assert done_ratios(model([0.1] * 2, macs=[0, 0])) == [0.0, 0.0, 1.0]
    assert KeepInput("home", min_macs_ratio=0.1).depth(model([0.1] * 2, macs=[0, 0])) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "zone; expected some text"),
        (":3", "zone; expected some text"),
        ("home:0", "min_blocks; expected 1 or more; got 0"),
        ("home:x", "expected ZONE, ZONE:BLOCKS or ZONE:SHARE%"),
        ("home:", "expected ZONE, ZONE:BLOCKS or ZONE:SHARE%"),
        ("home:101%", "min_macs_ratio; expected a ratio in 0..1"),
        ("home:nan%", "min_macs_ratio; expected a ratio in 0..1"),
    ],
)
def test_zones_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        parse_keep_input(text)
    assert message in str(error.value)


def test_requests_that_contradict_themselves_about_zones() -> None:
    nodes = (node("a", zone="home"),)
    with pytest.raises(ConfigurationError, match="expected at most the 4 blocks of toy; got 5"):
        PlanRequest(PROFILE, nodes, keep_input=KeepInput("home", 5))
    with pytest.raises(ConfigurationError, match="input_zone; expected the zone that is to keep"):
        PlanRequest(PROFILE, nodes, keep_input=KeepInput("home"), input_zone="cloud")
    assert PlanRequest(PROFILE, nodes, keep_input=KeepInput("home")).home_zone == "home"
    assert PlanRequest(PROFILE, nodes, input_zone="lab").home_zone == "lab"
    assert PlanRequest(PROFILE, nodes).home_zone == "default"

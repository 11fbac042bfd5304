"""A node's speed at a model: calibrated by class of operator, block by block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.core import cost
from orchestrator.core.cluster_events import ModelEntry
from orchestrator.core.nodes import Node
from orchestrator.core.speeds import (
    COMPONENTS,
    MESSAGE_CPU_S,
    SLOWDOWN_BOUNDS,
    Speed,
    node_speed,
    stage_components,
)
from shared.graph import CostClass
from shared.messages.node import Calibration, NodeState
from tests.core.cluster_world import birth, entry

ONES = np.ones(len(COMPONENTS))
REFERENCE = {name.value: 0.01 for name in CostClass}
DENSE, DEPTHWISE = (1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0, 0.0)


def calibrated(**slowdowns: float) -> NodeState:
    """A node with 1.0 CPU, so much slower than the reference at some classes."""
    seconds = {name: value * slowdowns.get(name, 1.0) for name, value in REFERENCE.items()}
    return birth("a", calibration={"torch": Calibration(seconds=seconds, runtime_bytes=1)})


def mixed(*shares: tuple[float, ...], input_seconds: float = 0.0) -> ModelEntry:
    """Six blocks of 10 ms."""
    one = entry()
    profile = replace(one.profile, input_seconds=input_seconds)
    return replace(one, reference={"torch": REFERENCE}, block_shares=shares, profile=profile)


@pytest.mark.parametrize(
    ("speed", "thought"),
    [(0.5, 0.5), (1e9, 1 / SLOWDOWN_BOUNDS[0]), (1e-9, 1 / SLOWDOWN_BOUNDS[1])],
)
def test_speed_by_one_class(speed: float, thought: float) -> None:
    assert node_speed(birth("a", speed=speed), entry(), ONES).speed == pytest.approx(thought)


def test_speed_of_a_node_or_model_without_a_reference_is_one() -> None:
    plain = Speed(1.0, (), 1.0, MESSAGE_CPU_S, 1e-9)
    state = birth("a", speed=0.5)
    for reference in ({}, {"torch": {"other": 1.0}}, {"torch": {"conv_dense": 0.0}}):
        assert node_speed(state, replace(entry(), reference=reference), ONES) == plain
    assert node_speed(birth("b"), entry(), ONES) == plain


def test_a_class_that_was_not_measured_is_like_the_others() -> None:
    state = calibrated(conv_dense=3.0)
    del state.calibration["torch"].seconds["conv_depthwise"]
    components = stage_components(state, mixed(*[DEPTHWISE] * 6), (1, 2))
    assert components[1] == pytest.approx(0.01 * (3 + 1 + 1 + 1) / 4)


def test_blocks_of_a_class_that_a_node_is_slow_at() -> None:
    one = mixed(*[DENSE] * 3, *[DEPTHWISE] * 3)
    found = node_speed(calibrated(conv_depthwise=3.0), one, ONES)
    assert found.speed == pytest.approx(0.5), "60 ms there, 30 + 90 ms here"
    assert found.block_factors == pytest.approx((0.5, 0.5, 0.5, 1.5, 1.5, 1.5))
    even = node_speed(calibrated(conv_depthwise=3.0), mixed(*[(0.5, 0.5, 0.0, 0.0, 0.0)] * 6), ONES)
    assert even.speed == pytest.approx(0.5)
    assert even.block_factors == (), "no block is unlike another"


def test_small_steps_go_by_the_overhead() -> None:
    one = mixed(*[DENSE] * 6, input_seconds=0.02)
    found = node_speed(calibrated(overhead=4.0), one, ONES)
    assert found.speed == 1.0
    assert found.input_factor == pytest.approx(4.0)
    assert found.message_cpu_s == pytest.approx(4 * MESSAGE_CPU_S)


def test_the_planner_prices_what_the_components_say() -> None:
    """The same stage by its components, and by the profile that the planner is given."""
    one = mixed(*[DENSE] * 2, *[DEPTHWISE] * 2, *[(0.2,) * 5] * 2, input_seconds=0.02)
    state = calibrated(conv_depthwise=3.0, overhead=2.0, memory=0.5)
    node = Node(state, 0.0)
    corrections = node.corrections_of("torch")
    corrections.take("m", stage_components(state, one, (0, 3)), 0.2)
    corrections.take("m", stage_components(state, one, (3, 6)), 0.1)
    profile = node.profile(one)
    assert profile is not None
    for blocks in ((0, 1), (0, 3), (2, 4), (3, 6), (0, 6)):
        stage = cost.price_stage(one.profile, profile, blocks, 1)
        components = stage_components(state, one, blocks)
        assert stage.compute_s == pytest.approx(components @ corrections.multipliers("m"))

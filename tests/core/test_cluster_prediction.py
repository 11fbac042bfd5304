"""A cluster whose nodes are not what their calibration says: it finds out, plans anew, and comes to rest."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from orchestrator.core.cluster_events import ModelEntry, StageMeasured
from orchestrator.core.speeds import COMPONENTS, FloatArray, stage_components
from shared.graph import CostClass
from shared.messages.node import Calibration
from tests.core.cluster_world import World, entry
from tests.core.plan_cases import model

REFERENCE = {name.value: 0.01 for name in CostClass}
BLOCKS = 12
ITEMS_PER_S = 5
SECONDS_OF_50_JOBS = 10


def mixed_entry(random: Random) -> ModelEntry:
    """Blocks from dense to depthwise, as a mobile network's, with an input to read."""
    shares = []
    for index in range(BLOCKS):
        weights = [1.0, index / 4, 0.1, random.random(), 0.2]
        shares.append(tuple(weight / sum(weights) for weight in weights))
    profile = model(
        [random.uniform(0.002, 0.02) for _ in range(BLOCKS)],
        [50_000] * (BLOCKS - 1),
        weights=[1_000_000] * BLOCKS,
        input_seconds=0.005,
    )
    return replace(
        entry(min_stages=3, max_stages=3),
        profile=profile,
        reference={"torch": REFERENCE},
        block_shares=tuple(shares),
    )


def measure(world: World, one: ModelEntry, truth: dict[str, FloatArray], noise: Random) -> None:
    """A second of jobs through the generation that is active."""
    active = world.served().active
    if active is None:
        return
    for index, pipeline in active.running():
        for number, stage in enumerate(pipeline.stages):
            node = world.cluster.nodes[stage.node]
            components = stage_components(node.state, one, stage.blocks)
            seconds = float(components @ truth[stage.node]) * noise.lognormvariate(0.0, 0.05)
            assert node.state.hardware is not None
            share = node.state.hardware.cpu
            world.send(
                StageMeasured(
                    world.now, "m", active.names[index], active.number, number, stage.node,
                    ITEMS_PER_S, seconds, seconds / share,
                )
            )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_it_learns_what_its_nodes_are_and_comes_to_rest(seed: int) -> None:
    random = Random(seed)
    one = mixed_entry(random)
    world = World()
    truth = {}
    for name, cpu in (("a", 0.5), ("b", 0.3), ("c", 0.2)):
        measured = Calibration(seconds=REFERENCE, runtime_bytes=1)
        world.join(name, calibration={"torch": measured}, cpu=cpu)
        truth[name] = np.array([random.uniform(0.6, 1.8) for _ in COMPONENTS])
    world.serve(one)
    world.settle()
    for _ in range(SECONDS_OF_50_JOBS):
        world.wait(1)
        measure(world, one, truth, random)
    error = world.state().prediction_error
    assert error is not None
    assert error.items == ITEMS_PER_S * SECONDS_OF_50_JOBS
    assert error.now_ratio < 0.15
    switched = []
    for second in range(240):
        before = world.state().generation
        world.wait(1)
        measure(world, one, truth, random)
        if world.state().generation > before:
            switched.append(second)
    assert len(switched) <= 2, "once for what it learnt, once more for what that plan taught"
    assert all(second < 150 for second in switched), "and then it rests"
    last = world.state().prediction_error
    assert last is not None
    assert last.now_ratio < 0.10

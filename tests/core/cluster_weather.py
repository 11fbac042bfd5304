"""An hour in the life of a cluster, second by second: noise like a real machine's, and changes on top of it.

The core is stepped by its own events; what it wants done is done at once. Stage times are made from the plan
in force by what each node really is at that second, so that a switch changes what is measured after it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.core.cluster_events import Event, NodeHeard, StageMeasured, Tick
from tests.core.cluster_world import MB, World, telemetry

ITEM_SPREAD = 0.2
"""Of single items' times, as the sigma of a log-normal."""
SECOND_SPREAD = 0.1
"""Of what all items of a second have in common: clock, caches, other processes."""


@dataclass(frozen=True)
class Truth:
    """What a node really is: CPU seconds are multiplied by `slower`, and it gets `left` of its CPU."""

    slower: float = 1.0
    left: float = 1.0


Change = Callable[[int, str], Truth]
"""By second and node."""


def nothing(second: int, node: str) -> Truth:
    """No change at all."""
    del second, node
    return Truth()


@dataclass
class Weather:
    """The noise of one seed."""

    seed: int
    _common: dict[str, float] = field(default_factory=dict)
    _burst: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def factor(self, node: str, items: int) -> float:
        """By what the mean of a second's items is off."""
        draw = self.random
        # What disturbs a second often disturbs the next.
        common = 0.8 * self._common.get(node, 0.0) + 0.6 * draw.gauss(0.0, SECOND_SPREAD)
        self._common[node] = common
        if draw.random() < 1 / 120:
            self._burst[node] = draw.randint(2, 5)
        left = self._burst.get(node, 0)
        self._burst[node] = max(left - 1, 0)
        mean = sum(draw.lognormvariate(0.0, ITEM_SPREAD) for _ in range(items)) / items
        outlier = 3.0 if draw.random() < 0.01 else 1.0
        return mean * math.exp(common) * outlier * (1.5 if left else 1.0)


def live(world: World, seconds: int, weather: Weather, change: Change = nothing) -> int:
    """Let time pass; how many generations of `m` came up."""
    before = world.state().generation
    for second in range(seconds):
        world.now += 1.0
        for event in _second(world, second, weather, change):
            actions = world.cluster.step(event)
            if actions:
                world.took(actions)
                world.settle()
    return world.state().generation - before


def _second(world: World, second: int, weather: Weather, change: Change) -> list[Event]:
    now, draw = world.now, weather.random
    events: list[Event] = []
    for name, agent in sorted(world.agents.items()):
        sample = telemetry(
            name,
            agent.state.incarnation,
            cpu_percent=draw.uniform(20.0, 100.0),
            up_bytes_per_s=100e6 * draw.lognormvariate(0.0, 0.2),
            down_bytes_per_s=100e6 * draw.lognormvariate(0.0, 0.2),
            memory_available_bytes=int(1000 * MB * draw.uniform(0.9, 1.0)),
            **agent.figures,
        )
        events.append(NodeHeard(now, sample))
    active = world.served().active
    if active is not None:
        busiest = draw.choice((0, 3, 20, 20, 20, 60))
        for index, pipeline in active.running():
            for number, stage in enumerate(pipeline.stages):
                if not busiest:
                    continue
                truth = change(second, stage.node)
                blocks = stage.blocks[1] - stage.blocks[0]
                hardware = world.agents[stage.node].state.hardware
                assert hardware is not None
                cpu_s = 0.01 * blocks * truth.slower * weather.factor(stage.node, busiest)
                wall_s = cpu_s / min(hardware.cpu, 1.0) / truth.left
                events.append(
                    StageMeasured(
                        now, "m", active.names[index], active.number, number, stage.node,
                        busiest, cpu_s, wall_s,
                    )
                )  # fmt: skip
    return [*events, Tick(now)]

"""The real dispatcher over simulated pipelines: discrete events, no clock, a seed for what is random.

A pipeline is stages in a row, each of which takes one item at a time. What the plan says of it and what it
really does are two things: it may slow down, or freeze and be noticed only later. Telemetry comes once a
second, as in a cluster.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.dispatch import Dispatcher
from orchestrator.core.dispatch_events import (
    Action,
    Answer,
    Dispatch,
    Event,
    InputItem,
    ModelServed,
    Output,
    PipelineActivated,
    PipelineFigures,
    PipelineLost,
    RequestArrived,
    ResultArrived,
    Tick,
)
from orchestrator.core.dispatch_settings import DispatchSettings
from orchestrator.core.nsa import NodeFigures
from orchestrator.core.scheduler_settings import SchedulerSettings

MODEL = "m"
TELEMETRY_S = 1.0
MB = 1e6


@dataclass
class Line:
    """One pipeline: `stages_s` as planned, `factor` of them at a time as it really is.

    From `frozen_at` on it gives nothing back; `lost_at` is when the cluster notices.
    """

    name: str
    stages_s: tuple[float, ...]
    factor: Callable[[float], float] = lambda _: 1.0
    frozen_at: float = math.inf
    lost_at: float = math.inf
    free_at: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)
    taken: int = 0
    stuck: int = 0
    """Items that it took and never gave back."""

    def __post_init__(self) -> None:
        self.free_at = [0.0] * len(self.stages_s)
        self.busy_s = [0.0] * len(self.stages_s)

    @property
    def throughput_per_s(self) -> float:
        return 1.0 / max(self.stages_s)

    def run(self, now: float, chance: random.Random) -> float:
        """When an item that comes now is done."""
        self.taken += 1
        for stage, planned_s in enumerate(self.stages_s):
            begins = max(now, self.free_at[stage])
            seconds = planned_s * self.factor(begins) * chance.uniform(0.9, 1.1)
            self.busy_s[stage] += seconds
            now = self.free_at[stage] = begins + seconds
        return now

    def figures(self, now: float) -> tuple[NodeFigures, ...]:
        """Telemetry of the last second: CPU in use is what the stage itself did."""
        busy, self.busy_s = self.busy_s, [0.0] * len(self.busy_s)
        period_s = max(self.stages_s)
        return tuple(
            NodeFigures(
                node=f"{self.name}-{stage}",
                cpu_available=1.0,
                cpu_needed=0.9 * planned_s / period_s,
                memory_available_bytes=500 * MB,
                memory_needed_bytes=100 * MB,
                load_ratio=min(seconds / TELEMETRY_S, 1.0),
                round_trip_s=0.001,
            )
            for stage, (planned_s, seconds) in enumerate(zip(self.stages_s, busy, strict=True))
        )


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    latencies_s: list[float]
    throughput_per_s: float
    failed: int
    taken: dict[str, int]
    stuck: int
    """Items that went into a pipeline and had to run again elsewhere."""

    def quantile_s(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def simulate(
    scheduling: SchedulerSettings, lines: Sequence[Line], arrivals: Sequence[float], seed: int
) -> Outcome:
    """Jobs that come at `arrivals`, through `lines`; each ends in an answer."""
    return _Run(scheduling, lines, seed).run(arrivals)


class _Run:
    def __init__(self, scheduling: SchedulerSettings, lines: Sequence[Line], seed: int) -> None:
        # Nobody is refused or given up: rules are compared by the same jobs.
        settings = DispatchSettings(scheduling=scheduling, max_queued_items=10**6, max_attempts=100)
        self.dispatcher = Dispatcher(settings)
        self.chance = random.Random(seed)
        self.lines = {line.name: line for line in lines}
        self.numbers = itertools.count()
        self.due: list[tuple[float, int, Event | None]] = []
        self.latencies_s: list[float] = []
        self.last = 0.0
        self.failed = 0

    def run(self, arrivals: Sequence[float]) -> Outcome:
        self.dispatcher.step(ModelServed(0.0, MODEL))
        for line in self.lines.values():
            self.step(
                PipelineActivated(
                    now=0.0,
                    model=MODEL,
                    pipeline=line.name,
                    generation=1,
                    num_stages=len(line.stages_s),
                    throughput_per_s=line.throughput_per_s,
                    latency_s=sum(line.stages_s),
                )
            )
            if line.lost_at < math.inf:
                self.later(PipelineLost(line.lost_at, MODEL, line.name, 1))
        for index, at in enumerate(arrivals):
            self.later(
                RequestArrived(
                    now=at,
                    request_id=f"r{index}",
                    model=MODEL,
                    reply_to="result/x",
                    items=(InputItem(None, 1),),
                    handle=index,
                )
            )
        heapq.heappush(self.due, (TELEMETRY_S, next(self.numbers), None))
        while self.due and len(self.latencies_s) + self.failed < len(arrivals):
            at, _, event = heapq.heappop(self.due)
            wakeup = self.dispatcher.next_wakeup()
            while wakeup is not None and wakeup < at:
                self.step(Tick(wakeup))
                wakeup = self.dispatcher.next_wakeup()
            if event is not None:
                self.step(event)
            else:
                self.telemetry(at)
        return Outcome(
            self.latencies_s,
            len(self.latencies_s) / (self.last - arrivals[0]),
            self.failed,
            {name: line.taken for name, line in self.lines.items()},
            sum(line.stuck for line in self.lines.values()),
        )

    def telemetry(self, now: float) -> None:
        for line in self.lines.values():
            if now < line.frozen_at:
                self.step(PipelineFigures(now, MODEL, line.name, 1, line.figures(now)))
        heapq.heappush(self.due, (now + TELEMETRY_S, next(self.numbers), None))

    def later(self, event: Event) -> None:
        heapq.heappush(self.due, (event.now, next(self.numbers), event))

    def step(self, event: Event) -> None:
        for action in self.dispatcher.step(event):
            self.perform(action, event.now)

    def perform(self, action: Action, now: float) -> None:
        match action:
            case Dispatch():
                line = self.lines[action.pipeline]
                done = line.run(now, self.chance)
                if done >= line.frozen_at:
                    line.stuck += 1
                else:
                    self.later(
                        ResultArrived(
                            now=done,
                            request_id=action.request_id,
                            item_index=action.item_index,
                            attempt=action.attempt,
                            pipeline=action.pipeline,
                            generation=action.generation,
                            outcome=Output(None),
                        )
                    )
            case Answer(failure=None):
                self.latencies_s.append(action.latency_s)
                self.last = now
            case Answer():
                self.failed += 1
            case _:
                pass


def poisson(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Arrivals without memory."""
    chance = random.Random(seed)

    def times() -> Iterator[float]:
        now = 0.0
        while (now := now + chance.expovariate(rate_per_s)) < seconds:
            yield now

    return list(times())


def bursts(jobs: int, every_s: float, seconds: float) -> list[float]:
    """So many at once, again and again."""
    return [index * every_s for index in range(int(seconds / every_s)) for _ in range(jobs)]


def between(start_s: float, stop_s: float, factor: float) -> Callable[[float], float]:
    """A slowness that begins and ends."""
    return lambda now: factor if start_s <= now < stop_s else 1.0


# --- what the rules are compared in ---------------------------------------------------------------

WORK_S = 0.02
"""Of one item at 1.0 CPU: MobileNetV2's, about."""
SHARES = (0.5, 0.3, 0.2)
CAPACITY_PER_S = sum(SHARES) / WORK_S


@dataclass(frozen=True)
class Scenario:
    """`lines` makes fresh pipelines, `arrivals` the jobs, from how many seconds and a seed."""

    text: str
    lines: Callable[[float], list[Line]]
    arrivals: Callable[[float, int], list[float]]

    def run(self, scheduling: SchedulerSettings, seconds: float, seed: int) -> Outcome:
        return simulate(scheduling, self.lines(seconds), self.arrivals(seconds, seed), seed)

    def num_jobs(self, seconds: float, seed: int) -> int:
        return len(self.arrivals(seconds, seed))


def copies(**first: Any) -> list[Line]:
    """The whole model on each of three devices. The fastest has the last name: ties do not favour it."""
    fastest, middle, slowest = (WORK_S / share for share in SHARES)
    return [Line("c", (fastest,), **first), Line("b", (middle,)), Line("a", (slowest,))]


def mixture() -> list[Line]:
    """A cut over three devices, and two whole copies."""
    return [
        Line("c", (WORK_S / 1.5,) * 3),
        Line("b", (WORK_S / 0.5,)),
        Line("a", (WORK_S / 0.2,)),
    ]


def steadily(ratio: float, capacity_per_s: float = CAPACITY_PER_S) -> Callable[..., list[float]]:
    return lambda seconds, seed: poisson(ratio * capacity_per_s, seconds, seed)


SCENARIOS = {
    "light": Scenario("three unequal copies at 20 % load", lambda _: copies(), steadily(0.2)),
    "busy": Scenario("the same at 70 %", lambda _: copies(), steadily(0.7)),
    "full": Scenario("the same at 95 %", lambda _: copies(), steadily(0.95)),
    "bursts": Scenario(
        "24 jobs at once, every second", lambda _: copies(), lambda s, _: bursts(24, 1.0, s)
    ),
    "one slows": Scenario(
        "55 %; the fastest falls to a third for a third of the time",
        lambda s: copies(factor=between(s / 3, 2 * s / 3, 3.0)),
        steadily(0.55),
    ),
    "one freezes": Scenario(
        "40 %; the fastest freezes at a third of the time, which is noticed 3.5 s later",
        lambda s: copies(frozen_at=s / 3, lost_at=s / 3 + 3.5),
        steadily(0.4),
    ),
    "wrong plan": Scenario(
        "50 %; the fastest takes twice as long as planned",
        lambda _: copies(factor=lambda _: 2.0),
        steadily(0.5),
    ),
    "mixture": Scenario(
        "a pipeline of three stages and two copies at 70 %",
        lambda _: mixture(),
        steadily(0.7, (1.5 + 0.5 + 0.2) / WORK_S),
    ),
}

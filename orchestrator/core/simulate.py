"""A dry run of jobs through a plan: what the cost model leaves out, queues and credits.

Each stage is three servers in a row that work at the same time: its downlink, its CPU, its uplink. Each takes
one job at a time, first come, first served, for exactly the seconds that the plan says. A pipeline takes at
most `window` jobs at once (the dispatcher's credits); there is always another job waiting. Where the window
is large enough to keep the slowest server busy, throughput is the cost model's; with a window of one, latency
is.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.plan import PipelinePlan
from shared.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Simulated:
    """Figures of a dry run.

    `throughput_per_s` is counted between the first quarter of the answers and the last, when the pipelines
    are full; `latency_s` is the mean from a job's entry into its pipeline to its answer. `jobs_per_pipeline`
    is in the order of the plan's pipelines.
    """

    makespan_s: float
    throughput_per_s: float
    latency_s: float
    jobs_per_pipeline: tuple[int, ...]


def saturating_window(pipeline: PipelinePlan) -> int:
    """The least number of jobs in flight that keeps the slowest server busy, by Little's law."""
    latency = sum(s.compute_s + s.receive_s + s.send_s for s in pipeline.stages)
    period = max(stage.period_s for stage in pipeline.stages)
    # A relative grain less, or rounding asks for one job more than 3 x 0.1 s in 0.3 s
    return max(1, math.ceil(latency / period * (1 - 1e-9)))


def simulate(pipelines: Sequence[PipelinePlan], jobs: int, window: int) -> Simulated:
    """Run `jobs` through the pipelines, each job into the one that has had room for longest.

    Raises ConfigurationError for no pipeline, fewer than 8 jobs (too few to speak of a rate), or no window.
    """
    if not pipelines:
        raise ConfigurationError("pipelines", expected="at least one", got="none")
    if jobs < 8:
        raise ConfigurationError("jobs", expected="8 or more", got=str(jobs))
    if window < 1:
        raise ConfigurationError("window", expected="1 or more", got=str(window))
    servers = [
        [s for stage in pipe.stages for s in (stage.receive_s, stage.compute_s, stage.send_s)]
        for pipe in pipelines
    ]
    free_at = [[0.0] * len(row) for row in servers]
    # One entry per credit: since when it is free, then whose
    credits_free = [(0.0, turn, index) for turn in range(window) for index in range(len(pipelines))]
    heapq.heapify(credits_free)
    taken = [0] * len(pipelines)
    answers: list[float] = []
    waited = 0.0
    for turn in range(window, window + jobs):
        entry, _, index = heapq.heappop(credits_free)
        now = entry
        for server, seconds in enumerate(servers[index]):
            now = max(now, free_at[index][server]) + seconds
            free_at[index][server] = now
        heapq.heappush(credits_free, (now, turn, index))
        answers.append(now)
        taken[index] += 1
        waited += now - entry
    answers.sort()
    return Simulated(
        makespan_s=answers[-1],
        throughput_per_s=_steady_rate(answers),
        latency_s=waited / jobs,
        jobs_per_pipeline=tuple(taken),
    )


def _steady_rate(answers: list[float]) -> float:
    """Answers per second while full: the pipelines fill at the start and, unevenly, run dry at the end."""
    first, last = len(answers) // 4, len(answers) * 3 // 4
    return (last - first) / (answers[last] - answers[first])

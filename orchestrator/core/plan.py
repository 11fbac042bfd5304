"""The planner's nouns: what is asked (`PlanRequest`) and what is answered (`Plan`).

A plan is a set of pipelines; a pipeline is an ordered list of stages; one stage may be the whole model. So
one node alone, a copy on each node, one long pipeline, and mixtures are all plans. Field names are those of
the plan's JSON (ALGORITHMS.md, section 3).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import StrEnum

from shared.errors import ConfigurationError
from shared.profile import ModelProfile, NodeProfile

DEFAULT_IN_FLIGHT = 8
"""Jobs inside one pipeline that memory is kept for: what the dispatcher allows a pipeline of three stages."""


class Objective(StrEnum):
    """What a plan is to be best at."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"


class Strategy(StrEnum):
    """How a plan is found."""

    OPTIMAL = "optimal"
    """The best of one node, copies, pipelines and mixtures."""
    SINGLE = "single"
    """The whole model on the best node alone."""
    REPLICATE = "replicate"
    """A copy of the whole model on each node where it fits."""
    EQUAL = "equal"
    """The paper's equal shares of the paper's cost; a baseline."""
    RALOS = "ralos"
    """The paper's shares by capability; a baseline."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Blocks `[start, stop)` on a node: seconds per job, and bytes of memory without the headroom."""

    node: str
    blocks: tuple[int, int]
    compute_s: float
    receive_s: float
    send_s: float
    memory_bytes: int

    @property
    def period_s(self) -> float:
        """Seconds between two jobs at this stage's pace (`cost.stage_period`)."""
        return max(self.compute_s, self.receive_s, self.send_s)


@dataclass(frozen=True, slots=True)
class PipelinePlan:
    """Stages in order; together they hold each block once, and no node twice."""

    stages: tuple[StagePlan, ...]


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the cost model says of a plan: jobs/s, seconds, joules per job, money per 1,000 jobs, 0..1."""

    throughput_per_s: float
    latency_s: float
    energy_j: float
    cost_per_1000: float
    exposure_ratio: float


@dataclass(frozen=True, slots=True)
class Alternative:
    """The best plan of another kind and why it was not taken.

    `predicted` is None and `pipelines` empty where no plan of the kind can run; `reason` then says why.
    """

    kind: str
    pipelines: tuple[PipelinePlan, ...]
    predicted: Predicted | None
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What should run where, how good it will be, and what else there was.

    `lower_bound` is in seconds per job, a bound that no plan on these nodes can be below: for throughput
    `work / total speed`, for latency `work / fastest node's speed`. `leaf_counts` belongs to the paper's
    rules. `notes` say in words what a reader should know (that the search was not exhaustive, say).
    """

    model: str
    strategy: Strategy
    objective: Objective
    pipelines: tuple[PipelinePlan, ...]
    predicted: Predicted
    alternatives: tuple[Alternative, ...]
    lower_bound: float
    leaf_counts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def gap_ratio(self) -> float:
        """How far the plan is above its lower bound at most: 0.1 is 10 %. Messages and links are in it."""
        match self.objective:
            case Objective.THROUGHPUT:
                reached = 1.0 / self.predicted.throughput_per_s
            case Objective.LATENCY:
                reached = self.predicted.latency_s
        return reached / self.lower_bound - 1.0


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A question to the planner.

    `min_stages` and `max_stages` (None: as many as there are) hold for each pipeline. `exclude` names nodes
    that must not be used. `in_flight` is the number of jobs inside one pipeline that memory is kept for.
    `input_zone` is where the input comes from. Raises ConfigurationError for what contradicts itself.
    """

    profile: ModelProfile
    nodes: tuple[NodeProfile, ...]
    objective: Objective = Objective.THROUGHPUT
    strategy: Strategy = Strategy.OPTIMAL
    min_stages: int = 1
    max_stages: int | None = None
    exclude: frozenset[str] = frozenset()
    in_flight: int = DEFAULT_IN_FLIGHT
    input_zone: str = "default"

    def __post_init__(self) -> None:
        # By name, so that the answer does not depend on the order of asking.
        nodes = tuple(sorted(self.nodes, key=lambda node: node.name))
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "exclude", frozenset(self.exclude))
        for one, next_one in itertools.pairwise(nodes):
            if one.name == next_one.name:
                raise ConfigurationError(
                    "nodes", expected="each name once", got=f"{one.name!r} twice"
                )
        if self.min_stages < 1:
            raise ConfigurationError("min_stages", expected="1 or more", got=str(self.min_stages))
        if self.max_stages is not None and self.max_stages < self.min_stages:
            raise ConfigurationError(
                "max_stages",
                expected=f"min_stages {self.min_stages} or more",
                got=str(self.max_stages),
            )
        if self.in_flight < 1:
            raise ConfigurationError("in_flight", expected="1 or more", got=str(self.in_flight))

    @property
    def usable(self) -> tuple[NodeProfile, ...]:
        """The nodes that may be used, sorted by name."""
        return tuple(node for node in self.nodes if node.name not in self.exclude)

    @property
    def stage_limit(self) -> int:
        """The most stages that a pipeline can have: one block and one node each at least."""
        limit = min(len(self.profile.blocks), len(self.usable))
        return limit if self.max_stages is None else min(limit, self.max_stages)

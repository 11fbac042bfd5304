"""The planner's nouns: what is asked (`PlanRequest`) and what is answered (`Plan`).

A plan is a set of pipelines; a pipeline is an ordered list of stages; one stage may be the whole model. So
one node alone, a copy on each node, one long pipeline, and mixtures are all plans. Field names are those of
the plan's JSON (ALGORITHMS.md, section 3).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.figures import Objective, Predicted, burden
from orchestrator.core.goal import Goal, Weights, Yardstick, score
from orchestrator.core.limits import NO_LIMITS, KeepInput, Limits
from shared.compression import Compression
from shared.errors import ConfigurationError
from shared.profile import DEFAULT_ZONE, UNCOMPRESSED, ModelProfile, NodeProfile

__all__ = [
    "AUTO",
    "DEFAULT_IN_FLIGHT",
    "Alternative",
    "Front",
    "Goal",
    "KeepInput",
    "Limits",
    "Objective",
    "PipelinePlan",
    "Plan",
    "PlanRequest",
    "Predicted",
    "Priced",
    "StagePlan",
    "Strategy",
    "Weights",
]

DEFAULT_IN_FLIGHT = 8
"""Jobs inside one pipeline that memory is kept for: what the dispatcher allows a pipeline of three stages."""


AUTO = "auto"
"""Of `PlanRequest.compression`: whatever makes the plan better."""


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
    """Blocks `[start, stop)` on a node: seconds per job, and bytes of memory without the headroom.

    `compression` is how it sends what it made to the next stage (`shared.compression`).
    """

    node: str
    blocks: tuple[int, int]
    compute_s: float
    receive_s: float
    send_s: float
    memory_bytes: int
    compression: str = UNCOMPRESSED

    @property
    def period_s(self) -> float:
        """Seconds between two jobs at this stage's pace (`cost.stage_period`)."""
        return max(self.compute_s, self.receive_s, self.send_s)


@dataclass(frozen=True, slots=True)
class PipelinePlan:
    """Stages in order; together they hold each block once, and no node twice."""

    stages: tuple[StagePlan, ...]

    def compressions(self) -> dict[int, str]:
        """How the tensors of its cuts are sent, by the cut's index, but for those that travel as they are."""
        return {
            stage.blocks[1]: stage.compression
            for stage in self.stages[:-1]
            if stage.compression != UNCOMPRESSED
        }


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

    `objective` is the goal that was asked for. `lower_bound` is one that no plan on these nodes can be
    below, messages and links left out: for throughput `work / total speed` in seconds per job, for latency
    `work / fastest node's speed` in seconds, for energy and cost `work` at the least joules or money per
    work of any node, for exposure the least ratio that memory allows, for weights the score 1. `yardstick`
    is what a weighted score is relative to. `leaf_counts` belongs to the paper's rules. `notes` say in words
    what a reader should know (that the search was not exhaustive, say).
    """

    model: str
    strategy: Strategy
    objective: Goal
    pipelines: tuple[PipelinePlan, ...]
    predicted: Predicted
    alternatives: tuple[Alternative, ...]
    lower_bound: float
    leaf_counts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    yardstick: Yardstick | None = None

    @property
    def reached(self) -> float:
        """What `lower_bound` bounds: the goal's own figure, less being better."""
        if isinstance(self.objective, Weights):
            assert self.yardstick is not None
            return score(self.predicted, self.objective, self.yardstick)
        return burden(self.predicted, self.objective)

    @property
    def gap_ratio(self) -> float:
        """How far the plan is above its lower bound at most: 0.1 is 10 %. Messages and links are in it.

        Infinite where the bound is 0 and the plan is not.
        """
        if self.lower_bound == 0.0:
            return math.inf if self.reached > 0.0 else 0.0
        return self.reached / self.lower_bound - 1.0


@dataclass(frozen=True, slots=True)
class Priced:
    """Pipelines with their figures filled in, and the whole plan's prediction."""

    pipelines: tuple[PipelinePlan, ...]
    predicted: Predicted


@dataclass(frozen=True, slots=True)
class Front:
    """The Pareto front over some objectives: no point is as good as another in all of them and better in one.

    `points` are in the order of the first objective, best first. Each objective's own best plan is among
    them. `notes` say where the front was thinned or the search was not exhaustive.
    """

    model: str
    objectives: tuple[Objective, ...]
    points: tuple[Priced, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A question to the planner.

    `min_stages` and `max_stages` (None: as many as there are) hold for each pipeline. `exclude` names nodes
    that must not be used. `in_flight` is the number of jobs inside one pipeline that memory is kept for.
    `thorough` gives limits and weights some seconds to be exact up to ten unlike nodes, where otherwise a
    bounded search of a second decides from eight on: who serves cannot stand still.
    `limits` hold whatever the goal is. `input_zone` is where the input comes from (None: the zone that
    `keep_input` names, else `default`); with `keep_input` it never leaves, which is refused unless broker and
    orchestrator are in that zone, since every tensor crosses them. CPU and memory that something else was
    promised are left out of `nodes` by whoever asks. `compression` names how tensors travel between stages,
    or leaves it to the planner, which rounds them only as far as `max_error` allows the output to change
    (relative to the largest output). Raises ConfigurationError for what contradicts itself.
    """

    profile: ModelProfile
    nodes: tuple[NodeProfile, ...]
    objective: Goal = Objective.THROUGHPUT
    strategy: Strategy = Strategy.OPTIMAL
    min_stages: int = 1
    max_stages: int | None = None
    exclude: frozenset[str] = frozenset()
    in_flight: int = DEFAULT_IN_FLIGHT
    thorough: bool = True
    input_zone: str | None = None
    limits: Limits = NO_LIMITS
    keep_input: KeepInput | None = None
    broker_zone: str = DEFAULT_ZONE
    orchestrator_zone: str = DEFAULT_ZONE
    max_error: float = 0.0
    compression: str = AUTO

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
        if not 0.0 <= self.max_error < 1.0:
            raise ConfigurationError(
                "max_error", expected="0 or more, less than 1", got=f"{self.max_error:g}"
            )
        if self.compression != AUTO:
            Compression.parse(self.compression)
        if self.in_flight < 1:
            raise ConfigurationError("in_flight", expected="1 or more", got=str(self.in_flight))
        if self.keep_input is not None:
            self.keep_input.depth(self.profile)
            if self.input_zone not in {None, self.keep_input.zone}:
                raise ConfigurationError(
                    "input_zone",
                    expected=f"the zone that is to keep the input, {self.keep_input.zone!r}",
                    got=repr(self.input_zone),
                )

    @property
    def home_zone(self) -> str:
        """The zone that the input comes from."""
        if self.input_zone is not None:
            return self.input_zone
        return self.keep_input.zone if self.keep_input is not None else DEFAULT_ZONE

    @property
    def usable(self) -> tuple[NodeProfile, ...]:
        """The nodes that may be used, sorted by name."""
        return tuple(node for node in self.nodes if node.name not in self.exclude)

    @property
    def stage_limit(self) -> int:
        """The most stages that a pipeline can have: one block and one node each at least."""
        limit = min(len(self.profile.blocks), len(self.usable))
        return limit if self.max_stages is None else min(limit, self.max_stages)

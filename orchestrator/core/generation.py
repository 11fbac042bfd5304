"""One plan on its way through the cluster: loading, active, draining.

A generation is a plan with a number. Its life::

    loading --all stages ready--> active --a better one is ready--> draining --empty--> gone
       |                            |
       +--a stage fails, a node     +--a node is lost: that pipeline is lost, the others go on
          is lost, time runs out--> gone
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator.core.cluster_events import ModelEntry, StageRef
from orchestrator.core.plan import PipelinePlan, Plan


@dataclass(slots=True)
class Generation:
    """A plan in force or on its way; `lost` are indices of pipelines that cannot run any more."""

    entry: ModelEntry
    number: int
    plan: Plan
    began: float
    cause: str
    ready: set[tuple[int, int]] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    drained: set[int] = field(default_factory=set)

    def pipeline_name(self, index: int) -> str:
        """The topic level of pipeline `index`."""
        return f"{self.entry.name[:60]}-{index}"

    def index_of(self, pipeline: str) -> int | None:
        """Which pipeline has that name, if one of ours has."""
        for index in range(len(self.plan.pipelines)):
            if self.pipeline_name(index) == pipeline:
                return index
        return None

    def nodes(self) -> set[str]:
        """Every node that a pipeline which is not lost needs."""
        return {stage.node for _, pipeline in self.running() for stage in pipeline.stages}

    def running(self) -> Iterator[tuple[int, PipelinePlan]]:
        """The pipelines that are not lost, with their indices."""
        for index, pipeline in enumerate(self.plan.pipelines):
            if index not in self.lost:
                yield index, pipeline

    def whole(self) -> bool:
        """Whether every pipeline of the plan still runs."""
        return not self.lost

    def dead(self) -> bool:
        """Whether none does."""
        return len(self.lost) == len(self.plan.pipelines)

    def all_ready(self) -> bool:
        """Whether every stage reported ready."""
        return all(
            (index, stage) in self.ready
            for index, pipeline in enumerate(self.plan.pipelines)
            for stage in range(len(pipeline.stages))
        )

    def stages_on(self, node: str) -> list[StageRef]:
        """What this generation wants of a node."""
        return [
            StageRef(
                self.entry,
                self.pipeline_name(index),
                self.number,
                number,
                len(pipeline.stages),
                stage.blocks,
            )
            for index, pipeline in self.running()
            if index not in self.drained
            for number, stage in enumerate(pipeline.stages)
            if stage.node == node
        ]

    def memory_on(self, node: str) -> int:
        """Bytes that this generation needs on a node."""
        return sum(
            stage.memory_bytes
            for _, pipeline in self.running()
            for stage in pipeline.stages
            if stage.node == node
        )

    def num_stages(self) -> list[int]:
        """The number of stages of each pipeline that runs."""
        return [len(pipeline.stages) for _, pipeline in self.running()]

    def same_placement(self, plan: Plan) -> bool:
        """Whether `plan` puts the same blocks on the same nodes."""
        return self.whole() and _placement(self.plan) == _placement(plan)


def _placement(plan: Plan) -> list[list[tuple[str, tuple[int, int]]]]:
    return sorted([(stage.node, stage.blocks) for stage in p.stages] for p in plan.pipelines)


def describe(pipelines: tuple[PipelinePlan, ...]) -> str:
    """A plan in one line: `pi-1[0:20] > pi-2[20:55]`, copies joined by ` + `."""
    return " + ".join(
        " > ".join(f"{stage.node}[{stage.blocks[0]}:{stage.blocks[1]}]" for stage in p.stages)
        for p in pipelines
    )

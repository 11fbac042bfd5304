"""One plan on its way through the cluster: loading, active, draining.

A generation is a plan with a number. Its life::

    loading --all stages ready--> active --a better one is ready--> draining --empty--> gone
       |                            |
       +--a stage fails, a node     +--a node is lost: that pipeline is lost, the others go on
          is lost, time runs out--> gone
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from orchestrator.core.cluster_events import ModelEntry, StageRef
from orchestrator.core.plan import PipelinePlan, Plan, Priced, StagePlan
from orchestrator.core.stage_times import StageTimes
from shared.messages.stage import StageReport

LONGEST_NAME = 60
"""Of a model, in a pipeline's name: a level of a topic has 64 characters, and the index needs its own."""


@dataclass(slots=True)
class Generation:
    """A plan in force or on its way.

    `names` are the pipelines' topic levels. `ready` are (pipeline index, stage) whose node said so, `assumed`
    those that ran when the orchestrator was started anew and whose node has not spoken yet. `lost` and
    `drained` are indices of pipelines that ended. `activated`: the dispatcher was told. `reserved` is the
    share of each node's CPU that is kept for the rate that was asked for.
    """

    entry: ModelEntry
    number: int
    plan: Plan
    began: float
    cause: str
    names: tuple[str, ...] = ()
    ready: set[tuple[int, int]] = field(default_factory=set)
    assumed: set[tuple[int, int]] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    drained: set[int] = field(default_factory=set)
    activated: bool = False
    reserved: dict[str, float] = field(default_factory=dict)
    times: dict[tuple[int, int], StageTimes] = field(default_factory=dict)
    """What was measured, by (pipeline index, stage)."""
    loads: dict[tuple[int, int], StageReport] = field(default_factory=dict)
    """What was said last of each stage while it loaded, by (pipeline index, stage)."""
    decided: float = 0.0
    """When; `began` is when the nodes had room for it and were told."""
    progressed: float = float("-inf")
    """When more of it had come to a node."""
    fate: str = ""
    """Why it was given up before it ran."""

    def __post_init__(self) -> None:
        self.decided = self.began
        if not self.names:
            self.names = tuple(
                pipeline_name(self.entry, index) for index in range(len(self.plan.pipelines))
            )

    @property
    def key(self) -> tuple[str, int]:
        """Which it is, of all models'."""
        return self.entry.name, self.number

    def index_of(self, pipeline: str) -> int | None:
        """Which pipeline has that name, if one of ours has."""
        return self.names.index(pipeline) if pipeline in self.names else None

    def running(self) -> Iterator[tuple[int, PipelinePlan]]:
        """The pipelines that have not ended, with their indices."""
        for index, pipeline in enumerate(self.plan.pipelines):
            if index not in self.lost and index not in self.drained:
                yield index, pipeline

    def pipelines(self) -> tuple[PipelinePlan, ...]:
        """The pipelines that have not ended."""
        return tuple(pipeline for _, pipeline in self.running())

    def nodes(self) -> set[str]:
        """Every node that a pipeline which has not ended needs."""
        return {stage.node for _, pipeline in self.running() for stage in pipeline.stages}

    def dead(self) -> bool:
        """Whether every pipeline has ended."""
        return not any(True for _ in self.running())

    def unready(self) -> list[tuple[int, int, str]]:
        """(pipeline index, stage, node) of the stages that are still loading."""
        return [
            (index, number, stage.node)
            for index, pipeline in self.running()
            for number, stage in enumerate(pipeline.stages)
            if (index, number) not in self.ready
        ]

    def places_on(self, node: str) -> Iterator[tuple[int, int, StagePlan]]:
        """(pipeline index, stage, its plan) of what this generation has on a node."""
        for index, pipeline in self.running():
            for number, stage in enumerate(pipeline.stages):
                if stage.node == node:
                    yield index, number, stage

    def stages_on(self, node: str) -> Iterator[StageRef]:
        """What this generation wants of a node."""
        for index, number, stage in self.places_on(node):
            count = len(self.plan.pipelines[index].stages)
            name = self.names[index]
            yield StageRef(
                self.entry, name, self.number, number, count, stage.blocks, stage.compression
            )

    def num_stages(self) -> list[int]:
        """The number of stages of each pipeline that runs."""
        return [len(pipeline.stages) for _, pipeline in self.running()]

    def same_placement(self, plan: Plan) -> bool:
        """Whether `plan` puts the same blocks on the same nodes as what runs, and sends alike."""
        return _placement(self.pipelines()) == _placement(plan.pipelines)

    def reprice(self, priced: Priced) -> None:
        """Take the figures of what runs as they are now (of `pipelines()`, in that order)."""
        pipelines = list(self.plan.pipelines)
        for (index, _), pipeline in zip(list(self.running()), priced.pipelines, strict=True):
            pipelines[index] = pipeline
        self.plan = dataclasses.replace(
            self.plan, pipelines=tuple(pipelines), predicted=priced.predicted
        )


def pipeline_name(entry: ModelEntry, index: int) -> str:
    """The topic level of a model's pipeline; of two models with long names too, no two share one."""
    name = entry.name
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]}.{entry.manifest[:8]}"
    return f"{name}-{index}"


def describe(pipelines: Sequence[PipelinePlan]) -> str:
    """A plan in one line: `pi-1[0:20] > pi-2[20:55]`, copies joined by ` + `."""
    return " + ".join(
        " > ".join(f"{stage.node}[{stage.blocks[0]}:{stage.blocks[1]}]" for stage in p.stages)
        for p in pipelines
    )


def _placement(pipelines: Sequence[PipelinePlan]) -> list[list[tuple[str, tuple[int, int], str]]]:
    return sorted(
        [(stage.node, stage.blocks, stage.compression) for stage in p.stages] for p in pipelines
    )

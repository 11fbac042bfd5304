"""A served model: its state, the plan in force, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from shared.manifest import Quantisation
from shared.messages import Count, Digest, Name, Ratio, Seconds, Version

MicroBatchSize = Annotated[int, Meta(ge=1, le=1024)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One stage of a plan in force; seconds per item, wall time at the node's CPU share.

    `compression` is how it sends what it made, `output_bytes` the size of that without. `predicted_s` is the
    plan's. For the same stage `first_sight_s` is predicted by the node's calibration alone, `expected_s` with
    what was measured before; they and `measured_s` come with measurements.
    """

    stage: Count
    node: str
    blocks: tuple[int, int]
    weight_bytes: Count
    output_bytes: Count
    predicted_s: Seconds
    compression: str = "none"
    measured_s: Seconds | None = None
    first_sight_s: Seconds | None = None
    expected_s: Seconds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchRow:
    """How many items of a long batch travel in one message (`size`), the `most` that may, and why.

    `item_s` are the slowest stage's predicted seconds per item by size, after what the stages measured.
    """

    size: MicroBatchSize
    most: MicroBatchSize
    reason: str
    item_s: dict[str, Seconds] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRow:
    """One pipeline of a plan in force; `micro_batch` is there once it takes jobs."""

    pipeline: str
    stages: list[StageRow]
    micro_batch: MicroBatchRow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Predicted or measured figures of a plan; None where nothing was measured yet.

    Energy is joules per job, cost money per 1,000 jobs, exposure the share of the multiply-adds that is left
    to do when a tensor first leaves the input's zone.
    """

    throughput_per_s: float | None = None
    latency_s: float | None = None
    energy_j: float | None = None
    cost_per_1000: float | None = None
    exposure_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionError:
    """Mean absolute error of predicted stage times, as a ratio of the measured ones.

    `first_sight_ratio` is of what the nodes' calibration alone predicts, `now_ratio` of what was predicted
    just before each of the last measurements. Over `stages` stages, each measured with at least `items`
    items.
    """

    first_sight_ratio: Ratio
    now_ratio: Ratio
    stages: Count
    items: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """What rounding between stages does to the latest jobs that were run again without it.

    `error_ratio` is the median of the largest difference relative to the largest output, `agreement_ratio`
    the share of those whose largest output was the same one.
    """

    error_ratio: float
    agreement_ratio: Ratio
    samples: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class AlternativeRow:
    """A plan that was not chosen, with its predicted figures and why it lost."""

    text: str
    figures: Figures
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How a model shall be served; what a re-plan and a restarted orchestrator need again.

    `objective` is one (`latency`) or several with weights (`latency=0.7,cost=0.3`). A plan that breaks a
    limit is not taken; `keep_input_in` is a zone that the input must not leave, or `ZONE:BLOCKS` or
    `ZONE:SHARE%` for what the first blocks make of it, too. `rate_per_s` are jobs per second to keep CPU
    for; where they cannot be had the model is served with the most that can. `compression` is how tensors
    travel between stages, `auto` leaves it to the planner; `max_error` is by how much rounding them may
    change the output, relative to the largest output: 0 allows none. Answers of the last `cache_for_s`
    seconds are kept in `cache_bytes`, for who asks the same; 0 keeps none.
    `micro_batch` is how many items of a batch travel in one message; null leaves it to what the stages
    measure.
    """

    strategy: str = "optimal"
    objective: str = "throughput"
    min_stages: Count | None = None
    max_stages: Count | None = None
    runtime: str = "auto"
    rate_per_s: float | None = None
    max_latency_s: float | None = None
    min_throughput_per_s: float | None = None
    max_energy_j: float | None = None
    max_cost_per_1000: float | None = None
    max_exposure_ratio: float | None = None
    keep_input_in: str | None = None
    compression: str = "auto"
    max_error: Ratio = 0.0
    cache_bytes: Count = 0
    cache_for_s: Annotated[float, Meta(gt=0)] = 3600.0
    micro_batch: MicroBatchSize | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """What runs where.

    `alternatives` are the plans that lost; `free_choice` says what the planner would have chosen
    without the number of stages that was asked for. `cpu_reserved` is the share of each node's CPU that is
    kept for the rate that was asked for. `manifest` is the package that is served, of `manifest_bytes`: a
    standby fetches it, and what it names, before it has to take over. `level` is how far the graph was
    optimised; at O2 `quantisation` says how well it answers, and answers say `"exact": false`. `whole` says
    why the model is not cut, where it cannot be.
    """

    text: str = ""
    state: Literal["serving", "loading", "unserved", "failed"]
    model: Name
    generation: Count
    pipelines: list[PipelineRow] = field(default_factory=list)
    predicted: Figures = field(default_factory=Figures)
    measured: Figures = field(default_factory=Figures)
    prediction_error: PredictionError | None = None
    rounding: Rounding | None = None
    reason: str = ""
    weights: str = ""
    manifest: Digest | None = None
    manifest_bytes: Count = 0
    options: ServeOptions = field(default_factory=ServeOptions)
    runtime: str = ""
    level: str = ""
    quantisation: Quantisation | None = None
    whole: str = ""
    alternatives: list[AlternativeRow] = field(default_factory=list)
    free_choice: AlternativeRow | None = None
    cpu_reserved: dict[str, float] = field(default_factory=dict)
    v: Version = 1

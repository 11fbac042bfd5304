"""Price a plan that somebody already has, under the profiles of today."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.core import cost
from orchestrator.core.plan import DEFAULT_IN_FLIGHT, PipelinePlan, Predicted, Priced
from shared.errors import PlanError
from shared.profile import DEFAULT_ZONE, UNCOMPRESSED, ModelProfile, NodeProfile

Placement = tuple[str, tuple[int, int]]
"""A stage before it has a price: the node's name and its blocks `[start, stop)`."""


def placements(pipelines: Iterable[PipelinePlan]) -> list[list[Placement]]:
    """Forget the prices of a plan, keep who runs what."""
    return [[(stage.node, stage.blocks) for stage in pipe.stages] for pipe in pipelines]


def evaluate(
    profile: ModelProfile,
    nodes: Iterable[NodeProfile],
    pipelines: Iterable[PipelinePlan],
    *,
    in_flight: int = DEFAULT_IN_FLIGHT,
    input_zone: str = DEFAULT_ZONE,
) -> Priced:
    """Price pipelines anew; only who runs what and how it is sent is read, not the figures that they carry.

    Raises PlanError where they cannot run: a node that is not there or used twice, blocks missing or
    repeated, too little memory.
    """
    pipelines = tuple(pipelines)
    return price(
        profile,
        nodes,
        placements(pipelines),
        in_flight=in_flight,
        input_zone=input_zone,
        compressions=[[stage.compression for stage in pipe.stages] for pipe in pipelines],
    )


def price(
    profile: ModelProfile,
    nodes: Iterable[NodeProfile],
    placed: Sequence[Sequence[Placement]],
    *,
    in_flight: int,
    input_zone: str,
    compressions: Sequence[Sequence[str]] | None = None,
) -> Priced:
    """Like `evaluate`, for stages that never had a price.

    `compressions` are how each stage sends what it made; None where tensors travel as `profile` has them.
    """
    by_name = {node.name: node for node in nodes}
    _check_names(placed, by_name)
    pipelines: list[PipelinePlan] = []
    throughputs: list[float] = []
    latencies: list[float] = []
    energies: list[float] = []
    exposures: list[float] = []
    prices: list[float] = []
    for index, pipeline in enumerate(placed):
        _check_cover(pipeline, len(profile.blocks))
        on = [by_name[name] for name, _ in pipeline]
        how = [UNCOMPRESSED] * len(pipeline) if compressions is None else compressions[index]
        links = zip(pipeline[:-1], how[:-1], strict=True)
        sent = profile.sent({stop: each for (_, (_, stop)), each in links if each != UNCOMPRESSED})
        stages = tuple(
            cost.price_stage(sent, node, blocks, in_flight, each)
            for node, (_, blocks), each in zip(on, pipeline, how, strict=True)
        )
        for stage, node in zip(stages, on, strict=True):
            if stage.memory_bytes > cost.usable_bytes(node):
                raise PlanError(
                    f"blocks {stage.blocks} do not fit node {node.name!r} with its headroom",
                    expected=f"at most {cost.usable_bytes(node)} bytes",
                    got=f"{stage.memory_bytes} bytes",
                )
        pipelines.append(PipelinePlan(stages))
        throughputs.append(
            cost.pipeline_throughput(
                [cost.stage_period(s.compute_s, s.receive_s, s.send_s) for s in stages]
            )
        )
        latencies.append(cost.pipeline_latency(stages))
        energies.append(cost.pipeline_energy(stages, on))
        exposures.append(cost.pipeline_exposure(profile, stages, on, input_zone))
        prices += [node.price_per_hour for node in on]
    throughput = cost.plan_throughput(throughputs)
    predicted = Predicted(
        throughput_per_s=throughput,
        latency_s=cost.plan_latency(latencies),
        energy_j=cost.plan_energy(energies, throughputs),
        cost_per_1000=cost.plan_cost_per_1000(prices, throughput),
        exposure_ratio=cost.plan_exposure(exposures),
    )
    return Priced(tuple(pipelines), predicted)


def _check_names(placed: Sequence[Sequence[Placement]], by_name: dict[str, NodeProfile]) -> None:
    if not placed:
        raise PlanError("a plan without a pipeline", expected="at least one", got="none")
    seen: set[str] = set()
    for pipeline in placed:
        for name, _ in pipeline:
            if name not in by_name:
                raise PlanError(
                    "a stage is on a node that is not there",
                    expected=f"one of {', '.join(sorted(by_name)) or 'no nodes'}",
                    got=name,
                )
            if name in seen:
                raise PlanError(
                    f"node {name!r} holds two stages", expected="at most one of a model", got="2"
                )
            seen.add(name)


def _check_cover(pipeline: Sequence[Placement], num_blocks: int) -> None:
    reached = 0
    for name, (start, stop) in pipeline:
        if start != reached or not start < stop <= num_blocks:
            raise PlanError(
                f"the blocks on node {name!r} do not follow on",
                expected=f"[{reached}, stop) with stop in {reached + 1}..{num_blocks}",
                got=f"[{start}, {stop})",
            )
        reached = stop
    if reached != num_blocks:
        raise PlanError(
            "a pipeline without its last blocks", expected=f"{num_blocks} blocks", got=f"{reached}"
        )

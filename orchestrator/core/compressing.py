"""How tensors travel between stages: as they are, or in fewer bytes where the link is worth the CPU.

Cuts and compressions depend on each other, and each link may be sent its own way. So the planner looks for
the best plan of each way that may pay, all tensors sent alike, and then link by link at the best of these:
what is sent another way there changes no placement. A search over all at once would multiply its states by
the number of ways for each cut; a plan that only a mixture of ways makes the best one may be missed.

Lossless ways are tried unasked. One that rounds is taken only where the error that it was measured to make,
added over the links of a pipeline, is within what the user allowed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from orchestrator.core.evaluate import evaluate
from orchestrator.core.judge import Judge
from orchestrator.core.plan import AUTO, PipelinePlan, PlanRequest, Priced
from shared.compression import Compression
from shared.errors import ConfigurationError
from shared.profile import UNCOMPRESSED, CutProfile, ModelProfile, NodeProfile, PackedCut

_MOST_WAYS = 2
"""Of each kind, lossless or not, that whole plans are looked for with: each takes as long as the first."""
_WORTH = 0.01
"""A link is sent another way for a gain of more than this, or a packet more or less would decide."""


def ways(request: PlanRequest) -> tuple[str, ...]:
    """The ways to send all tensors that a plan is to be looked for with, the plain one first.

    Raises:
        ConfigurationError: the way that was asked for was not measured for this model, or rounds more than
            is allowed.
    """
    if request.compression == UNCOMPRESSED:
        return (UNCOMPRESSED,)
    if request.compression != AUTO:
        _check(request)
        return (request.compression,)
    names = {way.compression for cut in request.profile.cuts for way in cut.packed}
    found = []
    for exact in (True, False):
        gains = {
            name: gain
            for name in names
            if Compression.parse(name).exact is exact and (gain := _gain(request, name)) > 0.0
        }
        found += sorted(gains, key=lambda name: (-gains[name], name))[:_MOST_WAYS]
    return (UNCOMPRESSED, *found)


def with_way(request: PlanRequest, way: str) -> PlanRequest:
    """The request with all tensors sent one way, where that makes no more than half of the error allowed.

    All of it where a pipeline has one link; that a sum over more than two is kept to, `choose_links` sees.
    """
    share = request.max_error / min(max(request.stage_limit - 1, 1), 2)
    return dataclasses.replace(request, profile=request.profile.travelling(way, share))


def noted(profile: ModelProfile, way: str, pipelines: Iterable[PipelinePlan]) -> list[PipelinePlan]:
    """Pipelines that were planned with all tensors sent one way, with that written into their stages.

    `profile` is the one that they were planned with.
    """
    sizes = {cut.index: cut for cut in profile.cuts}

    def sent(stop: int) -> str:
        cut = sizes.get(stop)
        return way if cut is not None and _as(cut, cut.way(way)) else UNCOMPRESSED

    return [
        PipelinePlan(
            tuple(
                dataclasses.replace(stage, compression=sent(stage.blocks[1]))
                for stage in pipeline.stages
            )
        )
        for pipeline in pipelines
    ]


def choose_links(request: PlanRequest, judge: Judge, pipelines: Sequence[PipelinePlan]) -> Priced:
    """The same placement with each link sent the best way, and its figures."""
    cuts = {cut.index: cut for cut in request.profile.cuts}
    chosen = [_within(request.max_error, cuts, pipeline) for pipeline in pipelines]
    best = _price(request, chosen)
    if request.compression != AUTO or not any(cut.packed for cut in cuts.values()):
        return best
    for index, pipeline in enumerate(pipelines):
        for number, stage in enumerate(pipeline.stages[:-1]):
            cut = cuts[stage.blocks[1]]
            others = sum(
                cuts[each.blocks[1]].way(each.compression).error
                for place, each in enumerate(chosen[index].stages[:-1])
                if place != number
            )
            for name in (UNCOMPRESSED, *(way.compression for way in cut.packed)):
                if not _may(request, name) or cut.way(name).error + others > request.max_error:
                    continue
                trial = [*chosen]
                trial[index] = _sent(chosen[index], number, name)
                priced = _price(request, trial)
                if _better(judge, priced, best):
                    chosen, best = trial, priced
    return best


def _check(request: PlanRequest) -> None:
    name, cuts = request.compression, request.profile.cuts
    measured = [way for cut in cuts for way in cut.packed if way.compression == name]
    if cuts and not measured:
        raise ConfigurationError(
            f"compression {name!r} was not measured for {request.profile.model}",
            expected="a model that was profiled with it",
            got="none of its cuts",
        )
    least = min((way.error for way in measured), default=0.0)
    if least > request.max_error or not _may(request, name):
        raise ConfigurationError(
            f"compression {name!r} changes the output by more than is allowed at every cut",
            expected=f"max_error of {least:.2g} or more",
            got=f"{request.max_error:g}",
        )


def _gain(request: PlanRequest, name: str) -> float:
    """Seconds that a way saves at the best cut on the slowest link, less what it costs on the fastest node.

    0 or less: it can make no plan better.
    """
    if len(request.usable) < 2 or not _may(request, name):
        return 0.0
    slowest_s = _slowest(request.usable)
    rate = max(node.best_rate for node in request.usable)
    gains = [0.0]
    for cut in request.profile.cuts:
        way = cut.way(name)
        if way.compression != name or way.error > request.max_error:
            continue
        saved_s = (cut.bytes - way.bytes) * slowest_s
        gains.append(saved_s - (way.pack_s + way.unpack_s) / rate)
    return max(gains)


def _may(request: PlanRequest, name: str) -> bool:
    """Whether a way is allowed at all: what rounds is not, even where no error was seen."""
    return request.max_error > 0.0 or Compression.parse(name).exact


def _slowest(nodes: Sequence[NodeProfile]) -> float:
    """Seconds for each byte over the slowest way out and in."""
    return max(1.0 / node.up_bytes_per_s + node.byte_s for node in nodes) + max(
        1.0 / node.down_bytes_per_s + node.byte_s for node in nodes
    )


def _as(cut: CutProfile, way: PackedCut) -> bool:
    return (cut.bytes, cut.pack_s, cut.unpack_s) == (way.bytes, way.pack_s, way.unpack_s)


def _within(max_error: float, cuts: dict[int, CutProfile], pipeline: PipelinePlan) -> PipelinePlan:
    """The pipeline with so many links as they are that the errors of the others are allowed."""
    errors = [cuts[stage.blocks[1]].way(stage.compression).error for stage in pipeline.stages[:-1]]
    while sum(errors) > max_error:
        worst = errors.index(max(errors))
        errors[worst] = 0.0
        pipeline = _sent(pipeline, worst, UNCOMPRESSED)
    return pipeline


def _sent(pipeline: PipelinePlan, number: int, compression: str) -> PipelinePlan:
    stages = list(pipeline.stages)
    stages[number] = dataclasses.replace(stages[number], compression=compression)
    return PipelinePlan(tuple(stages))


def _price(request: PlanRequest, pipelines: Sequence[PipelinePlan]) -> Priced:
    return evaluate(
        request.profile,
        request.nodes,
        pipelines,
        in_flight=request.in_flight,
        input_zone=request.home_zone,
    )


def _better(judge: Judge, one: Priced, other: Priced) -> bool:
    """By the goal; where that is the same, by latency. By more than a trifle either way."""
    allowed, before = judge.allows(one.predicted), judge.allows(other.predicted)
    if allowed != before:
        return allowed
    mine, its = judge.value(one.predicted), judge.value(other.predicted)
    if abs(mine - its) > _WORTH * abs(its):
        return mine < its
    return one.predicted.latency_s < (1.0 - _WORTH) * other.predicted.latency_s

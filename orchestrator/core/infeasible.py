"""Why there is no plan: which constraint cannot be met, and what the nearest possible is."""

from __future__ import annotations

import dataclasses

import numpy as np

from orchestrator.core import cost
from orchestrator.core.bounded import chain_lengths, shortlist
from orchestrator.core.choice import EXACT_STATES
from orchestrator.core.figures import Objective, figure, in_words
from orchestrator.core.judge import Judge
from orchestrator.core.limits import LIMIT_OF, NO_LIMITS, Limits, keeps
from orchestrator.core.mixture import allowed_states
from orchestrator.core.optimum import optimum
from orchestrator.core.partition import lattice, search
from orchestrator.core.plan import PlanRequest, Strategy
from orchestrator.core.problem import Problem, place, pose
from orchestrator.core.tables import stage_tables
from shared.errors import PlanError


def feasible_stage_counts(request: PlanRequest) -> tuple[int, ...]:
    """The numbers of stages with which some pipeline can run on these nodes, whatever was asked for.

    For a caller that wants to serve with fewer stages rather than not at all. Ascending; empty where the
    model fits in no way. Exact where `plan` is exact; otherwise what was found.
    """
    return _feasible(pose(request))


def _feasible(problem: Problem, *, fewest_only: bool = False) -> tuple[int, ...]:
    if not problem.kinds:
        return ()
    few = shortlist(problem, EXACT_STATES)
    states = lattice([count for _, count in few])
    tables = stage_tables(problem.model, [problem.kinds[kind] for kind, _ in few])
    most = min(problem.model.num_blocks, len(problem.request.usable))
    found = search(tables.period_s, states, np.maximum, max_stages=most)
    counts = {int(n) for n in states.totals[allowed_states(found, 1, most)]}
    # A pipeline of L blocks takes at most L nodes of a kind, so the shortlist stops there
    everything = tuple((k, min(n, problem.model.num_blocks)) for k, n in enumerate(problem.counts))
    looked_at_all = few == everything
    if not looked_at_all and not (fewest_only and counts):
        counts |= set(chain_lengths(problem))
    return tuple(sorted(counts))


def no_plan(problem: Problem) -> PlanError:
    """The error for a request that `problem` could not satisfy."""
    request = problem.request
    if not problem.kinds:
        excluded = f"; excluded: {', '.join(sorted(request.exclude))}" if request.exclude else ""
        return PlanError(f"no node to plan for{excluded}", expected="at least one node", got="none")
    feasible = _feasible(problem)
    whole_only = request.strategy is not Strategy.OPTIMAL
    if problem.model.first_outside and not feasible:
        anywhere = pose(
            dataclasses.replace(
                request,
                keep_input=None,
                input_zone=request.home_zone,
                limits=dataclasses.replace(request.limits, max_exposure_ratio=None),
            )
        )
        return _out_of_zone(problem, anywhere) if _feasible(anywhere) else _too_large(anywhere)
    if not feasible:
        return _too_large(problem)
    if whole_only and request.min_stages > 1:
        return PlanError(
            f"strategy {request.strategy} gives one stage, {request.min_stages} were asked for",
            expected="min_stages 1",
            got=str(request.min_stages),
        )
    if request.min_stages > feasible[-1]:
        return PlanError(
            f"{_of(request.min_stages, 'stage')} cannot be had: with {_of(len(request.usable), 'node')} and "
            f"{_of(problem.model.num_blocks, 'block')} {feasible[-1]} is the most that fits",
            expected=f"min_stages at most {feasible[-1]}",
            got=str(request.min_stages),
        )
    if request.max_stages is not None and request.max_stages < feasible[0]:
        return no_whole(problem)
    return PlanError(
        f"no pipeline of {request.min_stages} to {request.stage_limit} stages fits the nodes' memory",
        expected=f"a number of stages among {', '.join(str(n) for n in feasible)}",
        got=f"{request.min_stages} to {request.stage_limit}",
    )


def no_whole(problem: Problem) -> PlanError:
    """The error where fewer stages were asked for than memory allows."""
    request = problem.request
    feasible = _feasible(problem, fewest_only=True)
    if not feasible:
        return _too_large(problem)
    allowed = 1 if request.strategy is not Strategy.OPTIMAL else request.max_stages or 1
    needed = whole_needs(problem)
    if allowed > 1:
        needed = f"{_of(allowed, 'stage')} cannot hold {request.profile.model}: it {needed}"
    else:
        needed = f"{request.profile.model} {needed}"
    return PlanError(
        f"{needed}; with {_of(feasible[0], 'stage')} it fits",
        expected=f"at least {_of(feasible[0], 'stage')}",
        got=f"at most {allowed}",
    )


def beyond_limits(problem: Problem, judge: Judge) -> PlanError:
    """The error where no plan keeps the limits: which cannot be had, or which contradict each other."""
    free = Judge(Objective.THROUGHPUT, NO_LIMITS)
    if not optimum(problem, free).patterns:
        return no_plan(problem)
    limits = judge.limits
    limited = [one for one in limits.objectives if one is not Objective.EXPOSURE]
    for objective in limited:
        nearest = _best_within(problem, objective, NO_LIMITS)
        if nearest is not None and not keeps(objective, nearest, limits.of(objective)):
            return _limit_error(objective, limits, nearest, "")
    for objective in limited:
        others = dataclasses.replace(limits, **{LIMIT_OF[objective]: None})
        nearest = _best_within(problem, objective, others)
        if nearest is not None:
            within = " and ".join(
                _limit_words(other, others) for other in limited if other is not objective
            )
            return _limit_error(objective, limits, nearest, f" with {within}")
    return PlanError(
        f"the limits {', '.join(_limit_words(one, limits) for one in limited)} contradict each other",
        expected="limits that one plan can keep together",
        got="none found for any of them under the others",
    )


def _best_within(problem: Problem, objective: Objective, limits: Limits) -> float | None:
    patterns = optimum(problem, Judge(objective, limits)).patterns
    if not patterns:
        return None
    return figure(problem.price(place(patterns, problem.kinds)).predicted, objective)


def _limit_error(objective: Objective, limits: Limits, nearest: float, within: str) -> PlanError:
    limit = limits.of(objective)
    assert limit is not None
    reaches = in_words(objective, nearest)
    side = "or less" if objective is Objective.THROUGHPUT else "or more"
    return PlanError(
        f"{_limit_words(objective, limits)} cannot be had{within}: {_NEAREST[objective]} {reaches}",
        expected=f"{LIMIT_OF[objective]} of {reaches} {side}",
        got=in_words(objective, limit),
    )


def _limit_words(objective: Objective, limits: Limits) -> str:
    name = LIMIT_OF[objective].split("_")
    return f"{name[0]}_{name[1]} {in_words(objective, limits.of(objective) or 0.0)}"


_NEAREST = {
    Objective.THROUGHPUT: "the best plan has",
    Objective.LATENCY: "the fastest plan takes",
    Objective.ENERGY: "the most frugal plan takes",
    Objective.COST: "the cheapest plan costs",
    Objective.EXPOSURE: "the least exposed plan is",
}


def _out_of_zone(problem: Problem, anywhere: Problem) -> PlanError:
    """The error where memory allows a plan, but not with so much of the model inside the input's zone."""
    request = problem.request
    patterns = optimum(anywhere, Judge(Objective.EXPOSURE, NO_LIMITS)).patterns
    priced = anywhere.price(place(patterns, anywhere.kinds))
    if request.keep_input is None:
        return _limit_error(Objective.EXPOSURE, request.limits, priced.predicted.exposure_ratio, "")
    zones = {node.name: node.zone for node in request.usable}
    zone = request.keep_input.zone
    inside = min(
        next(
            (s.blocks[0] for s in pipe.stages if zones[s.node] != zone), len(request.profile.blocks)
        )
        for pipe in priced.pipelines
    )
    blocks = _of(problem.model.first_outside, "block")
    return PlanError(
        f"the nodes of zone {zone!r} cannot hold the first {blocks} of {request.profile.model}, from "
        f"which nothing is to leave; at most the first {inside} can stay there",
        expected=f"a depth of {inside} blocks at most, or more memory in zone {zone!r}",
        got=blocks,
    )


def whole_needs(problem: Problem) -> str:
    """What the whole model needs on one node, against what there is."""
    model, nodes = problem.model, problem.request.usable
    where = ""
    if model.first_outside:
        nodes = tuple(node for node in nodes if node.zone == model.home_zone)
        where = f" in zone {model.home_zone!r}"
    largest = max((cost.usable_bytes(node) for node in nodes), default=0)
    needed = _size(problem.whole_bytes)
    return f"needs {needed} on one node{where}, the largest free is {_size(largest)}"


def _too_large(problem: Problem) -> PlanError:
    """No number of stages helps: name the block that fits nowhere, or say how much is missing in all."""
    request = problem.request
    usable = [cost.usable_bytes(node) for node in request.usable]
    size = problem.model.num_blocks
    alone = [int(problem.model.memory_bytes[i, i + 1]) for i in range(size)]
    heaviest = max(range(size), key=lambda i: (alone[i], -i))
    if alone[heaviest] > max(usable):
        name = request.profile.blocks[heaviest].name
        return PlanError(
            f"block {heaviest} ({name}) of {request.profile.model} needs {_size(alone[heaviest])} on one "
            f"node, the largest free is {_size(max(usable))}; no number of stages helps",
            expected=f"a node with {alone[heaviest]} bytes free",
            got=f"{max(usable)} bytes",
        )
    return PlanError(
        f"{request.profile.model} {whole_needs(problem)}, and however it is cut it does not fit the "
        f"{_size(sum(usable))} of {_of(len(usable), 'node')} together",
        expected=f"more memory or more nodes for {problem.whole_bytes} bytes",
        got=f"{sum(usable)} bytes in all",
    )


def _size(size_bytes: int) -> str:
    """Whole megabytes where there are some, else bytes: a message must not round need and supply to one."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1_000_000 else f"{size_bytes} bytes"


def _of(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

"""Why there is no plan: which constraint cannot be met, and what the nearest possible is."""

from __future__ import annotations

import numpy as np

from orchestrator.core import cost
from orchestrator.core.bounded import EXACT_STATES, chain_of, shortlist
from orchestrator.core.mixture import allowed_states
from orchestrator.core.partition import lattice, search
from orchestrator.core.plan import PlanRequest, Strategy
from orchestrator.core.problem import Problem, pose
from orchestrator.core.tables import stage_tables
from shared.errors import PlanError


def feasible_stage_counts(request: PlanRequest) -> tuple[int, ...]:
    """The numbers of stages with which some pipeline can run on these nodes, whatever was asked for.

    For a caller that wants to serve with fewer stages rather than not at all. Ascending; empty where the
    model fits in no way. Exact where `plan` is exact; otherwise what was found.
    """
    return _feasible(pose(request))


def _feasible(problem: Problem) -> tuple[int, ...]:
    if not problem.kinds:
        return ()
    few = shortlist(problem, EXACT_STATES)
    states = lattice([count for _, count in few])
    tables = stage_tables(problem.model, [problem.kinds[kind] for kind, _ in few])
    most = min(problem.model.num_blocks, len(problem.request.usable))
    found = search(tables.period_s, states, np.maximum, max_stages=most)
    counts = {int(n) for n in states.totals[allowed_states(found, 1, most)]}
    if sum(count for _, count in few) < most and few != tuple(enumerate(problem.counts)):
        longer = max(counts, default=0) + 1
        while longer <= most and chain_of(problem, (), np.maximum, range(longer, longer + 1)):
            counts.add(longer)
            longer += 1
    return tuple(sorted(counts))


def no_plan(problem: Problem) -> PlanError:
    """The error for a request that `problem` could not satisfy."""
    request = problem.request
    if not problem.kinds:
        excluded = f"; excluded: {', '.join(sorted(request.exclude))}" if request.exclude else ""
        return PlanError(f"no node to plan for{excluded}", expected="at least one node", got="none")
    feasible = _feasible(problem)
    whole_only = request.strategy is not Strategy.OPTIMAL
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
            f"{_stages(request.min_stages)} cannot be had: with {_nodes(len(request.usable))} and "
            f"{problem.model.num_blocks} blocks {feasible[-1]} is the most that fits",
            expected=f"min_stages at most {feasible[-1]}",
            got=str(request.min_stages),
        )
    if request.max_stages is not None and request.max_stages < feasible[0]:
        return no_whole(problem)
    return PlanError(
        f"no pipeline of {request.min_stages} to {request.max_stages} stages fits the nodes' memory",
        expected=f"a number of stages among {', '.join(str(n) for n in feasible)}",
        got=f"{request.min_stages} to {request.max_stages}",
    )


def no_whole(problem: Problem) -> PlanError:
    """The error where fewer stages were asked for than memory allows."""
    request = problem.request
    feasible = _feasible(problem)
    if not feasible:
        return _too_large(problem)
    allowed = 1 if request.strategy is not Strategy.OPTIMAL else request.max_stages or 1
    largest = max(cost.usable_bytes(node) for node in request.usable)
    if allowed == 1:
        problem_says = (
            f"{request.profile.model} needs {_size(problem.whole_bytes)} on one node, the largest "
            f"free is {_size(largest)}"
        )
    else:
        problem_says = (
            f"{request.profile.model} ({_size(problem.whole_bytes)} as a whole) does not fit "
            f"{_stages(allowed)}, the largest free is {_size(largest)}"
        )
    return PlanError(
        f"{problem_says}; with {_stages(feasible[0])} it fits",
        expected=f"at least {_stages(feasible[0])}",
        got=f"at most {allowed}",
    )


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
        f"{request.profile.model} needs {_size(problem.whole_bytes)} on one node, the largest free is "
        f"{_size(max(usable))}, and however it is cut it does not fit the {_size(sum(usable))} of "
        f"{_nodes(len(usable))} together",
        expected=f"more memory or more nodes for {problem.whole_bytes} bytes",
        got=f"{sum(usable)} bytes in all",
    )


def _size(size_bytes: int) -> str:
    """Whole megabytes where there are some, else bytes: a message must not round need and supply to one."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1_000_000 else f"{size_bytes} bytes"


def _stages(count: int) -> str:
    return "1 stage" if count == 1 else f"{count} stages"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"

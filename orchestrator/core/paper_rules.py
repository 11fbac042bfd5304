"""The paper's partitioner, as a baseline (ALGORITHMS.md, section 1): strategies `equal` and `ralos`.

Both walk the model's leaf modules in order and close a partition when its running cost, in the paper's own
measure, has reached its target: an equal share, or the share of its node's capability. Such a cut may lie
inside a block; it is then moved to the nearest cut that one tensor crosses, and the plan says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from orchestrator.core import cost
from orchestrator.core.evaluate import Placement
from orchestrator.core.plan import PlanRequest
from orchestrator.core.problem import Problem, Proposal
from shared.errors import PlanError
from shared.profile import ModelProfile, NodeProfile

CPU_WEIGHT = 0.6
MEMORY_WEIGHT = 0.4


def capabilities(nodes: Sequence[NodeProfile]) -> list[float]:
    """`S_i = 0.6 * cpu_i / cpu_max + 0.4 * mem_i / mem_max`."""
    cpu = max(node.cpu for node in nodes)
    memory = max(node.memory_bytes for node in nodes)
    return [
        CPU_WEIGHT * node.cpu / cpu + MEMORY_WEIGHT * node.memory_bytes / memory for node in nodes
    ]


def shares(capability: Sequence[float]) -> list[float]:
    """`P_i = S_i / sum(S)`."""
    total = sum(capability)
    return [one / total for one in capability]


def imbalance(loads: Sequence[float]) -> float:
    """`mean(|L_i - L_avg|)`, in the unit of the loads."""
    average = sum(loads) / len(loads)
    return sum(abs(load - average) for load in loads) / len(loads)


def leaf_counts(costs: Sequence[int], wanted: Sequence[float]) -> list[int]:
    """Leaves per partition: close partition i at `P_i * total`, the remainder is the last.

    `wanted` are the shares `P_i`. Fewer partitions come out where the leaves end before the last begins.
    """
    total = sum(costs)
    counts = [0]
    running = 0.0
    for leaf_cost in costs:
        counts[-1] += 1
        running += leaf_cost
        last = len(counts) == len(wanted)
        if not last and running >= wanted[len(counts) - 1] * total:
            counts.append(0)
            running = 0.0
    return counts if counts[-1] else counts[:-1]


def move_cuts(profile: ModelProfile, counts: Sequence[int]) -> tuple[list[int], list[str]]:
    """Where to cut so that it can be run: block indices of the cuts, and a note for each that was moved.

    Nearest in leaves; tie: fewer bytes, then the earlier. A cut that finds no place of its own is dropped.
    """
    before = [
        sum(leaf.block < j for leaf in profile.leaves) for j in range(len(profile.blocks) + 1)
    ]
    cuts: list[int] = []
    notes: list[str] = []
    asked = 0
    for count in counts[:-1]:
        asked += count
        places = [
            cut
            for cut in profile.cuts
            if cut.tensors == 1 and cut.index > (cuts[-1] if cuts else 0)
        ]
        if not places:
            notes.append(
                f"the paper's cut after leaf {asked} is dropped: no cut is left to move it to"
            )
            continue
        best = min(places, key=lambda cut: (abs(before[cut.index] - asked), cut.bytes, cut.index))
        cuts.append(best.index)
        if before[best.index] != asked:
            notes.append(
                f"the paper's cut after leaf {asked} is moved to the cut before block {best.index}, "
                f"after leaf {before[best.index]}"
            )
    return cuts, notes


def equal(problem: Problem) -> Proposal:
    """The paper's equal shares, over as many nodes as may be used; the most capable node comes first."""
    nodes = _nodes(problem.request)
    return _partition(problem, nodes, [1 / len(nodes)] * len(nodes))


def ralos(problem: Problem) -> Proposal:
    """The paper's shares by capability, the most capable node first."""
    nodes = _nodes(problem.request)
    return _partition(problem, nodes, shares(capabilities(nodes)))


def _nodes(request: PlanRequest) -> list[NodeProfile]:
    if not request.profile.leaves:
        raise PlanError(
            f"strategy {request.strategy} counts leaf modules, and the profile of "
            f"{request.profile.model} has none",
            expected="a profile with leaves",
            got="none",
        )
    if not request.usable:
        raise PlanError("no node to plan for", expected="at least one node", got="none")
    capability = dict(
        zip((n.name for n in request.usable), capabilities(request.usable), strict=True)
    )
    ranked = sorted(request.usable, key=lambda node: (-capability[node.name], node.name))
    return ranked[: request.stage_limit]


def _partition(problem: Problem, nodes: list[NodeProfile], wanted: list[float]) -> Proposal:
    request = problem.request
    counts = leaf_counts([leaf.cost for leaf in request.profile.leaves], wanted)
    cuts, notes = move_cuts(request.profile, counts)
    ends = [0, *cuts, problem.model.num_blocks]
    if len(ends) - 1 < request.min_stages:
        raise PlanError(
            f"strategy {request.strategy} cuts {request.profile.model} for these nodes in "
            f"{len(ends) - 1} at most",
            expected=f"min_stages at most {len(ends) - 1}",
            got=str(request.min_stages),
        )
    placed: list[Placement] = []
    for node, start, stop in zip(nodes, ends, ends[1:], strict=False):
        needed = int(problem.model.memory_bytes[start, stop])
        if needed > cost.usable_bytes(node):
            raise PlanError(
                f"strategy {request.strategy} puts blocks [{start}, {stop}) on node {node.name!r}, "
                "where they do not fit; strategy optimal looks at memory",
                expected=f"at most {cost.usable_bytes(node)} bytes",
                got=f"{needed} bytes",
            )
        if not problem.model.fits(node)[start, stop]:
            raise PlanError(
                f"strategy {request.strategy} puts blocks [{start}, {stop}) on node {node.name!r} in zone "
                f"{node.zone!r}, and nothing before block {problem.model.first_outside} may leave zone "
                f"{problem.model.home_zone!r}; strategy optimal looks at zones",
                expected=f"a node in zone {problem.model.home_zone!r}",
                got=node.zone,
            )
        placed.append((node.name, (start, stop)))
    return Proposal([placed], (*notes, _imbalance_note(request.profile, counts)), tuple(counts))


def _imbalance_note(profile: ModelProfile, counts: Sequence[int]) -> str:
    """How uneven the partitions are in the paper's measure, against an even share."""
    ends = list(itertools.accumulate(counts))
    loads = [
        float(sum(leaf.cost for leaf in profile.leaves[end - count : end]))
        for end, count in zip(ends, counts, strict=True)
    ]
    share = sum(loads) / len(loads)
    ratio = imbalance(loads) / share if share else 0.0
    return f"imbalance of the paper's cost: mean(|L_i - L_avg|) is {ratio:.1%} of an even share"

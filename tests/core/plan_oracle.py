"""The planner's oracle: every plan there is, priced by hand. It shares no code with the planner.

Only for a handful of blocks and nodes: it looks at every choice of nodes, order, cut and grouping.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shared.profile import ModelProfile, NodeProfile

Stage = tuple[str, tuple[int, int]]


@dataclass(frozen=True)
class Outcome:
    """One plan with its figures."""

    pipelines: tuple[tuple[Stage, ...], ...]
    throughput: float
    latency: float
    energy: float
    price_per_hour: float
    exposure: float

    @property
    def cost(self) -> float:
        """Per 1,000 jobs."""
        return self.price_per_hour / 3600 / self.throughput * 1000

    @property
    def nodes(self) -> int:
        return sum(len(pipeline) for pipeline in self.pipelines)


def every_plan(
    profile: ModelProfile,
    nodes: Sequence[NodeProfile],
    *,
    in_flight: int,
    min_stages: int = 1,
    max_stages: int = 99,
    home: str = "default",
    first_outside: int = 0,
) -> list[Outcome]:
    """All plans that fit, each with its figures; nothing outside `home` starts before `first_outside`."""
    plans: list[Outcome] = []
    for groups in _groupings(tuple(nodes)):
        choices = [
            [
                one
                for one in _pipelines(profile, group, in_flight, home, first_outside)
                if min_stages <= len(one.pipelines[0]) <= max_stages
            ]
            for group in groups
        ]
        plans.extend(
            Outcome(
                tuple(one.pipelines[0] for one in chosen),
                sum(one.throughput for one in chosen),
                max(one.latency for one in chosen),
                sum(one.energy * one.throughput for one in chosen)
                / sum(one.throughput for one in chosen),
                sum(one.price_per_hour for one in chosen),
                max(one.exposure for one in chosen),
            )
            for chosen in itertools.product(*choices)
            if chosen
        )
    return plans


def _groupings(nodes: tuple[NodeProfile, ...]) -> Iterator[list[tuple[NodeProfile, ...]]]:
    """Each way to leave nodes out and put the others in groups."""
    if not nodes:
        yield []
        return
    first, rest = nodes[0], nodes[1:]
    for grouping in _groupings(rest):
        yield grouping
        yield [(first,), *grouping]
        for index, group in enumerate(grouping):
            yield [*grouping[:index], (first, *group), *grouping[index + 1 :]]


def _pipelines(
    profile: ModelProfile,
    group: tuple[NodeProfile, ...],
    in_flight: int,
    home: str,
    first_outside: int,
) -> Iterator[Outcome]:
    count = len(profile.blocks)
    all_macs = sum(block.macs for block in profile.blocks)
    for order in itertools.permutations(group):
        for cuts in itertools.combinations(range(1, count), len(order) - 1):
            ends = (0, *cuts, count)
            periods: list[float] = []
            latency = energy = exposure = 0.0
            for node, start, stop in zip(order, ends, ends[1:], strict=False):
                seconds = [
                    block.seconds * (node.block_factors[block.index] if node.block_factors else 1.0)
                    for block in profile.blocks[start:stop]
                ]
                received = profile.input_bytes if start == 0 else profile.cuts[start - 1].bytes
                sent = profile.output_bytes if stop == count else profile.cuts[stop - 1].bytes
                if start == 0:
                    seconds.append(profile.input_seconds * node.input_factor)
                compute = sum(s / (node.cpu * node.speed) for s in seconds) + 2 * node.message_s
                compute += node.byte_s * (received + sent)
                parts = [compute, received / node.down_bytes_per_s, sent / node.up_bytes_per_s]
                memory = (
                    sum(block.weight_bytes for block in profile.blocks[start:stop])
                    + max(block.peak_bytes for block in profile.blocks[start:stop])
                    + profile.runtime_bytes
                    + in_flight * max(received, sent)
                )
                if 10 * memory > 9 * node.memory_bytes:
                    break
                if node.zone != home:
                    if start < first_outside:
                        break
                    left = sum(block.macs for block in profile.blocks[start:])
                    exposure = max(exposure, left / all_macs if all_macs else 1.0)
                energy += node.power_w * compute
                periods.append(max(parts))
                latency += sum(parts)
            else:
                stages = tuple(
                    (node.name, (i, j)) for node, i, j in zip(order, ends, ends[1:], strict=False)
                )
                price = sum(node.price_per_hour for node in order)
                yield Outcome((stages,), 1 / max(periods), latency, energy, price, exposure)


def sensible(plans: Sequence[Outcome], tracked: Sequence[str]) -> list[Outcome]:
    """Without the plans that have a pipeline which another one on its nodes, or some of them, beats.

    As good in throughput and in each figure of `tracked`, and better in one. A plan of one such pipeline is
    never better for it, but its slowness may pull down a mean over pipelines; the planner does not look
    there.
    """
    rows = {
        plan.pipelines[0]: (1 / plan.throughput, *(getattr(plan, name) for name in tracked))
        for plan in plans
        if len(plan.pipelines) == 1
    }
    nodes = {pipeline: {node for node, _ in pipeline} for pipeline in rows}

    def beaten(pipeline: tuple[Stage, ...]) -> bool:
        mine = rows[pipeline]
        return any(
            nodes[other] <= nodes[pipeline]
            and all(a <= b * (1 + 1e-9) for a, b in zip(figures, mine, strict=True))
            and any(a < b * (1 - 1e-9) for a, b in zip(figures, mine, strict=True))
            for other, figures in rows.items()
        )

    worse = {pipeline for pipeline in rows if beaten(pipeline)}
    return [plan for plan in plans if not worse.intersection(plan.pipelines)]

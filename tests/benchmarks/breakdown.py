"""Where the rest goes: what each stage's CPU is spent on, what the quotas leave unused, what others take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.messages.model import ModelState, StageRow
from shared.messages.node import StageTelemetry
from tests.benchmarks.clusters import SHARES
from tests.benchmarks.load import Interval
from tests.benchmarks.report import Row
from tests.benchmarks.usage import Usage
from tests.benchmarks.whole_model import Ran

Alone = dict[tuple[int, int], float]
"""CPU milliseconds per item of the runtime alone, by blocks."""
_PROCESS = "agent's process CPU / items, each stretch"
_QUOTA = "agent's process CPU / (its quota x time), each stretch"
_OTHERS = "process CPU / answers, each stretch"


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch under load: answers, CPU of every part, and what the nodes' stages told meanwhile."""

    interval: Interval
    usage: Usage
    telemetry: list[tuple[str, StageTelemetry]]

    def items_on(self, node: str) -> int:
        """Answered items that went through `node`."""
        return sum(
            any(entry.node == node for entry in answer.result.trace)
            for answer in self.interval.answered
        )


def breakdown(
    kind: str,
    state: ModelState,
    stretches: Sequence[Stretch],
    whole: Sequence[Ran],
    alone: Alone,
) -> list[Row]:
    """Rows about the plan of `state`, as it ran over `stretches`."""
    rows: list[Row] = []
    stages = [stage for pipeline in state.pipelines for stage in pipeline.stages]
    for stage in stages:
        rows += _stage_rows(kind, stage, stretches, alone)
    whole_ms = sum(ran.cpu_s for ran in whole) / sum(ran.items for ran in whole) * 1e3
    together = [
        sum(each.usage.agents[stage.node] for stage in stages) / len(each.interval.answered) * 1e3
        for each in stretches
        if each.interval.answered
    ]
    if together:
        rows.append(
            Row.of(
                "throughput", f"CPU of all agents per image, {kind}", "ms", together,
                method=_PROCESS,
                against=f"whole {whole_ms:.2f}; the stages' blocks alone "
                f"{sum(alone.values()):.2f} ms",
            )
        )  # fmt: skip
    return [*rows, *_other_rows(kind, stretches)]


def _stage_rows(
    kind: str, stage: StageRow, stretches: Sequence[Stretch], alone: Alone
) -> list[Row]:
    node = stage.node
    busy = [each for each in stretches if each.items_on(node)]
    if not busy:  # a plan that was switched meanwhile
        return []
    process_ms = [each.usage.agents[node] / each.items_on(node) * 1e3 for each in busy]
    told = [row for each in busy for name, row in each.telemetry if name == node and row.items]
    items = sum(row.items for row in told)
    blocks = f"{stage.blocks[0]}:{stage.blocks[1]}"
    parts = f"runtime alone {alone[stage.blocks]:.2f} ms"
    if items:
        # The stage's own clock: input, runtime, codec and sending, but not receiving nor the agent's rest.
        inside_ms = sum(row.cpu_s * row.items for row in told) / items * 1e3
        outside_ms = sum(process_ms) / len(process_ms) - inside_ms
        parts += f"; in the stage {inside_ms:.2f}, receiving and the rest {outside_ms:.2f} ms"
    share = dict(zip(sorted(stretches[0].usage.agents), SHARES, strict=True))[node]
    quotas = [each.usage.quotas[node] for each in busy]
    throttled = sum(q.throttled for q in quotas) / max(1, sum(q.periods for q in quotas))
    waited = sum(q.waited_s for q in quotas) / sum(each.usage.seconds for each in busy)
    return [
        Row.of(
            "throughput", f"stage {stage.stage} ({node}, blocks {blocks}): CPU per item, {kind}",
            "ms", process_ms, method=_PROCESS, against=parts,
        ),
        Row.of(
            "throughput", f"{node}: quota of {share} CPU used, {kind}", "%",
            [100 * each.usage.agents[node] / (share * each.usage.seconds) for each in busy],
            method=_QUOTA,
            against=f"throttled in {throttled:.0%} of periods, {waited:.1%} of the time",
        ),
    ]  # fmt: skip


def _other_rows(kind: str, stretches: Sequence[Stretch]) -> list[Row]:
    busy = [each for each in stretches if each.interval.answered]
    used = {
        "broker": [each.usage.broker for each in busy],
        "orchestrator": [each.usage.orchestrator for each in busy],
        "this client": [each.usage.client for each in busy],
    }
    return [
        Row.of(
            "throughput", f"{name}: CPU per image, {kind}", "ms",
            [
                seconds / len(each.interval.answered) * 1e3
                for seconds, each in zip(values, busy, strict=True)
            ],
            method=_OTHERS, against="outside the agents' quotas",
        )
        for name, values in used.items()
        if values
    ]  # fmt: skip

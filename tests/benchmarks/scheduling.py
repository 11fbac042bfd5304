"""Who takes a job: what a decision costs, which rule does best, and what a plan costs to find.

**Decisions.** `selection.choose` over n candidates, all columns of the board up to date, one in ten without a
free credit. It is linear in n with a small slope: up to 100 candidates the cost is that of a dozen calls into
NumPy, at 10,000 it is memory. What keeping the board up to date adds to each item is measured beside it.

**Hierarchical selection** (the paper's proposal for large n: choose a group, then a member) is measured
against the flat one at sqrt(n) groups of sqrt(n). It was not kept. Up to 300 candidates it is slower, since
it pays the dozen calls twice; at 1,000 the two are level; only beyond does it win, where the flat decision
takes less than the 1 ms that was aimed at for a tenth of the candidates. What it wins it pays for in what it
decides by: a group's rank is that of when something last changed in it, so a pipeline that stalls is not
left, and in the normalised form terms of two groups do not compare.

**Rules.** The real dispatcher over simulated pipelines (`tests.core.dispatch_simulation`: unequal ones,
bursts, one that slows to a third, one that freezes, a wrong plan, a mixture), and a real cluster: MobileNetV2
whole on agents at 0.5, 0.3 and 0.2 CPU, the orchestrator started anew for each rule, rules
in turn, in another order each round.

**Plans.** `planner.plan` for the profile of MobileNetV2 as measured here: 3 nodes, 10 distinct ones, and
growing clusters of three kinds of node.

`--draw FILE.png` draws decision and plan time over n.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from deploy.cli.scheduling import scheduler_arguments
from deploy.flags import ServeFlags
from deploy.local import LocalCluster
from deploy.modelling import Modelling
from deploy.profile_model import profile_model
from orchestrator.core.board import Board
from orchestrator.core.plan import PlanRequest
from orchestrator.core.planner import plan
from orchestrator.core.scheduler_settings import Form, Scheduler, SchedulerSettings
from orchestrator.core.selection import Selector, choose
from shared.profile import ModelProfile, NodeProfile
from tests.benchmarks.clusters import MODEL, RUNTIME, SHARES, calibrated, serve
from tests.benchmarks.context import Context
from tests.benchmarks.decisions import RULES, Groups, pipelines
from tests.benchmarks.load import Saturation, Trickle, describe
from tests.benchmarks.payloads import jpeg_input
from tests.benchmarks.report import Bar, Row
from tests.benchmarks.scheduling_curves import Curve, draw
from tests.core.dispatch_simulation import SCENARIOS, Scenario

CANDIDATES = (3, 10, 30, 100, 300, 1_000, 3_000, 10_000)
AIMS_MS = {10: 0.05, 1_000: 1.0}
TWO_LEVELS = (100, 1_000, 3_000, 10_000)
PLAN_AIMS_MS = {"3 nodes": 5.0, "10 distinct nodes": 500.0, "1000 nodes of 3 kinds": 1_000.0}
KINDS = (10, 30, 100, 300, 1_000)
SETTINGS = {
    "shortest-completion": SchedulerSettings(),
    "least-outstanding": SchedulerSettings(scheduler=Scheduler.LEAST_OUTSTANDING),
    "nsa, normalised": SchedulerSettings(scheduler=Scheduler.NSA),
    "nsa, literal": SchedulerSettings(scheduler=Scheduler.NSA, form=Form.LITERAL),
}
COPIES = ServeFlags(weights="none", strategy="replicate", runtime=RUNTIME, timeout_s=300.0)
_NAME = "scheduling"
_MS = 1e3


async def run(context: Context) -> list[Row]:
    """See the module."""
    rows, decisions = _decisions(context)
    rows += _two_levels(context)
    planned, plans = _plans(context)
    rows += planned
    if context.draw is not None:
        draw(decisions, AIMS_MS, plans, context.draw)
    rows += _simulated(context)
    return rows + await _on_a_cluster(context)


# --- decisions ------------------------------------------------------------------------------------


def _timed(times: int, work: Callable[[int], object]) -> list[float]:
    """Milliseconds of each call, the first ones left out."""
    found = []
    for turn in range(-10, times):
        began = time.perf_counter()
        work(turn)
        if turn >= 0:
            found.append((time.perf_counter() - began) * _MS)
    return found


def _flat(rule: Selector, board: Board, turn: int) -> None:
    choose(rule, board, turn, 1.0)


def _in_two(groups: Groups, _: int) -> None:
    groups.choose(1.0)


def _decisions(context: Context) -> tuple[list[Row], list[Curve]]:
    times = context.choose(50, 1_000)
    rows, curves = [], []
    for name, rule in RULES.items():
        curve = Curve(name)
        for count in CANDIDATES:
            board = Board(pipelines(count))
            values = _timed(times, partial(_flat, rule, board))
            aim = AIMS_MS.get(count)
            row = Row.of(
                _NAME, f"decision, {name}, {count} candidates", "ms", values,
                method="selection.choose on a board that is up to date",
                bar=None if aim is None else Bar(aim),
            )  # fmt: skip
            curve.add(count, row.values)
            rows.append(row)
        curves.append(curve)
    made = pipelines(1_000)
    board = Board(made)
    rows.append(
        Row.of(
            _NAME, "board, an item in or out", "ms", _timed(times, lambda _: board.post(7, made[7])),
            method="Board.post, at 1,000 candidates",
        )
    )  # fmt: skip
    return rows, curves


def _two_levels(context: Context) -> list[Row]:
    times = context.choose(50, 1_000)
    rows = []
    for name in ("shortest-completion", "nsa, normalised"):
        for count in TWO_LEVELS:
            made = pipelines(count)
            board, groups, rule = Board(made), Groups(RULES[name], made), RULES[name]
            flat = _timed(times, partial(_flat, rule, board))
            two = _timed(times, partial(_in_two, groups))
            rows.append(
                Row.of(
                    _NAME, f"in two levels, {name}, {count}", "ms", two,
                    method="group, then member; the group that it goes to is ranked anew",
                    against=f"flat {statistics.median(flat):.3g} ms",
                )
            )  # fmt: skip
    return rows


# --- plans ----------------------------------------------------------------------------------------


def _plans(context: Context) -> tuple[list[Row], Curve]:
    context.say("scheduling: profiling MobileNetV2")
    made = profile_model(
        MODEL, Modelling(weights="none", runtime=RUNTIME), layers=False, step=lambda _: None
    )
    times = context.choose(1, 5)
    curve = Curve("three kinds of node")
    rows = []
    cases = {
        "3 nodes": [_node(f"n{index}", share) for index, share in enumerate(SHARES)],
        "10 distinct nodes": [_node(f"n{i}", 0.2 + 0.08 * i) for i in range(10)],
    } | {f"{count} nodes of 3 kinds": few_kinds(count) for count in KINDS}
    for name, nodes in cases.items():
        context.say(f"scheduling: planning over {name}")
        row = _plan(name, made.profile, nodes, times)
        rows.append(row)
        if name.endswith("kinds"):
            curve.add(len(nodes), row.values)
    return rows, curve


def _plan(name: str, profile: ModelProfile, nodes: Sequence[NodeProfile], times: int) -> Row:
    request = PlanRequest(profile, tuple(nodes))
    values = []
    for _ in range(times):
        began = time.perf_counter()
        found = plan(request)
        values.append((time.perf_counter() - began) * _MS)
    aim = PLAN_AIMS_MS.get(name)
    return Row.of(
        _NAME, f"plan, {name}", "ms", values,
        method="planner.plan, optimal, throughput, MobileNetV2",
        against=f"{len(found.pipelines)} pipelines, gap to the bound at most {found.gap_ratio:.1%}",
        bar=None if aim is None else Bar(aim),
    )  # fmt: skip


def few_kinds(count: int) -> list[NodeProfile]:
    """So many nodes, in equal parts of 0.5, 0.3 and 0.2 CPU."""
    return [_node(f"n{index:05}", SHARES[index % len(SHARES)]) for index in range(count)]


def _node(name: str, cpu: float) -> NodeProfile:
    return NodeProfile(
        name=name,
        cpu=cpu,
        speed=1.0,
        memory_bytes=512 * 10**6,
        up_bytes_per_s=12.5e6,
        down_bytes_per_s=12.5e6,
        message_s=0.0005 / cpu,
        byte_s=1e-9 / cpu,
    )


# --- the rules against each other -----------------------------------------------------------------


def _simulated(context: Context) -> list[Row]:
    seconds, seeds = context.choose(20.0, 60.0), range(context.choose(2, 5))
    rows = []
    for name, scenario in SCENARIOS.items():
        context.say(f"scheduling: simulating {name}")
        rows += [_simulated_row(name, scenario, rule, seconds, seeds) for rule in SETTINGS]
    return rows


def _simulated_row(
    name: str, scenario: Scenario, rule: str, seconds: float, seeds: Sequence[int]
) -> Row:
    outcomes = [scenario.run(SETTINGS[rule], seconds, seed) for seed in seeds]
    per_s = statistics.median(each.throughput_per_s for each in outcomes)
    p50_ms = _MS * statistics.median(each.quantile_s(0.5) for each in outcomes)
    return Row.of(
        _NAME, f"simulated {name}, {rule}: p95", "ms",
        [_MS * each.quantile_s(0.95) for each in outcomes],
        method=f"{scenario.text}; {seconds:g} s, {len(seeds)} seeds",
        against=f"p50 {p50_ms:.1f} ms, {per_s:.1f}/s",
    )  # fmt: skip


@dataclass(slots=True)
class _Seen:
    """What one rule did, round by round."""

    per_s: list[float]
    full_ms: list[float]
    part_ms: list[float]


async def _on_a_cluster(context: Context) -> list[Row]:
    seen = {rule: _Seen([], [], []) for rule in SETTINGS}
    async with calibrated(context, _NAME) as cluster:
        await serve(context, cluster, COPIES)
        rate_per_s = 0.0
        rules = list(SETTINGS)
        for turn in range(context.choose(1, len(rules))):
            # In another order each time: the machine's other work favours nobody.
            for rule in rules[turn:] + rules[:turn]:
                context.say(f"scheduling: {rule}, round {turn + 1}")
                rate_per_s = await _round(context, cluster, rule, seen[rule], rate_per_s)
    method = (
        "MobileNetV2 whole on agents at 0.5, 0.3 and 0.2 CPU, JPEG; full: 12 jobs under way, "
        f"part: a job every {1e3 / (0.6 * rate_per_s):.0f} ms, 60 % of the first rule's full rate"
    )
    rows = []
    for rule, found in seen.items():
        rows += [
            Row.of(
                _NAME, f"cluster, full, {rule}", "images/s", found.per_s, method=method,
                against=describe(found.full_ms),
            ),
            Row.of(
                _NAME, f"cluster, part, {rule}: latency", "ms", found.part_ms, method=method,
            ),
        ]  # fmt: skip
    return rows


async def _round(
    context: Context, cluster: LocalCluster, rule: str, seen: _Seen, rate_per_s: float
) -> float:
    """Full load, then part of it; the full rate that the part is of."""
    await cluster.restart_orchestrator(scheduler_arguments(SETTINGS[rule]))
    await cluster.wait_for_nodes()
    await cluster.wait_for_model(MODEL)
    seconds, payload = context.choose(3.0, 6.0), jpeg_input()
    async with cluster.client() as client:
        async with Saturation(client, MODEL, payload, 12) as load:
            await load.warm_up(context.choose(12, 60))
            interval = await load.measure(seconds)
        seen.per_s.append(interval.per_s)
        seen.full_ms += interval.latency_ms()
        rate_per_s = rate_per_s or interval.per_s
        async with Trickle(client, MODEL, payload, 1.0 / (0.6 * rate_per_s)) as trickle:
            await asyncio.sleep(2 * seconds)
        if trickle.failed:
            raise trickle.failed[0]
        # The first ones found every pipeline as the full load had left it.
        seen.part_ms += trickle.latencies_ms()[10:]
    return rate_per_s

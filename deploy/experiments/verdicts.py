"""What the records come to: the figures to reach, and where something else is better than we are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deploy.experiments.baseline import PAPER, STRICT
from deploy.experiments.summary import Summary, number

LEAST_CPU_PERCENT = 90.0
"""A process that computes all the time uses its quota; with less, something else had the cores."""
LEAST_BOTTLENECK_PERCENT = 75.0
"""The same for the busiest stage of a pipeline, which also waits for messages."""
OURS, TORCH, INT8 = "AMP4EC", "AMP4EC, torch", "AMP4EC, int8"
PEERS = (
    ("amp4ec-torch", "gloo", 1.1),
    ("amp4ec-torch", "ray-actors", 1.3),
    ("amp4ec-torch", "ray-serve", 2.8),
    ("amp4ec-onnxruntime", "gloo", 2.0),
)
"""One of ours, a peer, and how many times its throughput ours is to reach."""
_TOLERANCE = 0.02
"""Less than this is no difference."""
Summaries = Mapping[str, Summary]


@dataclass(frozen=True, slots=True)
class Verdict:
    """An aim, what was measured (None: nothing yet), and whether that reaches it."""

    text: str
    aim: str
    measured: float | None
    reached: bool | None


def verdicts(found: Summaries) -> list[Verdict]:
    """The figures to reach, each with what was measured."""
    strict = {runtime: whole.name for runtime, whole in STRICT.items()}
    exact = _of(found, "table-1", OURS, "exact_ratio")
    return [
        _at_least(
            "throughput against the paper's baseline (eager, batches of 32), exact answers",
            6.0,
            _ratio(found, OURS, PAPER.name) if exact == 1.0 else None,
        ),
        _at_least("the same at int8", 9.0, _ratio(found, INT8, PAPER.name)),
        *(
            _at_least(
                f"throughput against one process with the same runtime ({runtime})",
                0.85,
                _ratio(found, ours, strict[runtime]),
            )
            for runtime, ours in (("onnxruntime", OURS), ("torch", TORCH))
        ),
        *(
            _at_least(
                f"throughput beside its peers: {ours} against {peer}",
                aim,
                _ratio(found, ours, peer, "peers"),
            )
            for ours, peer, aim in PEERS
        ),
        _below(
            "scheduling decision per job, the worst of all numbers of nodes, ms",
            1.0,
            _worst(found, "table-2-overhead", "decision_ms"),
        ),
        _below(
            "CPU of the whole orchestrator per image, ms",
            1.0,
            _of(found, "table-1", OURS, "scheduling_ms"),
        ),
        _below(
            "monitoring, of the device's CPU where it is most, %",
            1.0,
            _worst(found, "monitoring", "worst_cpu_percent"),
        ),
    ]


def disturbed(found: Summaries) -> list[str]:
    """A sentence for each baseline that did not get the CPU that it may use: nothing compares with it."""
    return [
        f"{summary.experiment}, {case}: had {number(used)} % of its CPU, since something else used the cores."
        for summary in found.values()
        for case in summary.cases
        if (used := _starved(summary, case)) is not None
    ]


def _starved(summary: Summary, case: str) -> float | None:
    """The share of its CPU, in percent, that a baseline or peer had, where that was too little."""
    if summary.experiment == "peers":
        used = summary.median(case, "bottleneck_cpu_percent")
        return used if used is not None and used < LEAST_BOTTLENECK_PERCENT else None
    if not any(word in case for word in ("monolithic", "one process", "eager")):
        return None
    used = summary.median(case, "cpu_percent")
    return used if used is not None and used < LEAST_CPU_PERCENT else None


def worse(found: Summaries) -> list[str]:
    """A sentence for each comparison in which something else is better than we are."""
    said = [
        f"Not reached: {verdict.text}: {number(verdict.measured)}, wanted {verdict.aim}."
        for verdict in verdicts(found)
        if verdict.reached is False
    ]
    table = found.get("table-1")
    if table is not None:
        others = [case for case in table.cases if not case.startswith("AMP4EC")]
        same_batch = [case for case in others if _batch(table, case) == _batch(table, OURS)]
        said += _compare(table, OURS, others, "throughput_per_s", "images/s", more=True)
        said += _compare(table, OURS, same_batch, "latency_ms", "ms for a batch", more=False)
        said += _compare(table, OURS, others, "memory_mb", "MB", more=False)
        said += _compare(table, OURS, others, "stability", "stability", more=True)
    models = found.get("models")
    if models is not None:
        for name in [case for case in models.cases if case.endswith(": AMP4EC")]:
            rivals = [case for case in models.cases if case.split(":")[0] == name.split(":")[0]]
            said += _compare(models, name, rivals, "throughput_per_s", "images/s", more=True)
    for experiment, ours in (
        ("ablation-strategies", "optimal"),
        ("ablation-schedulers", "shortest-completion"),
    ):
        ablation = found.get(experiment)
        if ablation is not None:
            cases = ablation.cases
            said += _compare(ablation, ours, cases, "throughput_per_s", "images/s", more=True)
            said += _compare(ablation, ours, cases, "latency_ms", "ms alone", more=False)
    change = found.get("change")
    if change is not None:
        said += [
            f"{case}: {number(lost)} images lost."
            for case in change.cases
            if (lost := _largest(change, case, "lost"))
        ]
    peers = found.get("peers")
    if peers is not None:
        rivals = [case for case in peers.cases if not case.lower().startswith("amp4ec")]
        for ours in [case for case in peers.cases if case.lower().startswith("amp4ec")]:
            said += _compare(peers, ours, rivals, "throughput_per_s", "images/s", more=True)
            said += _compare(peers, ours, rivals, "latency_p95_ms", "ms, 95 %", more=False)
            said += _compare(peers, ours, rivals, "memory_mb", "MB in all", more=False)
            said += _compare(peers, ours, rivals, "other_cpu", "CPUs beside the stages", more=False)
            said += _compare(peers, ours, rivals, "start_s", "s to start", more=False)
            said += _compare(peers, ours, rivals, "recovery_s", "s to recover", more=False)
    return said


def _compare(
    summary: Summary, ours: str, others: list[str], figure: str, unit: str, *, more: bool
) -> list[str]:
    mine = summary.median(ours, figure)
    if mine is None:
        return []
    said = []
    for other in others:
        theirs = summary.median(other, figure)
        if other == ours or theirs is None:
            continue
        beaten = theirs > mine * (1 + _TOLERANCE) if more else theirs < mine * (1 - _TOLERANCE)
        if beaten:
            said.append(
                f"{ours}: {number(mine)} {unit}, {other}: {number(theirs)} ({summary.experiment})."
            )
    return said


def _ratio(found: Summaries, ours: str, other: str, experiment: str = "table-1") -> float | None:
    table = found.get(experiment)
    if table is not None and any(_starved(table, case) is not None for case in (ours, other)):
        return None
    mine = _of(found, experiment, ours, "throughput_per_s")
    theirs = _of(found, experiment, other, "throughput_per_s")
    return mine / theirs if mine is not None and theirs else None


def _of(found: Summaries, experiment: str, case: str, figure: str) -> float | None:
    summary = found.get(experiment)
    return None if summary is None else summary.median(case, figure)


def _worst(found: Summaries, experiment: str, figure: str) -> float | None:
    summary = found.get(experiment)
    if summary is None:
        return None
    values = [summary.median(case, figure) for case in summary.cases]
    return max((value for value in values if value is not None), default=None)


def _largest(summary: Summary, case: str, figure: str) -> float:
    found = summary.figure(case, figure)
    return 0.0 if found is None else found.largest


def _batch(summary: Summary, case: str) -> object:
    records = summary.of(case)
    return records[0].parameters.get("batch") if records else None


def _at_least(text: str, limit: float, measured: float | None) -> Verdict:
    return _verdict(text, f"at least {limit:g}", measured, lambda value: value >= limit)


def _below(text: str, limit: float, measured: float | None) -> Verdict:
    return _verdict(text, f"under {limit:g}", measured, lambda value: value < limit)


def _verdict(
    text: str, aim: str, measured: float | None, holds: Callable[[float], bool]
) -> Verdict:
    return Verdict(text, aim, measured, None if measured is None else holds(measured))

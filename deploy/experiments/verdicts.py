"""What the records come to: the figures to reach, and where something else is better than we are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deploy.experiments.baseline import PAPER, STRICT, TUNED
from deploy.experiments.summary import Figure, Summary, number, spread

LEAST_CPU_PERCENT = 90.0
"""A process that computes all the time uses its quota; with less, something else had the cores."""
LEAST_BOTTLENECK_PERCENT = 75.0
"""The same for the busiest stage of a pipeline, which also waits for messages."""
SYSTEMS = "table-1-systems"
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
_COMPARED = (
    ("table-1", (OURS,), "throughput_per_s", "images/s", True),
    ("table-1", (OURS,), "latency_ms", "ms for a batch", False),
    ("table-1", (OURS,), "memory_mb", "MB", False),
    ("table-1", (OURS,), "stability", "stability", True),
    (SYSTEMS, (TORCH, INT8), "throughput_per_s", "images/s", True),
    ("table-2-profiles", (OURS,), "throughput_per_s", "images/s", True),
    ("table-2-profiles", (OURS,), "low_latency_ms", "ms on the Low device", False),
    (
        "table-2-adaptability",
        ("2 nodes", "3 nodes", "4 nodes"),
        "throughput_per_s",
        "images/s",
        True,
    ),
    ("models", (), "throughput_per_s", "images/s", True),
    ("ablation-strategies", ("optimal",), "throughput_per_s", "images/s", True),
    ("ablation-strategies", ("optimal",), "latency_ms", "ms alone", False),
    ("ablation-schedulers", ("shortest-completion",), "throughput_per_s", "images/s", True),
    ("peers", (), "throughput_per_s", "images/s", True),
    ("peers", (), "latency_p95_ms", "ms, 95 %", False),
    ("peers", (), "memory_mb", "MB in all", False),
    ("peers", (), "other_cpu", "CPUs beside the stages", False),
    ("peers", (), "start_s", "s to start", False),
    ("peers", (), "recovery_s", "s to recover", False),
)
"""Where being beaten is said: experiment, cases (none: all of ours), figure, unit, whether more is better."""
Summaries = Mapping[str, Summary]


@dataclass(frozen=True, slots=True)
class Verdict:
    """An aim, what was measured (None: nothing yet), and whether that reaches it (None: there is no aim)."""

    text: str
    aim: str
    measured: Figure | None
    reached: bool | None


def verdicts(found: Summaries) -> list[Verdict]:
    """The figures to reach, each with what was measured."""
    exact = _of(found, "table-1", OURS, "exact_ratio")
    all_exact = exact is not None and exact.least == 1.0
    return [
        _at_least(
            "throughput against the paper's baseline (eager, batches of 32), exact answers",
            6.0,
            _ratio(found, OURS, PAPER.name) if all_exact else None,
        ),
        Verdict(
            "the same against that baseline with a tuned allocator",
            "none",
            _ratio(found, OURS, TUNED.name, SYSTEMS),
            None,
        ),
        _at_least("the same at int8", 9.0, _ratio(found, INT8, PAPER.name, SYSTEMS)),
        *(
            _at_least(
                f"throughput against one process with the same runtime ({runtime})",
                0.85,
                _ratio(found, ours, STRICT[runtime].name, experiment),
            )
            for runtime, ours, experiment in (
                ("onnxruntime", OURS, "table-1"),
                ("torch", TORCH, SYSTEMS),
            )
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
            "monitoring (telemetry), of the device's CPU where it is most, %",
            1.0,
            _worst(found, "monitoring", "telemetry_cpu_percent"),
        ),
        _below(
            "all that an idle device uses, connections included, where it is most, %",
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
        # What a page borrows is said on the page that it is at home on.
        if summary.of(case)[0].experiment == summary.experiment
        and (used := starved(summary, case)) is not None
    ]


def named(case: str) -> bool:
    """Whether a case is one of ours by its name."""
    return "amp4ec" in case.lower()


def starved(summary: Summary, case: str) -> float | None:
    """The share of its CPU, in percent, that a baseline or peer had, where that was too little."""
    if summary.experiment == "peers":
        used = summary.median(case, "bottleneck_cpu_percent")
        return used if used is not None and used < LEAST_BOTTLENECK_PERCENT else None
    if not any(word in case for word in ("monolithic", "one process", "eager")):
        return None
    used = summary.median(case, "cpu_percent")
    return used if used is not None and used < LEAST_CPU_PERCENT else None


def sound_ratio(
    summary: Summary, case: str, other: str, figure: str = "throughput_per_s"
) -> Figure | None:
    """A case's figure against another's, round by round; None where one is missing or was starved."""
    if any(starved(summary, one) is not None for one in (case, other)):
        return None
    return summary.ratio(case, other, figure)


def worse(found: Summaries) -> list[str]:
    """A sentence for each figure in which something else is better than we are."""
    said = [
        f"Not reached: {verdict.text}: {spread(verdict.measured)}, wanted {verdict.aim}."
        for verdict in verdicts(found)
        if verdict.reached is False
    ]
    for experiment, cases, figure, unit, more in _COMPARED:
        summary = found.get(experiment)
        if summary is None:
            continue
        for ours in [
            case for case in summary.cases if case in cases or (not cases and named(case))
        ]:
            rivals = _rivals(summary, ours, same_batch=figure.startswith("latency"))
            said += _compare(summary, ours, rivals, figure, unit, more=more)
    change = found.get("change")
    if change is not None:
        said += [
            f"{case}: {number(lost)} images lost (change)."
            for case in change.cases
            if (lost := _largest(change, case, "lost"))
        ]
    return said


def _rivals(summary: Summary, ours: str, *, same_batch: bool) -> list[str]:
    """What a case is compared with: its baselines where it has any, and else all that is not ours.

    A latency is of a batch, and compares with that of as large a one only.
    """
    beside = [case for case in summary.beside.get(ours, ()) if case]
    if summary.experiment.startswith("ablation"):
        beside = [case for case in summary.cases if case not in beside]
    others = beside or [case for case in summary.cases if not named(case)]
    if not same_batch:
        return others
    return [case for case in others if _batch(summary, case) == _batch(summary, ours)]


def _compare(
    summary: Summary, ours: str, others: list[str], figure: str, unit: str, *, more: bool
) -> list[str]:
    mine = summary.median(ours, figure)
    if mine is None:
        return []
    better = [
        f"{other} {number(theirs)}"
        for other in others
        if other != ours
        and (theirs := summary.median(other, figure)) is not None
        and (theirs > mine * (1 + _TOLERANCE) if more else theirs < mine * (1 - _TOLERANCE))
    ]
    if not better:
        return []
    return [f"{ours}: {number(mine)} {unit}; better: {', '.join(better)} ({summary.experiment})."]


def _ratio(found: Summaries, ours: str, other: str, experiment: str = "table-1") -> Figure | None:
    table = found.get(experiment)
    return None if table is None else sound_ratio(table, ours, other)


def _of(found: Summaries, experiment: str, case: str, figure: str) -> Figure | None:
    summary = found.get(experiment)
    return None if summary is None else summary.figure(case, figure)


def _worst(found: Summaries, experiment: str, figure: str) -> Figure | None:
    summary = found.get(experiment)
    if summary is None:
        return None
    values = [value for case in summary.cases if (value := summary.figure(case, figure))]
    return max(values, key=lambda value: value.median, default=None)


def _largest(summary: Summary, case: str, figure: str) -> float:
    found = summary.figure(case, figure)
    return 0.0 if found is None else found.largest


def _batch(summary: Summary, case: str) -> object:
    records = summary.of(case)
    return records[0].parameters.get("batch") if records else None


def _at_least(text: str, limit: float, measured: Figure | None) -> Verdict:
    return _verdict(text, f"at least {limit:g}", measured, lambda value: value >= limit)


def _below(text: str, limit: float, measured: Figure | None) -> Verdict:
    return _verdict(text, f"under {limit:g}", measured, lambda value: value < limit)


def _verdict(
    text: str, aim: str, measured: Figure | None, holds: Callable[[float], bool]
) -> Verdict:
    return Verdict(text, aim, measured, None if measured is None else holds(measured.median))

"""A run as a value: for people, and as JSON for programs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.machine import Machine, this_machine
from tests.cluster.chaos.checks import Check
from tests.cluster.chaos.ledger import Kind, Outcome
from tests.cluster.chaos.run import Options, Outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultLine:
    """A fault that was made; `at_s` from the run's beginning."""

    kind: str
    victim: str
    at_s: float
    hold_s: float
    recovery_s: float | None
    gap_s: float | None
    failure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Of one kind of fault: recovery and longest gap, in seconds."""

    kind: str
    count: int
    recovery_p50_s: float
    recovery_p95_s: float
    recovery_max_s: float
    gap_p50_s: float
    gap_p95_s: float
    gap_max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Second:
    """What was answered in one second of the run."""

    at_s: int
    answered: int
    latency_median_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """Everything about a run; `command` runs the same again."""

    command: str
    seed: int
    machine: Machine
    seconds: float
    jobs: dict[str, int]
    outcomes: dict[str, int]
    checks: list[Check]
    distributions: list[Distribution]
    faults: list[FaultLine]
    timeline: list[Second]

    @property
    def held(self) -> bool:
        """Whether every promise held."""
        return all(check.held for check in self.checks)


def make_report(outcomes: Outcomes, options: Options) -> RunReport:
    """The report of a run."""
    jobs = outcomes.ledger.jobs
    command = (
        f"python -m tests.cluster.chaos --seed {options.seed} --minutes {options.minutes:g}"
        f" --rate {options.per_s:g} --runtime {options.runtime} --faults {','.join(options.kinds)}"
    )
    return RunReport(
        command=command + (" --quick" if options.quick else ""),
        seed=options.seed,
        machine=this_machine(),
        seconds=round(outcomes.ended_at - outcomes.began_at, 1),
        jobs={kind.value: sum(job.kind is kind for job in jobs) for kind in Kind},
        outcomes={each.value: sum(job.outcome is each for job in jobs) for each in Outcome},
        checks=outcomes.checks,
        distributions=_distributions(outcomes),
        faults=[
            FaultLine(
                kind=each.fault.kind,
                victim=each.fault.victim,
                at_s=round(each.began_at - outcomes.began_at, 2),
                hold_s=round(each.mended_at - each.began_at, 2),
                recovery_s=each.recovery_s,
                gap_s=each.gap_s,
                failure=each.failure,
            )
            for each in outcomes.struck
        ],
        timeline=timeline(outcomes),
    )


def timeline(outcomes: Outcomes) -> list[Second]:
    """Second by second."""
    latencies: dict[int, list[float]] = {}
    for job in outcomes.ledger.right_answers():
        assert job.answered_at is not None
        second = int(job.answered_at - outcomes.began_at)
        latencies.setdefault(second, []).append((job.answered_at - job.sent_at) * 1e3)
    last = int(outcomes.ended_at - outcomes.began_at)
    return [
        Second(
            at_s=second,
            answered=len(latencies.get(second, ())),
            latency_median_ms=(
                round(statistics.median(latencies[second]), 2) if second in latencies else None
            ),
        )
        for second in range(last + 1)
    ]


def _distributions(outcomes: Outcomes) -> list[Distribution]:
    found = []
    for kind in dict.fromkeys(each.fault.kind for each in outcomes.struck):
        of_kind = [each for each in outcomes.struck if each.fault.kind is kind]
        recoveries = [each.recovery_s for each in of_kind if each.recovery_s is not None]
        gaps = [each.gap_s for each in of_kind if each.gap_s is not None]
        if not recoveries or not gaps:
            continue
        recovery, gap = _three(recoveries), _three(gaps)
        found.append(
            Distribution(
                kind=kind,
                count=len(of_kind),
                recovery_p50_s=recovery[0],
                recovery_p95_s=recovery[1],
                recovery_max_s=recovery[2],
                gap_p50_s=gap[0],
                gap_p95_s=gap[1],
                gap_max_s=gap[2],
            )
        )
    return sorted(found, key=lambda each: each.kind)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 95th percentile, largest."""
    middle, high = np.percentile(values, (50, 95))
    return round(float(middle), 3), round(float(high), 3), round(max(values), 3)


def print_report(report: RunReport) -> None:
    """The report for people, on standard output."""
    answered = sum(report.outcomes.values()) - report.outcomes[Outcome.OPEN]
    print(f"{report.command}\ncommit {report.machine.commit}, {report.seconds:g} s")
    print(f"{answered} answers to {sum(report.jobs.values())} jobs, {len(report.faults)} faults")
    print(f"{'fault':<18} {'n':>3}   recovery p50 / p95 / max s     longest gap p50 / p95 / max s")
    for each in report.distributions:
        print(
            f"{each.kind:<18} {each.count:>3}   {each.recovery_p50_s:>6.2f} / {each.recovery_p95_s:>6.2f}"
            f" / {each.recovery_max_s:>6.2f}      {each.gap_p50_s:>6.2f} / {each.gap_p95_s:>6.2f}"
            f" / {each.gap_max_s:>6.2f}"
        )
    for check in report.checks:
        print(
            f"{'held  ' if check.held else 'BROKEN'} {check.name}: {check.promise}\n       {check.found}"
        )

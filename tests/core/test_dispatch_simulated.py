"""The rules over simulated pipelines: every job is answered, and the default is the one that does best.

`python -m tests.benchmarks scheduling` prints the same comparison in full.
"""

from __future__ import annotations

import pytest

from orchestrator.core.scheduler_settings import Form, Scheduler, SchedulerSettings
from tests.core.dispatch_simulation import SCENARIOS, Outcome

RULES = [
    SchedulerSettings(scheduler=scheduler, form=form)
    for scheduler in Scheduler
    for form in (Form if scheduler is Scheduler.NSA else [Form.NORMALISED])
]
SECONDS = 20.0


def run(name: str, scheduling: SchedulerSettings, seeds: tuple[int, ...] = (1,)) -> list[Outcome]:
    return [SCENARIOS[name].run(scheduling, SECONDS, seed) for seed in seeds]


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.scheduler}-{rule.form}")
def test_every_job_is_answered_and_no_pipeline_is_forgotten(
    name: str, rule: SchedulerSettings
) -> None:
    (outcome,) = run(name, rule)
    assert outcome.failed == 0
    assert len(outcome.latencies_s) == SCENARIOS[name].num_jobs(SECONDS, 1)
    assert all(outcome.taken.values())


def test_the_default_has_the_shortest_tail_where_pipelines_are_unlike() -> None:
    """Of the 95th percentiles of all scenarios, the geometric mean: no scenario counts for more."""

    def tail(rule: SchedulerSettings) -> float:
        product = 1.0
        for name in SCENARIOS:
            for outcome in run(name, rule, seeds=(1, 2)):
                product *= outcome.quantile_s(0.95)
        return product

    default = tail(SchedulerSettings())
    assert all(default < tail(rule) for rule in RULES if rule != SchedulerSettings())


def test_a_frozen_pipeline_is_left_before_its_credits_are_gone() -> None:
    """It takes less than its window before anybody says that it is lost."""
    (with_rule,) = run("one freezes", SchedulerSettings())
    (by_count,) = run("one freezes", SchedulerSettings(scheduler=Scheduler.LEAST_OUTSTANDING))
    assert with_rule.stuck < by_count.stuck


def test_the_same_seed_gives_the_same_run() -> None:
    assert run("bursts", SchedulerSettings()) == run("bursts", SchedulerSettings())

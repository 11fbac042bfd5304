"""The instruments of chaos and soak: what they say is broken is broken, and nothing else."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import islice, pairwise
from typing import cast

import pytest

from deploy.local import LocalCluster
from tests.cluster.chaos.checks import Struck, check, measure
from tests.cluster.chaos.ledger import Job, Kind, Ledger, Outcome
from tests.cluster.chaos.retained import Expected, expected_topics
from tests.cluster.chaos.schedule import HOLDS_S, Fault, FaultKind, Step, draw, each_once
from tests.cluster.chaos.usage import Held, Usage
from tests.cluster.soak.trend import slope, trend

AGENTS = ("a", "b", "c")
KINDS = tuple(FaultKind)


def steps(seed: int, count: int = 200) -> list[Step]:
    return list(islice(draw(seed, KINDS, AGENTS, "c"), count))


def test_a_seed_gives_the_same_faults_again() -> None:
    assert steps(3) == steps(3)
    assert steps(3) != steps(4)


@pytest.mark.parametrize("seed", range(20))
def test_every_fault_has_its_turn_and_agents_are_spared(seed: int) -> None:
    drawn = steps(seed)
    faults = [fault for step in drawn for fault in step.faults]
    for start in range(0, len(faults) - len(KINDS), len(KINDS)):
        assert {fault.kind for fault in faults[start : start + len(KINDS)]} == set(KINDS)
    for step in drawn:
        victims = [fault.victim for fault in step.faults]
        assert len(victims) == len(set(victims)) <= 2, "one agent is always spared"
        for fault in step.faults:
            low, high = HOLDS_S[fault.kind]
            assert low <= fault.hold_s <= high
    assert any(len(step.faults) == 2 for step in drawn)


def test_the_quick_form_has_each_fault_once() -> None:
    drawn = list(each_once(0, KINDS, AGENTS, "c"))
    assert sorted(step.faults[0].kind for step in drawn) == sorted(KINDS)
    assert all(len(step.faults) == 1 for step in drawn)


def job(kind: Kind, sent_at: float, answered_at: float | None, outcome: Outcome) -> Job:
    return Job(kind, f"job-{sent_at}", 0, sent_at, answered_at, outcome)


def struck(kind: FaultKind, began_at: float, mended_at: float) -> Struck:
    return Struck(Fault(kind, "a", mended_at - began_at), began_at, began_at, mended_at)


def broken(ledger: Ledger, *faults: Struck, usage: Usage | None = None) -> set[str]:
    """The names of the checks that did not hold."""
    found = check(
        ledger=ledger,
        struck=faults,
        usage=usage or Usage(cast("LocalCluster", None)),
        retained=frozenset({"x"}),
        expected=Expected(frozenset({"x"}), frozenset()),
        ended={},
    )
    return {each.name for each in found if not each.held}


def test_a_quiet_run_breaks_nothing() -> None:
    assert broken(Ledger([job(Kind.CLIENT, 0, 1, Outcome.RIGHT)])) == set()


@pytest.mark.parametrize("outcome", [Outcome.OPEN, Outcome.ERROR, Outcome.WRONG])
def test_our_client_is_never_excused(outcome: Outcome) -> None:
    ledger = Ledger([job(Kind.CLIENT, 0, None, outcome), job(Kind.CLIENT, 9, 10, Outcome.RIGHT)])
    assert "our client: answered" in broken(ledger, struck(FaultKind.BROKER_KILL, 0.5, 1))


@pytest.mark.parametrize(
    ("kind", "sent_at", "excused"),
    [
        (FaultKind.BROKER_KILL, 9.0, True),
        (FaultKind.BROKER_KILL, 12.0, True),
        (FaultKind.BROKER_KILL, 40.0, False),
        (FaultKind.BROKER_RESTART, 9.0, False),
        (FaultKind.AGENT_KILL, 9.0, False),
        (FaultKind.ORCHESTRATORS_KILL, 9.0, False),
    ],
)
def test_a_stock_clients_job_is_lost_with_a_killed_broker_only(
    kind: FaultKind, sent_at: float, *, excused: bool
) -> None:
    ledger = Ledger(
        [job(Kind.MQTT5, sent_at, None, Outcome.OPEN), job(Kind.CLIENT, 50, 51, Outcome.RIGHT)]
    )
    found = broken(ledger, struck(kind, 10, 11))
    assert found == (set() if excused else {"stock clients: answered"})


def test_two_different_answers_are_excused_around_a_kill_only() -> None:
    ledger = Ledger()
    ledger.delivered("same", 10.0, b"1")
    ledger.delivered("same", 11.0, b"1")
    assert broken(ledger) == set(), "the same bytes again are the broker's at-least-once"
    ledger.delivered("other", 10.0, b"1")
    ledger.delivered("other", 11.0, b"2")
    assert broken(ledger) == {"once"}
    ledger.jobs = [job(Kind.CLIENT, 20, 21, Outcome.RIGHT)]
    assert broken(ledger, struck(FaultKind.ORCHESTRATORS_KILL, 10.5, 12)) == set()
    assert broken(ledger, struck(FaultKind.AGENT_KILL, 10.5, 12)) == {"once"}


def test_a_fault_that_is_not_got_over_is_told() -> None:
    ledger = Ledger([job(Kind.CLIENT, 0, 1, Outcome.RIGHT)])
    assert broken(ledger, struck(FaultKind.AGENT_CUT, 10, 12)) == {"recovery"}


def test_recovery_counts_jobs_sent_after_the_fault() -> None:
    ledger = Ledger(
        [
            job(Kind.CLIENT, 9.9, 10.1, Outcome.RIGHT),
            job(Kind.CLIENT, 10.5, 13.0, Outcome.RIGHT),
            job(Kind.CLIENT, 10.6, 13.5, Outcome.RIGHT),
        ]
    )
    fault = struck(FaultKind.AGENT_CUT, 10, 13.5)
    measure([fault], ledger)
    assert fault.recovery_s == pytest.approx(3.0)
    assert fault.gap_s == pytest.approx(2.9)


def test_ghosts_are_what_nobody_alive_accounts_for() -> None:
    expected = expected_topics("r", ["a"], ["m"])
    own = ("state", "beat", "info")
    found = frozenset(
        {*(f"r/orchestrator/{each}" for each in own), "r/model/m/state", "r/node/a/state"}
    )
    assert expected.fits(found)
    assert expected.fits(found | {"r/node/a/assignment"}), "idle nodes have none, others do"
    assert expected.ghosts(found | {"r/node/b/state"}) == ["r/node/b/state"]
    assert expected.missing(found - {"r/model/m/state"}) == ["r/model/m/state"]


def life(values: list[int], name: str = "orchestrator") -> Usage:
    usage = Usage(cast("LocalCluster", None))
    usage.seen = [
        Held(float(at), name, 7, value * 1_000_000, 20, 5) for at, value in enumerate(values)
    ]
    return usage


def test_a_process_that_grows_is_told() -> None:
    assert broken(Ledger(), usage=life([100] * 200)) == set()
    assert broken(Ledger(), usage=life([100 + at for at in range(200)])) == {"leaks"}
    assert broken(Ledger(), usage=life([50 + 5 * at for at in range(20)] + [150] * 180)) == set()


def test_an_agent_may_hold_what_any_of_them_held_before() -> None:
    late = life([50] * 60 + [150] * 140, "agent-1")
    assert broken(Ledger(), usage=late) == set(), "it got a stage"
    later = life([50] * 120 + [150] * 80, "agent-1")
    assert broken(Ledger(), usage=later) == {"leaks"}
    other = life([150] * 200, "agent-2")
    later.seen += [replace(held, pid=8) for held in other.seen]
    later.seen.sort(key=lambda held: held.at)
    assert broken(Ledger(), usage=later) == set(), "another one held as much"


def test_slope_is_the_median_of_all_pairs() -> None:
    dice = random.Random(5)
    times = sorted(dice.uniform(0, 100) for _ in range(40))
    values = [dice.gauss(0, 1) + 0.3 * at for at in times]
    pairs = [
        (values[j] - values[i]) / (times[j] - times[i])
        for i in range(len(times))
        for j in range(i + 1, len(times))
    ]
    pairs.sort()
    middle = (pairs[len(pairs) // 2 - 1] + pairs[len(pairs) // 2]) / 2
    assert len(pairs) % 2 == 0
    assert slope(times, values) == pytest.approx(middle)


def test_a_trend_sees_a_leak_through_noise_and_no_leak_in_it() -> None:
    dice = random.Random(1)
    times = [float(at) for at in range(900)]
    noise = [100 + dice.gauss(0, 2) + (30 if at % 60 < 10 else 0) for at in range(900)]
    leak = [value + 0.02 * at for at, value in enumerate(noise)]
    assert trend("x", "MB", times, noise, allowed=4.0).flat
    assert not trend("x", "MB", times, leak, allowed=4.0).flat
    start = [200.0 - at if at < 100 else 100.0 for at in range(900)]
    assert trend("x", "MB", times, start, allowed=0.0).flat, "the first half is warming up"


def test_long_series_are_thinned_and_not_cut() -> None:
    times = [float(at) for at in range(5000)]
    assert all(later > sooner for sooner, later in pairwise(times))
    assert slope(times, [2 * at for at in times]) == pytest.approx(2.0)

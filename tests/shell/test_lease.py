"""The lease of a leader: held from its latest confirmed word, and what its connections may do."""

from __future__ import annotations

from orchestrator.core.leadership import LEASE_S
from orchestrator.lease import CONFIRM_S, HANG_S, Lease


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make() -> tuple[Clock, Lease, list[str]]:
    clock, thrown_out = Clock(), list[str]()
    return clock, Lease(lambda: thrown_out.append("out"), clock), thrown_out


def test_it_is_held_for_a_lease_from_when_a_confirmed_word_was_sent() -> None:
    clock, lease, _ = make()
    assert not lease.held()
    lease.confirm(99.5)
    assert lease.held()
    clock.now = 99.5 + LEASE_S - 0.01
    assert lease.held()
    clock.now = 99.5 + LEASE_S
    assert not lease.held(), "as after a freeze, by the clock alone"
    lease.confirm(clock.now - 0.1)
    assert lease.held()


def test_a_lost_connection_waits_for_a_word_sent_after_the_loss() -> None:
    clock, lease, _ = make()
    lease.confirm(99.9)
    assert lease.may_connect(None)
    assert not lease.may_connect(99.8)
    lease.confirm(99.8 + CONFIRM_S)
    assert lease.may_connect(99.8)
    clock.now += LEASE_S + 1
    assert not lease.may_connect(None)


def test_who_was_thrown_out_is_out_whatever_comes_back_later() -> None:
    _, lease, thrown_out = make()
    lease.confirm(100.0)
    lease.taken_over()
    lease.taken_over()
    assert thrown_out == ["out"]
    lease.confirm(100.0)
    assert not lease.held()
    assert not lease.may_connect(None)


def test_one_that_ended_holds_no_more_and_blames_nobody() -> None:
    _, lease, thrown_out = make()
    lease.confirm(100.0)
    lease.end()
    lease.taken_over()
    assert not lease.held()
    assert thrown_out == []


def test_a_loop_that_does_not_turn_is_not_able() -> None:
    clock, lease, _ = make()
    seen = [lease.able]
    clock.now += HANG_S
    seen.append(lease.able)
    lease.turned()
    seen.append(lease.able)
    assert seen == [True, False, True]


def test_who_is_alone_leads_for_ever() -> None:
    lease = Lease.endless()
    assert lease.held()
    assert lease.may_connect(1e12)

"""Who leads: each rule by itself, and random histories of faults with the promise checked at every step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.leadership import (
    GAP_S,
    LARGEST_TERM,
    LEASE_S,
    OUTBID_PAUSE_S,
    SETTLE_S,
    TURN_S,
    UNREADY_S,
    WILL_S,
    Action,
    Beat,
    BeatSeen,
    Claim,
    Connected,
    CountKnown,
    Disconnected,
    Event,
    Follow,
    Lead,
    LeaderSeen,
    Leadership,
    ReadyChanged,
    Resign,
    Role,
    Sign,
    SignSeen,
    StandbysChanged,
    State,
    TermSeen,
    ThrownOut,
    Tick,
    Title,
)
from tests.core.leadership_world import STEP_S, World

OTHER = Title(4, "x")
SETTLED_S = LEASE_S + 1.0
"""Within so long of the last fault there is a leader: under 3 s in all."""


class One:
    """One core, and the time."""

    def __init__(self, name: str = "m", *, ready: bool = True) -> None:
        self.core = Leadership(name)
        self.ready = ready
        """Whether it has at once what a leader serves."""
        self.now = 0.0

    def step(self, event: Event) -> list[Action]:
        return self.core.step(event)

    def is_(self, role: Role) -> bool:
        return self.core.role is role

    def tick(self, seconds: float = 0.1) -> list[Action]:
        """Let time pass as a process that is not stopped sees it; what it did meanwhile."""
        actions: list[Action] = []
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(self.now + 0.1, end)
            actions += self.step(Tick(self.now))
        return actions

    def seen(
        self, title: Title, state: State = "online", *, retained: bool = False
    ) -> list[Action]:
        actions = self.step(LeaderSeen(self.now, title, state, retained))
        if self.ready and any(isinstance(action, Follow) for action in actions):
            self.step(ReadyChanged(self.now, ready=True))
        return actions

    def back(self, title: Title) -> list[Action]:
        """Our claim comes back."""
        return self.seen(title, "starting")

    def sign_back(self, actions: list[Action]) -> list[Action]:
        """Our latest sign among `actions` comes back."""
        serial = [action.serial for action in actions if isinstance(action, Sign)][-1]
        return self.step(SignSeen(self.now, self.core.name, serial))

    def leading(self) -> Title:
        """Brought to lead."""
        self.step(Connected(self.now))
        (claim,) = self.sign_back(self.tick())
        assert isinstance(claim, Claim)
        (lead,) = self.back(claim.title)
        assert isinstance(lead, Lead)
        return claim.title


def test_alone_on_a_new_broker_it_leads_after_two_round_trips() -> None:
    one = One()
    assert one.tick() == [], "nothing is said without a connection"
    one.step(Connected(one.now))
    signed = one.tick()
    assert signed == [Sign(1, ready=False)], "nobody leads: there is nothing to be ready for"
    assert one.sign_back(signed) == [Claim(Title(1, "m"))]
    assert one.core.confirmed_at < 0, "a claim is no lease yet"
    assert one.back(Title(1, "m")) == [Lead(Title(1, "m"), before=0, beat=0)]
    assert one.is_(Role.LEADING)


def test_a_leader_that_is_found_is_waited_for_a_lease() -> None:
    one = One()
    one.step(Connected(one.now))
    signed = one.tick()
    assert one.seen(OTHER, retained=True) == [Follow(OTHER)]
    assert one.sign_back(signed) == [], "what it answers was asked too early"
    waiting = one.tick(LEASE_S - 0.2)
    assert all(isinstance(action, Sign) for action in waiting)
    assert one.sign_back(one.tick(0.5)) == [Claim(Title(5, "m"))]


@pytest.mark.parametrize("state", ["offline", "lost"])
def test_the_first_connection_finds_a_place_that_is_free(state: State) -> None:
    one = One()
    one.step(Connected(one.now))
    one.seen(OTHER, state, retained=True)
    assert one.sign_back(one.tick()) == [Claim(Title(5, "m"))]


def test_a_will_found_at_a_reconnection_may_be_the_brokers_end() -> None:
    one = One()
    one.step(Connected(one.now))
    one.seen(OTHER, retained=True)
    one.tick()
    one.step(Disconnected(one.now))
    one.step(Connected(one.now))
    one.seen(OTHER, "lost", retained=True)
    signs = one.tick(LEASE_S - 0.2)
    assert not any(isinstance(action, Claim) for action in [*signs, *one.sign_back(signs)])
    one.seen(OTHER)  # it has come back, too
    signs = one.tick(LEASE_S - 0.2)
    assert one.sign_back(signs) == []


@pytest.mark.parametrize(("state", "after_s"), [("offline", 0.0), ("lost", WILL_S)])
def test_a_word_of_the_end_opens_the_place(state: State, after_s: float) -> None:
    one = One()
    one.step(Connected(one.now))
    one.seen(OTHER, retained=True)
    one.tick()
    one.seen(OTHER, state)
    one.now += after_s + 0.01
    signed = one.step(Tick(one.now))
    assert one.sign_back(signed) == [Claim(Title(5, "m"))]


def test_who_has_said_goodbye_is_not_brought_back_by_its_last_beats() -> None:
    one = One()
    one.step(Connected(one.now))
    one.seen(OTHER, retained=True)
    one.tick()
    one.seen(OTHER, "offline")
    one.step(BeatSeen(one.now, OTHER, 8, retained=False))
    assert one.sign_back(one.tick(0.2)) == [Claim(Title(5, "m"))]


def test_a_beat_after_a_will_is_a_leader_whose_connection_broke() -> None:
    one = One()
    one.step(Connected(one.now))
    one.seen(OTHER, retained=True)
    one.tick()
    one.seen(OTHER, "lost")
    one.step(BeatSeen(one.now, OTHER, 8, retained=False))
    assert one.tick(0.2) == []


def test_the_brokers_end_is_no_leaders_end() -> None:
    """It sends the wills of all, and then ends our connection."""
    one = One()
    one.step(Connected(one.now))
    one.seen(OTHER, retained=True)
    one.tick()
    one.seen(OTHER, "lost")
    one.step(Disconnected(one.now))
    assert one.tick(5.0) == []


def test_beats_keep_a_standby_waiting_and_silence_does_not() -> None:
    one = One()
    one.step(Connected(one.now))
    one.seen(OTHER, retained=True)
    signs: list[Action] = []
    for count in range(12):
        signs += one.tick(0.5)
        one.step(BeatSeen(one.now, OTHER, count, retained=False))
    assert one.sign_back(signs) == []
    assert one.sign_back(one.tick(LEASE_S + 0.2)) == [Claim(Title(5, "m"))]


def test_a_retained_beat_is_no_life() -> None:
    one = One()
    one.step(Connected(one.now))
    one.step(BeatSeen(one.now, OTHER, 70, retained=True))
    (claim,) = one.sign_back(one.tick())
    assert isinstance(claim, Claim)
    assert one.back(claim.title) == [Lead(claim.title, before=0, beat=70)]


def test_who_stood_still_blames_nobody() -> None:
    one = One()
    one.step(Connected(one.now))
    one.seen(OTHER, retained=True)
    one.tick()
    one.now += 60.0  # frozen
    assert one.step(Tick(one.now)) == [Sign(2)]
    one.step(SignSeen(one.now, "m", 2))
    assert one.is_(Role.STANDBY)
    assert one.sign_back(one.tick(LEASE_S + 0.2)) == [Claim(Title(5, "m"))]


def test_a_gap_is_more_than_a_late_tick() -> None:
    one = One()
    one.step(Connected(one.now))
    one.seen(OTHER, retained=True)
    one.tick(LEASE_S - GAP_S + 0.1)
    one.now += GAP_S - 0.05
    assert one.sign_back(one.step(Tick(one.now))) == [Claim(Title(5, "m"))]


def test_a_sign_that_does_not_come_back_is_repeated_and_nothing_is_claimed() -> None:
    one = One()
    one.step(Connected(one.now))
    actions = one.tick(3.0)
    assert len(actions) >= 4
    assert all(isinstance(action, Sign) for action in actions)


def test_a_claim_that_does_not_come_back_is_given_up() -> None:
    one = One()
    one.step(Connected(one.now))
    one.sign_back(one.tick())
    assert one.is_(Role.CLAIMING)
    signs = one.tick(2.0)
    assert one.is_(Role.STANDBY)
    assert one.sign_back(signs[-1:]) == [Claim(Title(2, "m"))], "the next has a number of its own"


def test_standbys_of_greater_names_come_first() -> None:
    one = One()
    one.step(Connected(one.now))
    one.seen(OTHER, retained=True)
    one.tick()
    one.step(SignSeen(one.now, "z", 1))
    one.step(SignSeen(one.now, "a", 1))
    one.seen(OTHER, "offline")
    early = one.tick(0.1)
    assert [a for a in early if isinstance(a, Sign)] == [] or one.sign_back(early) == []
    assert one.sign_back(one.tick(0.2)) == [Claim(Title(5, "m"))]


def test_a_standby_that_is_not_ready_lets_those_that_are_go_first() -> None:
    one = One("z", ready=False)
    one.step(Connected(one.now))
    one.seen(OTHER, retained=True)
    assert one.tick() == [Sign(1, ready=False)]
    one.step(SignSeen(one.now, "a", 1))
    one.step(SignSeen(one.now, "zz", 1, ready=False))
    one.seen(OTHER, "offline")
    assert one.sign_back(one.tick(UNREADY_S - TURN_S)) == []
    assert one.sign_back(one.tick(TURN_S + 0.2)) == [Claim(Title(5, "z"))]


def test_of_two_claims_of_one_term_the_lesser_name_stands_by() -> None:
    one = One()
    one.step(Connected(one.now))
    one.sign_back(one.tick())
    assert one.seen(Title(1, "z")) == [Follow(Title(1, "z"))]
    assert one.back(Title(1, "m")) == [], "our own claim, come back too late"
    assert one.is_(Role.STANDBY)


def test_of_two_claims_of_one_term_the_greater_name_claims_the_next() -> None:
    one = One()
    one.step(Connected(one.now))
    one.sign_back(one.tick())
    assert one.seen(Title(1, "a")) == [Claim(Title(2, "m"))]
    assert one.back(Title(1, "m")) == []
    assert one.back(Title(2, "m")) == [Lead(Title(2, "m"), before=0, beat=0)]


def test_a_leader_whose_term_another_claims_leads_under_the_next() -> None:
    one = One()
    title = one.leading()
    resign, claim = one.seen(Title(title.term, "a"))
    assert isinstance(resign, Resign)
    assert claim == Claim(Title(title.term + 1, "m"))


def test_a_leader_stands_by_for_a_greater_one() -> None:
    one = One()
    one.leading()
    resign, follow = one.seen(OTHER)
    assert isinstance(resign, Resign)
    assert "x leads under term 4" in resign.why
    assert follow == Follow(OTHER)


def test_a_leader_hears_of_a_greater_one_by_its_beat() -> None:
    one = One()
    one.leading()
    resign, follow = one.step(BeatSeen(one.now, OTHER, 9, retained=False))
    assert isinstance(resign, Resign)
    assert follow == Follow(OTHER)


@pytest.mark.parametrize("state", ["starting", "online", "offline", "lost"])
def test_a_leader_repeats_its_title_over_the_words_of_a_lesser(state: State) -> None:
    one = One()
    one.step(Connected(one.now))
    one.seen(OTHER, "lost", retained=True)
    (claim,) = one.sign_back(one.tick())
    assert isinstance(claim, Claim)
    one.back(claim.title)
    assert one.seen(OTHER, state) == [claim]
    assert one.step(BeatSeen(one.now, OTHER, 9, retained=False)) == []
    assert one.is_(Role.LEADING)


def test_the_lease_runs_from_when_a_beat_that_came_back_was_sent() -> None:
    one = One()
    title = one.leading()
    led_at = one.core.confirmed_at
    beats = [action for action in one.tick(1.2) if isinstance(action, Beat)]
    assert [beat.count for beat in beats] == [1, 2, 3]
    assert one.core.confirmed_at == led_at
    one.tick(0.3)
    one.step(BeatSeen(one.now, title, 2, retained=False))
    assert led_at < one.core.confirmed_at < one.now - 0.3
    one.step(BeatSeen(one.now, title, 99, retained=False))
    assert one.core.confirmed_at < one.now - 0.3, "not one that we never sent"


def test_one_that_hangs_does_not_beat() -> None:
    one = One()
    one.leading()
    one.now += 1.0
    assert one.step(Tick(one.now, able=False)) == []
    assert one.step(Tick(one.now)) == [Beat(Title(1, "m"), 1)]


def test_beats_go_on_above_what_the_broker_once_had() -> None:
    one = One()
    one.leading()
    one.step(CountKnown(one.now, 500))
    assert one.tick() == [Beat(Title(1, "m"), 501)]


def test_one_that_is_thrown_out_waits_for_the_others_word() -> None:
    one = One()
    one.leading()
    (resign,) = one.step(ThrownOut(one.now))
    assert isinstance(resign, Resign)
    assert one.core.confirmed_at < 0
    assert one.step(ThrownOut(one.now)) == []
    signs = one.tick(LEASE_S - 0.2)
    assert one.sign_back(signs) == []
    assert one.sign_back(one.tick(0.5)) == [Claim(Title(2, "m"))], "nobody spoke: on it goes"


def test_nodes_that_obey_a_greater_term_are_led_under_one_above_it() -> None:
    one = One()
    one.leading()
    one.step(TermSeen(one.now, 41))
    actions = one.tick()
    assert any(isinstance(action, Resign) for action in actions)
    assert one.sign_back(one.tick(SETTLE_S + 0.1)) == [Claim(Title(42, "m"))]


def test_a_node_that_lies_keeps_nobody_from_leading() -> None:
    one = One()
    one.leading()
    one.step(TermSeen(one.now, 41))
    one.tick()
    (claim,) = one.sign_back(one.tick(SETTLE_S + 0.1))
    assert isinstance(claim, Claim)
    one.back(claim.title)
    one.step(TermSeen(one.now, 77))
    one.step(TermSeen(one.now, LARGEST_TERM + 1))
    assert not any(isinstance(a, Resign) for a in one.tick(OUTBID_PAUSE_S - 1.0))
    assert any(isinstance(a, Resign) for a in one.tick(1.0)), "but it is not forgotten"


def test_a_leader_tells_who_stands_by() -> None:
    one = One()
    one.leading()
    one.step(SignSeen(one.now, "z", 1))
    one.step(SignSeen(one.now, "a", 1))
    assert StandbysChanged(("a", "z")) in one.tick()
    one.tick(1.0)
    one.step(SignSeen(one.now, "a", 2))
    assert StandbysChanged(("a",)) in one.tick(2.5)


# --- all together


def test_two_started_at_once_end_with_one_leader() -> None:
    world = World("a", "b", "c")
    world.advance(SETTLED_S)
    world.settled()


def test_take_overs_take_less_than_three_seconds() -> None:
    for fault in ("kill", "stop", "freeze"):
        world = World("a", "b", "c")
        world.advance(5.0)
        led = world.settled().name
        getattr(world, fault)(led)
        world.advance(SETTLED_S)
        assert world.settled().name != led
        began = world.leads[-1][0]
        assert began - (world.now - SETTLED_S) < (LEASE_S + 0.5 if fault == "freeze" else 0.4)


def test_a_frozen_leader_comes_back_as_a_standby() -> None:
    world = World("a", "b")
    world.advance(5.0)
    led = world.settled().name
    world.freeze(led)
    world.advance(10.0)
    second = world.settled().name
    world.thaw(led)
    world.advance(STEP_S)
    assert not world.holds_lease(world.processes[led])
    world.advance(1.0)
    assert world.settled().name == second


def test_a_wiped_broker_locks_nobody_out() -> None:
    world = World("a")
    world.advance(5.0)
    for number in range(6):
        world.kill(next(iter(world.processes)))
        world.start(f"a{number}")
        world.advance(SETTLED_S)
    assert world.settled().leads == Title(7, "a5")
    world.kill("a5")
    world.restart_broker(wiped=True)
    world.start("b")
    world.advance(SETTLED_S)
    leader = world.settled()
    assert leader.leads == Title(1, "b")
    leader.inbox.append(TermSeen(world.now, 7))  # a node that remembers
    world.advance(SETTLED_S)
    assert world.settled().leads == Title(8, "b")


FAULTS = ("kill", "stop", "freeze", "thaw", "cut", "drop", "heal", "glitch", "start", "broker")
history = st.lists(
    st.tuples(st.sampled_from(FAULTS), st.integers(0, 3), st.floats(0.05, 4.0)), max_size=14
)


@settings(deadline=None)
@given(history=history)
def test_whatever_happens_one_leads_and_no_two_act(
    history: list[tuple[str, int, float]],
) -> None:
    world = World("a", "b", "c")
    for number, (fault, which, pause_s) in enumerate(history):
        _befall(world, fault, which, f"n{number}")
        world.advance(pause_s)
    for name, process in list(world.processes.items()):
        if process.cut:
            world.heal(name)
        process.frozen = False
    if not world.processes:
        world.start("last")
    world.advance(2 * SETTLED_S)  # what thaws late may be one more change
    world.settled()


def _befall(world: World, fault: str, which: int, fresh: str) -> None:
    names = sorted(world.processes)
    if fault == "start" or not names:
        world.start(f"{'abz'[which % 3]}{fresh}")
        return
    # Leaders are what faults are about: half of them befall the one of the moment.
    leader = None if world.holder is None else world.holder[0]
    name = leader if which == 0 and leader in names else names[which % len(names)]
    assert name is not None
    match fault:
        case "kill":
            world.kill(name)
        case "stop" if not (world.processes[name].frozen or world.processes[name].cut):
            world.stop(name)
        case "freeze":
            world.freeze(name)
        case "thaw":
            world.thaw(name)
        case "cut" | "drop" if not world.processes[name].cut:
            world.cut(name, noticed=fault == "cut")
        case "heal" if world.processes[name].cut:
            world.heal(name)
        case "glitch":
            world.glitch(name)
        case "broker":
            world.restart_broker(wiped=which == 3)
        case _:
            pass

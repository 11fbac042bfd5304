"""The transfer's state machine against a wire that loses, repeats, reorders and damages."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.fetch import (
    Action,
    Ask,
    Begin,
    Check,
    Checked,
    Event,
    Fetch,
    Finish,
    GiveUp,
    PieceArrived,
    Reject,
    StartOver,
    Tick,
    Write,
)
from shared.messages.artifact import Piece

DATA = bytes(range(256)) * 4
DIGEST = hashlib.sha256(DATA).hexdigest()


def fetch(size: int = len(DATA), written: int = 0) -> Fetch:
    return Fetch(DIGEST, size, written=written, piece_bytes=100, timeout_s=1.0)


def piece(offset: int, length: int = 100, data: bytes = DATA) -> Piece:
    part = data[offset : offset + length]
    return Piece(
        digest=DIGEST,
        offset=offset,
        size=len(data),
        data=memoryview(part),
        sha256=memoryview(hashlib.sha256(part).digest()),
    )


def asked(actions: list[Action]) -> list[int]:
    return [action.offset for action in actions if isinstance(action, Ask)]


def written(actions: list[Action]) -> bytes:
    return b"".join(bytes(action.data) for action in actions if isinstance(action, Write))


def test_begins_with_a_window_of_wants() -> None:
    assert fetch().step(Begin(0.0)) == [Ask(0, 100), Ask(100, 100), Ask(200, 100), Ask(300, 100)]


def test_each_piece_moves_the_window_by_one() -> None:
    machine = fetch()
    machine.step(Begin(0.0))
    actions = machine.step(PieceArrived(0.1, piece(0)))
    assert written(actions) == DATA[:100]
    assert asked(actions) == [400]


def test_window_and_pieces_change_on_the_way() -> None:
    """What was asked for before is still taken as it was asked for."""
    machine = fetch()
    machine.step(Begin(0.0))
    machine.window, machine.piece_bytes = 1, 10
    assert machine.step(PieceArrived(0.1, piece(100))) == []
    assert machine.step(PieceArrived(0.1, piece(300))) == []
    assert asked(machine.step(PieceArrived(0.1, piece(0)))) == []
    assert machine.step(PieceArrived(0.1, piece(200)))[-1] == Ask(400, 10)
    machine.window, machine.piece_bytes = 2, 100
    actions = machine.step(PieceArrived(0.2, piece(400, 10)))
    assert actions[1:] == [Ask(410, 100), Ask(510, 100)]


def test_early_pieces_wait_and_hold_the_window() -> None:
    machine = fetch()
    machine.step(Begin(0.0))
    for offset in (100, 200, 300):
        assert machine.step(PieceArrived(0.1, piece(offset))) == []
    actions = machine.step(PieceArrived(0.2, piece(0)))
    assert written(actions) == DATA[:400]
    assert asked(actions) == [400, 500, 600, 700]


def test_resumes_behind_what_is_there() -> None:
    machine = fetch(written=1000)
    assert machine.step(Begin(0.0)) == [Ask(1000, 24)]
    assert machine.step(PieceArrived(0.1, piece(1000))) == [
        Write(memoryview(DATA[1000:])),
        Check(),
    ]
    assert machine.step(Checked(0.2, good=True)) == [Finish()]
    assert machine.over


def test_everything_there_is_checked_at_once() -> None:
    assert fetch(written=len(DATA)).step(Begin(0.0)) == [Check()]


def test_an_empty_blob_needs_no_piece() -> None:
    assert fetch(size=0).step(Begin(0.0)) == [Check()]


def test_silence_is_asked_again_with_back_off_and_then_given_up() -> None:
    machine = replace(fetch(), window=1, max_tries=3)
    machine.step(Begin(0.0))
    assert machine.next_deadline() == 1.0
    assert machine.step(Tick(0.5)) == []
    assert asked(machine.step(Tick(1.0))) == [0]
    assert machine.next_deadline() == 3.0
    assert asked(machine.step(Tick(3.0))) == [0]
    (give_up,) = machine.step(Tick(machine.next_deadline() or 0.0))
    assert isinstance(give_up, GiveUp)
    assert "no answer at offset 0, 3 times" in give_up.reason
    assert machine.over


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (replace(piece(0), sha256=memoryview(b"x" * 32)), "damaged"),
        (piece(0, length=99), "wrong length"),
        (replace(piece(0), size=5), "another size"),
    ],
)
def test_bad_piece_is_counted_asked_again_and_bounded(bad: Piece, reason: str) -> None:
    machine = replace(fetch(), window=1, max_tries=3)
    machine.step(Begin(0.0))
    assert asked(machine.step(PieceArrived(0.1, bad))) == [0]
    assert asked(machine.step(PieceArrived(0.2, bad))) == [0]
    assert machine.bad_pieces == 2
    reject, give_up = machine.step(PieceArrived(0.3, bad))
    assert isinstance(reject, Reject)
    assert reason in reject.reason
    assert reject.offset == 0
    assert isinstance(give_up, GiveUp)
    assert reason in give_up.reason
    assert give_up.expected != give_up.got


def test_a_piece_at_an_offset_that_was_not_asked_for_is_ignored() -> None:
    machine = fetch()
    machine.step(Begin(0.0))
    assert machine.step(PieceArrived(0.1, piece(50))) == []
    assert machine.repeats == 1


def test_refusal_ends_it_with_the_providers_words() -> None:
    machine = fetch()
    machine.step(Begin(0.0))
    (give_up,) = machine.step(PieceArrived(0.1, replace(piece(0), error="no blob abc")))
    assert isinstance(give_up, GiveUp)
    assert give_up.got == "no blob abc"


def test_wrong_blob_starts_over_once() -> None:
    machine = replace(fetch(written=1000), max_rounds=2)
    machine.step(Begin(0.0))
    machine.step(PieceArrived(0.1, piece(1000)))
    actions = machine.step(Checked(0.2, good=False))
    assert actions[0] == StartOver()
    assert asked(actions) == [0, 100, 200, 300]
    for offset in range(0, len(DATA), 100):
        actions = machine.step(PieceArrived(0.3, piece(offset)))
    assert Check() in actions
    (give_up,) = machine.step(Checked(0.4, good=False))
    assert isinstance(give_up, GiveUp)


@dataclass
class Wire:
    """Answers wants, badly; time passes only when nothing else is left to do."""

    source: random.Random
    loss: float
    damage: float
    repeat: float
    now: float = 0.0
    air: list[Piece] = field(default_factory=list)
    file: bytearray = field(default_factory=bytearray)

    def ask(self, ask: Ask) -> None:
        answer = piece(ask.offset, ask.length)
        if self.source.random() < self.damage:
            answer = replace(answer, data=memoryview(b"?" * ask.length))
        if self.source.random() >= self.loss:
            self.air.append(answer)
        if self.source.random() < self.repeat:
            self.air.append(answer)
        self.source.shuffle(self.air)

    def run(self, machine: Fetch) -> Action:
        event: Event = Begin(self.now)
        for _ in range(10_000):
            answer: Event | None = None
            for action in machine.step(event):
                match action:
                    case Ask():
                        assert action.length <= machine.piece_bytes
                        self.ask(action)
                    case Write(data):
                        self.file += data
                    case StartOver():
                        self.file.clear()
                    case Reject():
                        assert self.damage > 0
                    case Check():
                        answer = Checked(self.now, good=bytes(self.file) == DATA)
                    case _:
                        return action
            assert len(machine._outstanding) + len(machine._early) <= machine.window
            if answer is not None:
                event = answer
            elif self.air:
                event = PieceArrived(self.now, self.air.pop())
            else:
                self.now = machine.next_deadline() or self.now
                event = Tick(self.now)
        raise AssertionError("never ends")


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32), st.floats(0, 0.5), st.floats(0, 0.3), st.floats(0, 0.5),
    st.integers(0, 10).map(lambda n: n * 100),
)  # fmt: skip
def test_any_wire_gives_the_blob_or_gives_up(
    seed: int, loss: float, damage: float, repeat: float, start: int
) -> None:
    wire = Wire(random.Random(seed), loss, damage, repeat, file=bytearray(DATA[:start]))
    machine = replace(fetch(written=start), max_tries=8)
    end = wire.run(machine)
    if isinstance(end, Finish):
        assert bytes(wire.file) == DATA
    else:
        assert isinstance(end, GiveUp)
        assert loss + damage > 0
    assert machine.over
    assert machine.step(Tick(wire.now + 100)) == []

"""One transfer of one blob, as a state machine: which piece to ask for next, and what to do with what comes.

::

    FETCHING --all pieces written--> CHECKING --digest right--> DONE
       ^  |                             |
       |  +--no answer / refused--> FAILED <--wrong too often--+
       +--------------- digest wrong: start over --------------+

Pull: the asker has at most `window` wants outstanding, so it sets the pace, and a provider keeps no state;
`window` and `piece_bytes` may be changed on the way, and hold for what is asked for next. Pieces may come
late, twice, in any order, or damaged. Pure: the time comes with each event, and files and network are the
caller's (`shared/transfer.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

from shared.messages.artifact import PIECE_BYTES, Piece


@dataclass(frozen=True, slots=True)
class Begin:
    """Start asking. `now` is a monotonic time in seconds, here and in all events."""

    now: float


@dataclass(frozen=True, slots=True)
class PieceArrived:
    """A piece of this blob came in."""

    now: float
    piece: Piece


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; needed at `Fetch.next_deadline`."""

    now: float


@dataclass(frozen=True, slots=True)
class Checked:
    """Everything was written, and hashes to the blob's digest, or not."""

    now: float
    good: bool


Event: TypeAlias = Begin | PieceArrived | Tick | Checked


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a want for `[offset, offset + length)`."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Write:
    """Append `data`: these come in order, each once."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class Reject:
    """What came at `offset` is not what it should be, and is not used: say so."""

    offset: int
    reason: str
    expected: str
    got: str


@dataclass(frozen=True, slots=True)
class Check:
    """All is written: hash it, and answer with `Checked`."""


@dataclass(frozen=True, slots=True)
class StartOver:
    """Throw away what was written."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The blob is here and right."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The blob cannot be had from this provider."""

    reason: str
    expected: str
    got: str


Action: TypeAlias = Ask | Write | Reject | Check | StartOver | Finish | GiveUp


@dataclass(slots=True)
class _Outstanding:
    length: int
    deadline: float
    tries: int = 1


@dataclass(slots=True)
class Fetch:
    """A transfer of `size` bytes named `digest`, of which `written` bytes are there already.

    A want without an answer is repeated after `timeout_s`, doubled each time up to `timeout_limit_s`; the
    same piece is asked for at most `max_tries` times, the whole blob at most `max_rounds` times.
    """

    digest: str
    size: int
    written: int = 0
    window: int = 4
    piece_bytes: int = PIECE_BYTES
    timeout_s: float = 2.0
    timeout_limit_s: float = 15.0
    max_tries: int = 6
    max_rounds: int = 2
    bad_pieces: int = 0
    repeats: int = 0
    _next: int = 0
    _round: int = 1
    _over: bool = False
    _outstanding: dict[int, _Outstanding] = field(default_factory=dict)
    _early: dict[int, memoryview] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether `Finish` or `GiveUp` was given out."""
        return self._over

    def next_deadline(self) -> float | None:
        """When the next `Tick` is needed; None while nothing is outstanding."""
        return min((want.deadline for want in self._outstanding.values()), default=None)

    def step(self, event: Event) -> list[Action]:
        """What to do about `event`; nothing once it is over."""
        if self._over:
            return []
        match event:
            case Begin(now):
                self._next = self.written
                return self._more(now)
            case PieceArrived(now, piece):
                return self._piece(now, piece)
            case Tick(now):
                return self._tick(now)
            case Checked(now, good):
                return self._checked(now, good)
            case _:
                assert_never(event)

    def _more(self, now: float) -> list[Action]:
        """Fill the window, or have the digest checked when there is nothing left to ask for."""
        if self.written == self.size:
            return [Check()]
        actions: list[Action] = []
        # Early pieces count too: one that is missing must not let the rest of the blob pile up in memory.
        while self._next < self.size and len(self._outstanding) + len(self._early) < self.window:
            length = min(self.piece_bytes, self.size - self._next)
            self._outstanding[self._next] = _Outstanding(length, now + self.timeout_s)
            actions.append(Ask(self._next, length))
            self._next += length
        return actions

    def _piece(self, now: float, piece: Piece) -> list[Action]:
        if piece.error:
            return self._give_up("the provider has no such blob", self.digest, piece.error)
        want = self._outstanding.get(piece.offset)
        if want is None:
            self.repeats += 1  # delivered twice, or answered twice because we asked twice
            return []
        wrong = self._wrong(piece, want.length)
        if wrong is not None:
            self.bad_pieces += 1
            return [Reject(piece.offset, *wrong), *self._again(now, piece.offset, *wrong)]
        del self._outstanding[piece.offset]
        self._early[piece.offset] = piece.data
        actions: list[Action] = []
        while (data := self._early.pop(self.written, None)) is not None:
            self.written += len(data)
            actions.append(Write(data))
        return actions + self._more(now)

    def _wrong(self, piece: Piece, length: int) -> tuple[str, str, str] | None:
        if piece.size != self.size:
            return "a blob of another size", f"{self.size} bytes", f"{piece.size} bytes"
        if len(piece.data) != length:
            return "a piece of a wrong length", f"{length} bytes", f"{len(piece.data)} bytes"
        digest = hashlib.sha256(piece.data).digest()
        if digest != bytes(piece.sha256):
            return "a damaged piece", f"SHA-256 {bytes(piece.sha256).hex()}", digest.hex()
        return None

    def _again(self, now: float, offset: int, what: str, expected: str, got: str) -> list[Action]:
        want = self._outstanding[offset]
        if want.tries >= self.max_tries:
            return self._give_up(f"{what} at offset {offset}, {want.tries} times", expected, got)
        pause = min(self.timeout_limit_s, self.timeout_s * 2.0**want.tries)
        self._outstanding[offset] = _Outstanding(want.length, now + pause, want.tries + 1)
        return [Ask(offset, want.length)]

    def _tick(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for offset in [o for o, want in self._outstanding.items() if want.deadline <= now]:
            actions += self._again(now, offset, "no answer", "a piece", "nothing")
            if self._over:
                return actions
        return actions

    def _checked(self, now: float, good: bool) -> list[Action]:
        if good:
            self._over = True
            return [Finish()]
        if self._round >= self.max_rounds:
            return self._give_up(
                f"what comes under this address is another blob: the whole blob is wrong, "
                f"{self._round} times",
                f"SHA-256 {self.digest}",
                "another one",
            )
        self._round += 1
        self.written = self._next = 0
        return [StartOver(), *self._more(now)]

    def _give_up(self, reason: str, expected: str, got: str) -> list[Action]:
        self._over = True
        return [GiveUp(reason, expected, got)]

"""What becomes of nodes: `members` says it, `cluster` acts on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Joined:
    """A node can be planned for; `anew` when this is another life of it, so that it holds nothing."""

    node: str
    cause: str
    text: str
    anew: bool


@dataclass(frozen=True, slots=True)
class Left:
    """A node cannot be planned for any more, and what it held is gone or out of reach.

    `crashed`: its process ended without a word (its last will, or it started anew), so what it computed
    may be why. One that is only silent may be alive behind a cut, and what it had in hand is not to blame.
    """

    node: str
    cause: str
    why: str
    crashed: bool


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A node comes and goes: it is planned for only where nothing fits without it."""

    node: str
    cause: str


@dataclass(frozen=True, slots=True)
class Readmitted:
    """A node that came and went may be planned for as any other again."""

    node: str
    cause: str


@dataclass(frozen=True, slots=True)
class Altered:
    """A living node says something else about itself, such as its measured speed."""

    node: str
    cause: str
    calibrated: bool


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A living node has noticeably less memory for us than it had."""

    node: str
    cause: str


@dataclass(frozen=True, slots=True)
class DiskFreed:
    """A living node has the space on its disk that a stage of a model could not be had for."""

    node: str
    model: str
    cause: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A node said something that cannot be true; said once per life and kind of message."""

    node: str
    what: str
    text: str
    problem: str


@dataclass(frozen=True, slots=True)
class Questioned:
    """A node is silent: it is to be asked whether it is there."""

    node: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A node was gone for so long that nothing shall remind of it."""

    node: str
    cause: str


Change = (
    Joined
    | Left
    | LeftOut
    | Readmitted
    | Altered
    | Shrunk
    | DiskFreed
    | Refused
    | Questioned
    | Forgotten
)

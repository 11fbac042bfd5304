"""The books: every job that was sent, and every answer that came."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """Who asked."""

    CLIENT = "client"
    """Ours, which repeats a job until it is answered."""
    MQTT5 = "mqtt5"
    """A stock client with a persistent session: publishes once."""
    MQTT311 = "mqtt311"
    """The same with MQTT 3.1.1 and its topic."""


class Outcome(StrEnum):
    """What became of a job."""

    OPEN = "open"
    RIGHT = "right"
    WRONG = "wrong"
    """Answered with something else than the whole model's answer."""
    ERROR = "error"


@dataclass(slots=True)
class Job:
    """A job; times are monotonic seconds."""

    kind: Kind
    job: str
    sample: int
    sent_at: float
    answered_at: float | None = None
    outcome: Outcome = Outcome.OPEN
    detail: str = ""

    def open_within(self, start: float, stop: float) -> bool:
        """Whether it was sent and not answered at some moment of that time."""
        return self.sent_at <= stop and (self.answered_at is None or self.answered_at >= start)


@dataclass(slots=True)
class Deliveries:
    """What came for one job over the wire: how often, and how many different answers."""

    first_at: float
    count: int = 0
    digests: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class Ledger:
    """Kept in the event loop; threads hand over by `call_soon_threadsafe`."""

    jobs: list[Job] = field(default_factory=list)
    deliveries: dict[str, Deliveries] = field(default_factory=dict)
    open_of: Counter[Kind] = field(default_factory=Counter)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def open(self) -> int:
        """How many jobs have no answer yet."""
        return self.open_of.total()

    async def all_answered(self, *kinds: Kind) -> None:
        """Wait until nothing of these kinds is open."""
        while any(self.open_of[kind] for kind in kinds):
            self._changed.clear()
            await self._changed.wait()

    def sent(self, kind: Kind, job: str, sample: int) -> Job:
        """A job goes out now."""
        entry = Job(kind, job, sample, time.monotonic())
        self.jobs.append(entry)
        self.open_of[kind] += 1
        return entry

    def answered(self, entry: Job, at: float, outcome: Outcome, detail: str = "") -> None:
        """The first answer to a job; later ones are in `deliveries`."""
        if entry.outcome is not Outcome.OPEN:
            return
        entry.answered_at, entry.outcome, entry.detail = at, outcome, detail
        self.open_of[entry.kind] -= 1
        self._changed.set()

    def delivered(self, job: str, at: float, digest: bytes) -> None:
        """An answer was seen on the wire."""
        found = self.deliveries.setdefault(job, Deliveries(at))
        found.count += 1
        found.digests.add(digest)

    def right_answers(self) -> list[Job]:
        """Jobs answered rightly, in the order of the answers."""
        done = [job for job in self.jobs if job.outcome is Outcome.RIGHT]
        return sorted(done, key=lambda job: job.answered_at or 0.0)

"""What became of single jobs, for whoever asks afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from shared.messages import Count, Version
from shared.messages.job import TraceEntry
from shared.messages.operation import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """Tell the lives of a job, by the client's name for it or by ours; see `JobLives`."""

    transaction: Transaction
    job: Annotated[str, Meta(min_length=1, max_length=1024)]
    v: Version = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStep:
    """One thing that happened to a job, by the orchestrator's clock. `text` is for people.

    `item` is which input of the job it is about, `attempt` which try at it; `node` who was lost.
    """

    at: str
    what: Literal["accepted", "refused", "dispatched", "failed", "lost", "set_aside", "answered"]
    text: str
    item: Count | None = None
    attempt: Count | None = None
    pipeline: str | None = None
    generation: Count | None = None
    node: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLife:
    """What became of one message with a job: `request` is our name for it.

    The steps are in order; those of a large batch that are too many are counted in `left_out`. `trace` is of
    the answer, where one input was run.
    """

    job: str
    request: str
    model: str
    client: str
    items: Count
    steps: list[JobStep]
    left_out: Count = 0
    trace: list[TraceEntry] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLives:
    """The `data` of the response to `job`: the latest last.

    The orchestrator that leads remembers some thousands since it began to, those longer that did not go
    straight through.
    """

    jobs: list[JobLife]

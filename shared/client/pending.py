"""One job that waits for its answer, as it is said to the cluster each time."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass, field
from typing import Any

from shared.bus import Properties
from shared.client.inputs import MSGPACK, Payload
from shared.client.results import Result
from shared.errors import ConfigurationError, ErrorCode, JobError
from shared.job_options import DEFAULT_PRIORITY, Policy, check_priority
from shared.topics import Topics

_RETRY_S = 1.0
"""Where a refusal does not say when to come back."""
_MOST_DOUBLINGS = 6
_LONGEST_S = 30 * 86400.0

Reply = Result | JobError | list[Result | JobError]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the caller wants of a job, as `Client.infer` describes it.

    Raises:
        ConfigurationError: a priority or a time that cannot be one.
    """

    timeout_s: float
    deadline_s: float | None = None
    tensors: bool = False
    priority: int = DEFAULT_PRIORITY
    policy: Policy = Policy.LOSSLESS
    retry: bool = True

    def __post_init__(self) -> None:
        check_priority(self.priority)
        _check_time("timeout_s", self.timeout_s)
        if self.deadline_s is not None:
            _check_time("deadline_s", self.deadline_s)


def _check_time(name: str, seconds: float) -> None:
    if not 0 < seconds <= _LONGEST_S:  # nor NaN
        raise ConfigurationError(
            f"{name} cannot be used",
            expected=f"seconds, more than 0 and at most {_LONGEST_S:.0f}",
            got=repr(seconds),
        )


@dataclass(slots=True, kw_only=True)
class Pending:
    """A job that waits for its answer; `started` is the event loop's time."""

    job: str
    model: str
    payload: Payload
    started: float
    wishes: Wishes
    answer: asyncio.Future[Reply]
    again: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an answer may have been lost, so that the job should be published again."""

    def left(self) -> float:
        """Seconds until nobody waits any more."""
        return self.started + self.wishes.timeout_s - asyncio.get_running_loop().time()

    def left_to_run(self) -> float:
        """Seconds until an answer would be too late, for who waits or by the job's deadline."""
        left_s, deadline_s = self.left(), self.wishes.deadline_s
        if deadline_s is None:
            return left_s
        return min(left_s, left_s - self.wishes.timeout_s + deadline_s)

    def refused(self) -> None:
        """The answer was to come back later: the next one counts."""
        self.answer = asyncio.get_running_loop().create_future()

    def properties(self, topics: Topics, client: str) -> Properties:
        """What goes with the payload, now."""
        wishes = self.wishes
        user = [("job", self.job)]
        if wishes.deadline_s is not None:
            waited_s = asyncio.get_running_loop().time() - self.started
            # One that has passed is said, too: the answer is that it has, where 0 would make no sense.
            left_ms = max(1, math.ceil((wishes.deadline_s - waited_s) * 1e3))
            user.append(("deadline_ms", str(left_ms)))
        if wishes.priority != DEFAULT_PRIORITY:
            user.append(("priority", str(wishes.priority)))
        if wishes.policy is not Policy.LOSSLESS:
            user.append(("policy", wishes.policy))
        if wishes.tensors:
            user.append(("accept", MSGPACK))
        return Properties(
            response_topic=topics.topic("result", client=client, job=self.job),
            correlation_data=self.job.encode(),
            content_type=self.payload.content_type or None,
            user=tuple(user),
            # Nobody waits longer: a job that outlives its caller in the broker's queue is not run.
            expiry_s=max(1, math.ceil(self.left_to_run())),
        )

    async def answered_within(self, timeout_s: float) -> bool:
        """Wait for the answer, for a reason to ask again, or for the time to pass."""
        again = asyncio.ensure_future(self.again.wait())
        try:
            await first_of(again, self.answer, timeout_s=timeout_s)
        finally:
            again.cancel()
        return self.answer.done()


@dataclass(slots=True)
class Refusals:
    """How long to wait after a refusal before the same job is sent again.

    As the orchestrator says, which knows when there will be room, and twice as long each time; drawn from the
    upper half, so that those who were refused together do not come back together.
    """

    source: random.Random = field(default_factory=random.Random, repr=False)
    number: int = 0

    def wait_s(self, reply: Reply) -> float | None:
        """Seconds to wait now; None where the reply is none that asks to come back."""
        if not isinstance(reply, JobError) or reply.code is not ErrorCode.OVERLOADED:
            return None
        ceiling_s = (reply.retry_after_s or _RETRY_S) * 2.0 ** min(self.number, _MOST_DOUBLINGS)
        self.number += 1
        return ceiling_s * self.source.uniform(0.5, 1.0)


async def first_of(*awaited: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    """Wait for one of these, for `timeout_s` at most; none is cancelled."""
    await asyncio.wait(awaited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

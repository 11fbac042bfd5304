"""One job that waits for its answer, as it is said to the cluster each time."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Any

from shared.bus import Properties
from shared.client.inputs import MSGPACK, Payload
from shared.client.results import Result
from shared.errors import JobError
from shared.job_options import DEFAULT_PRIORITY, Policy
from shared.topics import Topics

Reply = Result | JobError | list[Result | JobError]


@dataclass(slots=True, kw_only=True)
class Pending:
    """A job that waits for its answer; `started` is the event loop's time."""

    job: str
    model: str
    payload: Payload
    started: float
    timeout_s: float
    deadline_s: float | None
    tensors: bool
    priority: int
    policy: Policy
    answer: asyncio.Future[Reply]
    again: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an answer may have been lost, so that the job should be published again."""

    def left(self) -> float:
        """Seconds until nobody waits any more."""
        return self.started + self.timeout_s - asyncio.get_running_loop().time()

    def properties(self, topics: Topics, client: str) -> Properties:
        """What goes with the payload, now."""
        user = [("job", self.job)]
        if self.deadline_s is not None:
            waited = asyncio.get_running_loop().time() - self.started
            user.append(("deadline_ms", str(math.ceil(max(0.0, self.deadline_s - waited) * 1e3))))
        if self.priority != DEFAULT_PRIORITY:
            user.append(("priority", str(self.priority)))
        if self.policy is not Policy.LOSSLESS:
            user.append(("policy", self.policy))
        if self.tensors:
            user.append(("accept", MSGPACK))
        return Properties(
            response_topic=topics.topic("result", client=client, job=self.job),
            correlation_data=self.job.encode(),
            content_type=self.payload.content_type or None,
            user=tuple(user),
            # Nobody waits longer: a job that outlives its caller in the broker's queue is not run.
            expiry_s=max(1, math.ceil(self.left())),
        )

    async def answered_within(self, timeout_s: float) -> bool:
        """Wait for the answer, for a reason to ask again, or for the time to pass."""
        again = asyncio.ensure_future(self.again.wait())
        try:
            await first_of(again, self.answer, timeout_s=timeout_s)
        finally:
            again.cancel()
        return self.answer.done()


async def first_of(*awaited: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    """Wait for one of these, for `timeout_s` at most; none is cancelled."""
    await asyncio.wait(awaited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

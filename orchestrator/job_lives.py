"""What became of the latest jobs: accepted, sent where, lost, sent again, answered.

Kept in memory by the dispatcher's thread, for some microseconds a job, and read by whoever asks (the request
`job`, `amp4ec story job`). What did not go straight through is kept longer, and has a line in the log as
well, which outlives us; the log of a cluster that loses a node under load stays readable all the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.answers import Context, ItemResult, ShownOf, trace_of
from orchestrator.core import dispatch_events as core
from shared.logs import get_log, utc
from shared.messages.job import StageTime
from shared.messages.life import JobLife, JobStep

log = get_log(__name__)

MOST = 5000
"""Jobs that went straight through or were refused, and as many of the others."""
MOST_STEPS = 100
"""Of one job: a batch has as many as it has items."""
MOST_TOLD = 20
_LINES, _PER_S = 20, 10.0
"""So many lines are logged within so many seconds; the next says how many were left out."""

What = Literal["accepted", "refused", "dispatched", "failed", "lost", "set_aside", "answered"]


@dataclass(slots=True)
class _Step:
    at: float
    what: What
    text: str = ""
    item: int | None = None
    attempt: int | None = None
    pipeline: str | None = None
    generation: int | None = None
    node: str | None = None


@dataclass(slots=True)
class _Life:
    job: str
    request: str
    model: str
    client: str
    items: int
    steps: list[_Step]
    left_out: int = 0
    straight: bool = True
    """Nothing happened to it but what happens to every job."""
    timing: tuple[float, float, tuple[StageTime, ...], tuple[float, ...]] | None = None
    """Latency, flight, the stages' own times and the predicted hops of its one item."""

    def add(self, step: _Step) -> None:
        if len(self.steps) < MOST_STEPS or step.what == "answered":
            self.steps.append(step)
        else:
            self.left_out += 1

    def is_in(self, pipeline: str, generation: int) -> bool:
        return any((s.pipeline, s.generation) == (pipeline, generation) for s in self.steps)


@dataclass(slots=True)
class _Quota:
    """Keeps a flood out of the log."""

    began: float = 0.0
    written: int = 0
    left_out: int = field(default=0)

    def allows(self, now: float) -> bool:
        if now - self.began >= _PER_S:
            self.began, self.written = now, 0
        self.written += 1
        if self.written <= _LINES:
            return True
        self.left_out += 1
        return False

    def take_left_out(self) -> int:
        count, self.left_out = self.left_out, 0
        return count


class JobLives:
    """Told by the dispatcher's thread; `find` may be called by any.

    Args:
        clock: wall time in seconds since 1970.
        most: of the lives that have ended are kept, of each kind.
    """

    def __init__(self, clock: Callable[[], float] = time.time, most: int = MOST) -> None:
        self._clock = clock
        self._open: dict[str, _Life] = {}
        self._straight: deque[_Life] = deque(maxlen=most)
        self._eventful: deque[_Life] = deque(maxlen=most)
        self._quota = _Quota()

    # --- from the dispatcher's thread

    def accepted(self, request: core.RequestArrived) -> None:
        """A job is in work."""
        context = request.context
        assert isinstance(context, Context)
        self._open[request.request_id] = life = _Life(
            context.job, request.request_id, request.model, request.client, len(request.items), []
        )
        life.steps.append(_Step(self._clock(), "accepted"))
        if log.is_debug:
            log.debug("job accepted", job=life.job, request=life.request, model=life.model)

    def refused(self, request_id: str, model: str, context: Context, failure: core.Failure) -> None:
        """A job was not let in."""
        step = _Step(self._clock(), "refused", f"{failure.code}: {failure.message}")
        self._straight.append(_Life(context.job, request_id, model, "", 0, [step]))

    def dispatched(self, action: core.Dispatch) -> None:
        """An item, and its companions, left for a pipeline."""
        life = self._open.get(action.request_id)
        if life is None:
            return  # a sample of our own
        step = _Step(
            self._clock(),
            "dispatched",
            f"with {len(action.companions)} more" if action.companions else "",
            action.item_index,
            action.attempt,
            action.pipeline,
            action.generation,
        )
        if action.attempt > 1:
            life.straight = False
            step.text = self._why_again(life, action.item_index)
            self._log("a job runs again", life, step, reason=step.text)
        elif log.is_debug:
            log.debug(
                "job dispatched",
                job=life.job,
                request=life.request,
                item=action.item_index,
                pipeline=action.pipeline,
                generation=action.generation,
            )
        life.add(step)

    def failed(
        self,
        request_id: str,
        item: int,
        attempt: int,
        failure: core.Failure,
        where: tuple[str, int],
    ) -> None:
        """A stage could not do it."""
        life = self._open.get(request_id)
        if life is not None:
            life.straight = False
            text = f"{failure.code}: {failure.message}"
            life.add(_Step(self._clock(), "failed", text, item, attempt, *where))

    def lost(self, pipeline: str, generation: int, crashed: str | None) -> None:
        """A pipeline is gone, and with it what was in flight there."""
        now = self._clock()
        for life in self._open.values():
            if life.is_in(pipeline, generation):
                life.straight = False
                text = "its pipeline was lost" + (f": {crashed} died" if crashed else "")
                life.add(
                    _Step(now, "lost", text, pipeline=pipeline, generation=generation, node=crashed)
                )

    def set_aside(self, action: core.Poisoned) -> None:
        """Nodes died of it."""
        life = self._open.get(action.request_id)
        if life is not None:
            life.straight = False
            text = f"set aside: {' and '.join(action.nodes)} died of it"
            life.add(_Step(self._clock(), "set_aside", text, action.item_index))

    def answered(self, answer: core.Answer, shown_of: ShownOf) -> None:
        """The answer went out."""
        life = self._open.pop(answer.request_id, None)
        if life is None:
            return
        failure, items = answer.failure, answer.items
        item = items[0] if len(items) == 1 else None
        step = _Step(self._clock(), "answered", f"after {answer.latency_s * 1e3:.0f} ms")
        if item is not None:
            step.attempt, step.pipeline, step.generation = (
                item.attempts,
                item.pipeline,
                item.generation,
            )
        if failure is not None:
            life.straight = False
            step.text += f", with an error: {failure.code}: {failure.message}"
            self._log("a job ended with an error", life, step, code=failure.code)
        elif item is not None and item.cached:
            step.text += ", with the answer to an equal input"
        elif item is not None and isinstance(item.outcome, core.Output):
            result = item.outcome.value
            assert isinstance(result, ItemResult)
            hops_s = shown_of(item).hops_s
            life.timing = item.latency_s, item.flight_s, result.trace, hops_s
        life.add(step)
        if log.is_debug:
            log.debug(
                "job answered", job=life.job, request=life.request, latency_s=answer.latency_s
            )
        (self._straight if life.straight else self._eventful).append(life)

    def _why_again(self, life: _Life, item: int) -> str:
        last = next((s for s in reversed(life.steps) if s.item in (None, item)), None)
        if last is None or last.what not in ("failed", "lost"):
            return "no result came in time"
        return last.text

    def _log(self, event: str, life: _Life, step: _Step, **facts: object) -> None:
        if self._quota.allows(step.at):
            log.info(
                event,
                job=life.job,
                request=life.request,
                model=life.model,
                item=step.item,
                attempt=step.attempt,
                pipeline=step.pipeline,
                generation=step.generation,
                **facts,
                more_before=self._quota.take_left_out(),
            )

    # --- from any thread

    def find(self, job: str) -> list[JobLife]:
        """The lives of the jobs of that name, or of the one that we call so; the latest last."""
        kept = [*list(self._straight), *list(self._eventful), *list(self._open.values())]
        found = [life for life in kept if job in (life.job, life.request)]
        found.sort(key=lambda life: life.steps[0].at)
        return [_told(life) for life in found[-MOST_TOLD:]]


def _told(life: _Life) -> JobLife:
    return JobLife(
        job=life.job,
        request=life.request,
        model=life.model,
        client=life.client,
        items=life.items,
        steps=[
            JobStep(
                at=utc(step.at),
                what=step.what,
                text=step.text,
                item=step.item,
                attempt=step.attempt,
                pipeline=step.pipeline,
                generation=step.generation,
                node=step.node,
            )
            for step in list(life.steps)
        ],
        left_out=life.left_out,
        trace=[] if life.timing is None else trace_of(*life.timing),
    )

"""What the dispatcher's core wants done: items sent to the first stages, answers to clients.

An action that fails by our own fault is logged and counted, and whoever waits for its answer is told.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import assert_never

from orchestrator.answers import (
    Context,
    Shown,
    has_tensors,
    shorten,
    write_answer,
    write_error,
)
from orchestrator.core import dispatch_events as core
from orchestrator.core.dispatch import Dispatcher
from orchestrator.dispatch_notes import ModelSpec, Note, PipelineSpec, Tally
from orchestrator.inputs import Input
from orchestrator.job_lives import JobLives
from orchestrator.job_requests import Envelope
from orchestrator.job_store import JobStore, SetAside, StoredAnswer
from orchestrator.replies import Replies
from orchestrator.rounding_guard import RoundingGuard, Sample
from shared.bus import DataBus, Message, Properties
from shared.codec import encode_msgpack
from shared.errors import BrokerError, BrokerUnreachableError, ErrorCode
from shared.job_options import DEFAULT_PRIORITY, PRIORITIES
from shared.logs import get_log
from shared.messages.job import Activation, CompanionInput
from shared.pipeline_mac import PipelineKeys
from shared.topics import Topics

log = get_log(__name__)

_MOST_PIPELINES = 1024
_PRIORITIES = {
    priority: Properties(user=(("priority", str(priority)),))
    for priority in PRIORITIES
    if priority != DEFAULT_PRIORITY
}
"""What an activation is sent with, so that a stage's queue goes by it too."""


class Known:
    """The models that are served, and the pipelines that ran or run them.

    A pipeline stays known when it is drained: an item may end with the result of an earlier attempt, and a
    repeated job gets its first answer again. The oldest go.
    """

    def __init__(self) -> None:
        self.models: dict[str, ModelSpec] = {}
        self.pipelines: OrderedDict[tuple[str, int], PipelineSpec] = OrderedDict()

    def add(self, spec: PipelineSpec) -> None:
        """A pipeline became active."""
        key = (spec.pipeline, spec.generation)
        self.pipelines[key] = spec
        self.pipelines.move_to_end(key)
        while len(self.pipelines) > _MOST_PIPELINES:
            self.pipelines.popitem(last=False)

    def shown(self, model: str, item: core.EndedItem) -> Shown:
        """What an item's answer shows: of the pipeline that ran it, since the model may be another now."""
        ran = self.pipelines.get((item.pipeline or "", item.generation or 0))
        if ran is not None:
            return ran.shown
        spec = self.models.get(model)
        return Shown(None, "") if spec is None else spec.shown


class Performer:
    """Performs actions in the dispatcher's thread."""

    def __init__(
        self,
        *,
        machine: Dispatcher,
        bus: DataBus,
        topics: Topics,
        replies: Replies,
        known: Known,
        tally: Tally,
        notify: Callable[[Note], None],
        store: JobStore | None,
        keys: PipelineKeys | None,
        lives: JobLives,
    ) -> None:
        self._core = machine
        self._bus = bus
        self._topics = topics
        self._replies = replies
        self._known = known
        self._tally = tally
        self._notify = notify
        self._store = store
        self._keys = keys
        self._lives = lives
        self._guard = RoundingGuard()

    def perform(self, actions: list[core.Action]) -> None:
        """Perform actions in order, and what follows from them."""
        todo = deque(actions)
        while todo:
            action = todo.popleft()
            try:
                todo.extend(self._do(action))
            except Exception as error:
                self._tally.dropped["internal_error"] += 1
                log.exception("an action failed", action=type(action).__name__)
                self._make_up_for(action, error)

    def _do(self, action: core.Action) -> list[core.Action]:
        """Perform one action; what follows from it at once."""
        match action:
            case core.Dispatch():
                return self._dispatch(action)
            case core.Answer(context=Sample() as sample):
                measured = self._guard.compared(action, sample)
                if measured is not None:
                    self._notify(measured)
            case core.Reject(context=Sample()):
                pass  # no room for it
            case core.Answer():
                self._lives.answered(action, partial(self._known.shown, action.model))
                payload = self._answer(action, action.context, action.handles)
                self._tally.answer(action)
                self._answered(action, payload)
                again = self._guard.answered(time.monotonic(), action)
                if not (isinstance(action.context, Context) and action.context.msgpack):
                    shorten(action)
                return [] if again is None else self._core.step(again)
            case core.AnswerAgain(first=first, context=context):
                assert isinstance(context, Context)
                # The first answer again, and in its first form where that had no tensors.
                context = replace(context, msgpack=context.msgpack and has_tensors(first))
                self._answer(first, context, (action.handle,))
            case core.Reject():
                context = action.context
                assert isinstance(context, Context)
                self._lives.refused(action.request_id, action.model, context, action.failure)
                known = action.model in self._known.models
                self._tally.refuse(action.model if known else "", action.failure.code)
                payload = write_error(action.model, context, action.failure)
                self._replies.send(action.reply_to, payload, context, (action.handle,))
            case core.Acknowledge():
                self._replies.acknowledge(action.handle)
            case core.Poisoned():
                self._lives.set_aside(action)
                self._set_aside(action)
                self._notify(action)
            case core.PipelineDrained() | core.Decided():
                self._notify(action)
            case _:
                assert_never(action)
        return []

    def _set_aside(self, action: core.Poisoned) -> None:
        """Keep the request for who wants to know what kills nodes."""
        message = action.handle
        if self._store is not None and isinstance(message, Message):
            self._store.set_aside(
                SetAside(
                    request_id=action.request_id,
                    item_index=action.item_index,
                    model=action.model,
                    job=action.job,
                    nodes=action.nodes,
                    message=message,
                )
            )

    def _make_up_for(self, action: core.Action, error: Exception) -> None:
        """An action failed by our own fault: whoever waits for an answer still gets one."""
        match action:
            case core.Answer(context=Sample()):
                return  # nobody waits for it
            case core.Answer(model=model, reply_to=reply, context=context, handles=handles):
                pass
            case core.AnswerAgain(first=first, context=context, handle=handle):
                model, reply, handles = first.model, first.reply_to, (handle,)
            case _:
                return  # an item that was not sent is overdue soon
        if self._store is not None and isinstance(action, core.Answer):
            self._store.answered(action.request_id, None)
        assert isinstance(context, Context)
        try:
            payload = write_error(model, context, internal(error))
            self._replies.send(reply, payload, context, handles)
        except Exception:
            self._tally.dropped["internal_error"] += 1
            log.exception("the answer that says so failed as well", topic=reply)
            self._replies.acknowledge(*handles)

    def _dispatch(self, action: core.Dispatch) -> list[core.Action]:
        item = action.payload
        assert isinstance(item, Input)
        self._lives.dispatched(action)
        spec = self._known.pipelines.get((action.pipeline, action.generation))
        if spec is not None and spec.max_error is not None:
            self._guard.sent(time.monotonic(), action, item, spec)
        activation = Activation(
            job=action.request_id,
            item=action.item_index,
            attempt=action.attempt,
            tensors=item.tensors or {},
            body=item.body,
            content_type=item.content_type,
            exact=item.exact,
            watched=action.watched,
            with_inputs=[_companion(other) for other in action.companions],
        )
        topic = self._topics.topic(
            "activation", pipeline=action.pipeline, generation=action.generation, stage=0
        )
        payload = encode_msgpack(activation, action.size_bytes + 512)
        properties = _PRIORITIES.get(action.priority)
        if self._keys is not None:
            mac = self._keys.mac(action.pipeline, action.generation)
            properties = mac.seal(topic, payload, properties)
        try:
            self._bus.publish(topic, payload, 1, properties=properties)
        except BrokerUnreachableError as error:
            # Sent again when it is overdue.
            if self._tally.drop("send_queue_full", f"an item for {topic}"):
                log.warning("an item could not be sent", topic=topic, error=error)
        except BrokerError as error:
            # The broker takes none of this size, however often it is tried.
            failure = core.Failure(
                code=ErrorCode.TOO_LARGE,
                message=error.message,
                expected=error.expected,
                got=error.got,
            )
            numbers = [(action.item_index, action.attempt)]
            numbers += [(other.item_index, other.attempt) for other in action.companions]
            # Too large together says nothing of each: those run again, alone.
            failure = replace(failure, retryable=len(numbers) > 1)
            followed: list[core.Action] = []
            for item_index, attempt in numbers:
                followed += self._core.step(
                    core.ResultArrived(
                        now=time.monotonic(),
                        request_id=action.request_id,
                        item_index=item_index,
                        attempt=attempt,
                        pipeline=action.pipeline,
                        generation=action.generation,
                        outcome=failure,
                    )
                )
            return followed
        return []

    def _answered(self, answer: core.Answer, payload: bytes) -> None:
        """The job is done: it must not run again, and who asks again gets the same answer."""
        if self._store is None:
            return
        context = answer.context
        assert isinstance(context, Context)
        again = None
        if answer.job is not None and answer.is_final:
            again = StoredAnswer((answer.reply_to, answer.job), payload, context.msgpack)
        self._store.answered(answer.request_id, again)

    def _answer(self, answer: core.Answer, context: object, handles: tuple[object, ...]) -> bytes:
        assert isinstance(context, Context)
        try:
            payload = write_answer(answer, context, partial(self._known.shown, answer.model))
            self._replies.send(answer.reply_to, payload, context, handles)
        except BrokerError as error:
            failure = core.Failure(
                code=ErrorCode.TOO_LARGE,
                message=f"the answer cannot be sent: {error.message}",
                expected=error.expected,
                got=error.got,
            )
            payload = write_error(answer.model, context, failure)
            self._replies.send(answer.reply_to, payload, context, handles)
        return payload

    def forget(self, model: str) -> None:
        """A model is not served any more."""
        self._guard.forget(model)

    def refuse(
        self, request_id: str, envelope: Envelope, failure: core.Failure, message: Message
    ) -> None:
        """Answer a request that the core never saw, and acknowledge it."""
        self._lives.refused(request_id, envelope.model, envelope.context, failure)
        payload = write_error(envelope.model, envelope.context, failure)
        self._replies.send(envelope.reply_to, payload, envelope.context, (message,))


def _companion(other: core.Companion) -> CompanionInput:
    item = other.payload
    assert isinstance(item, Input)
    return CompanionInput(
        item=other.item_index,
        attempt=other.attempt,
        tensors=item.tensors or {},
        body=item.body,
        content_type=item.content_type,
    )


def internal(error: Exception) -> core.Failure:
    """The failure that a client is told when the fault is ours."""
    return core.Failure(
        code=ErrorCode.INTERNAL, message=f"the orchestrator failed at this job: {error!r}"
    )

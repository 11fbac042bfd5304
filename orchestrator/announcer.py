"""What the orchestrator says to people and operators: lines on `event`, responses to requests."""

from __future__ import annotations

from collections import OrderedDict, deque
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from orchestrator.core.cluster_events import Tell
from orchestrator.core.dispatch_events import Decided, Poisoned
from orchestrator.decisions import decision_row, describe
from orchestrator.outbox import Outbox
from shared.bus import Properties
from shared.codec import to_builtins
from shared.errors import Amp4ecError, ErrorCode, JobError
from shared.logs import get_log
from shared.messages.job import ErrorBody
from shared.messages.operation import EventsRequest, Happening, Response

log = get_log(__name__)

_MOST_OWN = 1000
"""Requests with a response topic of their own that have not ended; the oldest are answered on ours."""
MOST_KEPT = 1000
"""Of the events, for whoever asks what happened."""
_WARNINGS = frozenset((
    "assignment_refused", "internal_error", "job_store_failed", "message_dropped", "message_forged",
    "model_lost", "rate_limited",
))  # fmt: skip
"""Events that are in the log whatever happens in a cluster that is well is left out of it."""


class Announcer:
    """Puts words into the outbox, and into the log."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._own: OrderedDict[str, tuple[str, bytes | None]] = OrderedDict()
        self._kept: deque[Happening] = deque(maxlen=MOST_KEPT)

    def latest(self, wish: EventsRequest) -> list[Happening]:
        """The latest events of a node or model, or of all; the latest last."""
        found = (
            each
            for each in reversed(self._kept)
            if wish.node in (None, each.node) and wish.model in (None, each.model)
        )
        return list(islice(found, wish.most))[::-1]

    def _tell(self, happening: Happening) -> None:
        if happening.level == "info":
            self._kept.append(happening)
        self._outbox.publish("event", happening)

    def happened(self, tell: Tell) -> None:
        """One line on `event`."""
        write = log.warning if tell.event in _WARNINGS else log.info
        write(
            tell.text,
            kind=tell.event,
            **_given(node=tell.node, model=tell.model, generation=tell.generation),
        )
        happening = Happening(
            event=tell.event,
            text=tell.text,
            at=_now(),
            node=tell.node,
            model=tell.model,
            generation=tell.generation,
            reason=tell.reason,
        )
        self._tell(happening)

    def decided(self, decided: Decided) -> None:
        """Where an item went and why, at debug level."""
        happening = Happening(
            event="item_dispatched",
            level="debug",
            text=describe(decided),
            at=_now(),
            model=decided.model,
            data={
                "job": decided.request_id,
                "item": decided.item_index,
                "decision": to_builtins(decision_row(decided.decision)),
            },
        )
        self._tell(happening)

    def poisoned(self, job: Poisoned, kept_in: Path) -> None:
        """A job of which nodes died, and where its input is kept."""
        happening = Happening(
            event="job_poisoned",
            text=f"a job of {job.model} was set aside: {' and '.join(job.nodes)} died of it; its input is "
            f"kept in the table set_aside of {kept_in}, request {job.request_id}",
            at=_now(),
            node=job.nodes[-1],
            model=job.model,
            data={"request": job.request_id, "item": job.item_index, "nodes": list(job.nodes)},
        )
        log.error(
            happening.text,
            kind=happening.event,
            node=happening.node,
            model=happening.model,
            request=job.request_id,
            **_given(job=_job_text(job.job)),
        )
        self._tell(happening)

    def asked(self, transaction: str, properties: Properties) -> None:
        """A request came; one that names a topic of its own for the response gets one there, and no progress.

        Its transaction is empty where it cannot be read.
        """
        topic = properties.response_topic
        if topic is not None and self._outbox.may_respond_to(topic):
            self._own[transaction] = topic, properties.correlation_data
            self._own.move_to_end(transaction)
            if len(self._own) > _MOST_OWN:
                self._own.popitem(last=False)

    def _respond(self, verb: str, response: Response) -> None:
        """The end of a transaction."""
        topic, correlation = self._own.pop(response.transaction, (None, None))
        if topic is None:
            self._outbox.publish("response", response, verb=verb)
        else:
            self._outbox.respond(topic, response, correlation)

    def progress(self, verb: str, transaction: str, text: str) -> None:
        """A line for whoever waits for a transaction."""
        if transaction in self._own:
            return
        response = Response(transaction=transaction, status="progress", data={"text": text})
        self._outbox.publish("response", response, verb=verb)

    def done(self, verb: str, transaction: str, data: dict[str, object]) -> None:
        """A transaction ended well."""
        self._respond(verb, Response(transaction=transaction, status="ok", data=data))

    def failed(self, verb: str, transaction: str, error: ErrorBody) -> None:
        """A transaction ended otherwise."""
        self._respond(verb, Response(transaction=transaction, status="error", error=error))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _given(**facts: object) -> dict[str, object]:
    return {name: fact for name, fact in facts.items() if fact is not None}


def _job_text(job: str | bytes | None) -> str | None:
    return job.decode(errors="replace") if isinstance(job, bytes) else job


def error_body(error: Exception) -> ErrorBody:
    """What an operator is told of an error: of theirs what was wrong, of ours that it was ours."""
    if isinstance(error, Amp4ecError):
        code = error.code if isinstance(error, JobError) else ErrorCode.BAD_INPUT
        return ErrorBody(code=code, message=error.message, expected=error.expected, got=error.got)
    return ErrorBody(code=ErrorCode.INTERNAL, message=f"the orchestrator failed: {error!r}")

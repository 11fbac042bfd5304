"""Job requests as they come from the wire: who is to be answered, how, by when, and what with.

A request without a place for its answer is `Stray`: nobody can be told. One that cannot be used, but says
where to answer, is `Refused`. All others become the dispatcher's `RequestArrived`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from orchestrator.answers import MSGPACK, Context
from orchestrator.core.dispatch_events import Failure, InputItem, RequestArrived
from orchestrator.input_batch import split_batch
from orchestrator.input_key import input_key
from orchestrator.inputs import Input, parse_input
from shared.bus import Message, Properties
from shared.errors import ErrorCode, JobError
from shared.job_options import DEFAULT_PRIORITY, PRIORITIES, Policy, parse_priority
from shared.tensor import Shape
from shared.topics import Topics

EMPTY: Mapping[str, Shape] = {}
MAX_KEY_BYTES = 1024
"""Of a job's id or correlation data: ten thousand of them are remembered for ten minutes."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """Where a request came from and how it is to be answered; `key` is the client's name for the job.

    `client` is whose share of the queue it takes: the level below `result/` of where the answer goes. On a
    closed broker that is the sender's login.
    """

    model: str
    reply_to: str
    key: str | bytes | None
    client: str
    context: Context


@dataclass(frozen=True, slots=True)
class Stray:
    """A request that nobody can be told about. `why` is a counter's name."""

    why: str
    text: str


def open_envelope(
    topics: Topics, message: Message, name: str, levels: dict[str, str], request_id: str
) -> Envelope | Stray:
    """Read all but the payload. `name` is the topic's row of the table: `infer` or `infer_311`."""
    properties = message.properties
    if message.retain:
        # It would come again with every connection, for ever.
        return Stray("retained_job", f"{message.topic}; publish jobs without the retain flag")
    key: str | bytes | None
    if name == "infer_311":
        client, key = levels["client"], levels["job"]
        reply = topics.topic("result", client=client, job=key)
    else:
        given = properties.response_topic
        if given is None:
            return Stray("no_response_topic", f"a job on {message.topic}")
        if not topics.may_answer_to(given):
            return Stray("forbidden_response_topic", f"{given!r} of a job on {message.topic}")
        reply, client = given, topics.client_of(given)
        key = properties.user_value("job") or properties.correlation_data
    context = Context(
        job=_readable(key) or request_id,
        correlation=properties.correlation_data,
        msgpack=properties.user_value("accept") == MSGPACK,
        batch=False,
        version_5=name == "infer",
    )
    return Envelope(levels["model"], reply, key, client, context)


def read_request(
    now: float,
    message: Message,
    envelope: Envelope,
    request_id: str,
    *,
    input_names: tuple[str, ...] | None,
    max_item_bytes: int,
    delivery: Hashable | None,
    cache: str | None = None,
    input_shapes: Mapping[str, Shape] = EMPTY,
) -> RequestArrived | Failure:
    """The request, its payload told apart; or why it is refused.

    Args:
        now: the dispatcher's clock, in seconds.
        message: as it came.
        envelope: of the message.
        request_id: unique for ever.
        input_names: of the model, in order; None when it is not served.
        max_item_bytes: a larger message is one input that the core refuses for its size.
        delivery: see `RequestArrived`.
        cache: the identity under which answers of the model are kept; None where none are.
        input_shapes: of the model, by name: tensors of several items are told by them.
    """
    context = envelope.context
    size_bytes = len(message.payload)
    try:
        for text in (envelope.key, context.correlation):
            _check_key(text)
        deadline = _deadline(now, message.properties)
        priority = _priority(message.properties)
        policy = _policy(message.properties)
        # What will be refused anyway, say for its size, need not be read.
        if input_names is None or size_bytes > max_item_bytes:
            inputs: tuple[Input, ...] = (Input(size_bytes=size_bytes),)
        else:
            parsed = parse_input(message.payload, message.properties.content_type, input_names)
            parsed = split_batch(parsed, input_shapes)
            inputs = parsed.items
            if parsed.batch:
                context = replace(context, batch=True)
    except JobError as error:
        return Failure(
            code=error.code, message=error.message, expected=error.expected, got=error.got
        )
    return RequestArrived(
        now=now,
        request_id=request_id,
        model=envelope.model,
        reply_to=envelope.reply_to,
        items=tuple(
            InputItem(
                item,
                item.size_bytes,
                None if cache is None else input_key(cache, item, msgpack=context.msgpack),
            )
            for item in inputs
        ),
        handle=message,
        job=envelope.key,
        deadline=deadline,
        client=envelope.client,
        priority=priority,
        latest=policy is Policy.LATEST,
        delivery=delivery,
        context=context,
    )


def _check_key(key: str | bytes | None) -> None:
    size = 0 if key is None else len(key if isinstance(key, bytes) else key.encode())
    if size > MAX_KEY_BYTES:
        raise JobError(
            ErrorCode.BAD_INPUT,
            "the job's id or correlation data is too long",
            expected=f"at most {MAX_KEY_BYTES} bytes",
            got=f"{size} bytes",
        )


def _readable(key: str | bytes | None) -> str | None:
    """A job's name as text: correlation data is often text, and hexadecimal where it is not."""
    if isinstance(key, bytes):
        text = key[:MAX_KEY_BYTES].decode("utf-8", "replace")
        return text if text.isprintable() and "\ufffd" not in text else key[:64].hex()
    return None if key is None else key[:MAX_KEY_BYTES]


def _priority(properties: Properties) -> int:
    """How important the client says that the job is: the user property `priority`."""
    given = properties.user_value("priority")
    if given is None:
        return DEFAULT_PRIORITY
    priority = parse_priority(given)
    if priority is not None:
        return priority
    raise JobError(
        ErrorCode.BAD_INPUT,
        "the user property priority cannot be used",
        expected=f"a whole number from {PRIORITIES[0]} to {PRIORITIES[-1]}; higher goes first",
        got=repr(given[:40]),
    )


def _policy(properties: Properties) -> Policy:
    """What a newer job of the client does to this one: the user property `policy`."""
    given = properties.user_value("policy")
    if given is None:
        return Policy.LOSSLESS
    try:
        return Policy(given)
    except ValueError:
        raise JobError(
            ErrorCode.BAD_INPUT,
            "the user property policy cannot be used",
            expected=" or ".join(Policy),
            got=repr(given[:40]),
        ) from None


def _deadline(now: float, properties: Properties) -> float | None:
    """When the client stops waiting: the earlier of the user property `deadline_ms` and the message's expiry.

    The broker takes the time that the message waited for us off its expiry, and not off `deadline_ms`.
    """
    given = properties.user_value("deadline_ms")
    expires = None if properties.expiry_s is None else now + properties.expiry_s
    if given is None:
        return expires
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = -1.0
    if not 0 < milliseconds < 1e9:
        raise JobError(
            ErrorCode.BAD_INPUT,
            "the user property deadline_ms cannot be used",
            expected="milliseconds, above 0",
            got=repr(given[:40]),
        )
    deadline = now + milliseconds / 1000
    return deadline if expires is None else min(deadline, expires)

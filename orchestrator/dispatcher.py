"""The thread that jobs pass through: one MQTT connection, one dispatch state machine.

It decides nothing: messages become events of `core.dispatch`, actions become publishes. It has a thread and
a connection of its own because a hop through the event loop costs twice the CPU (FACTS.md), and so that
planning never delays an answer. The control plane talks to it through `tell`, it talks back through
`notify`, which is called in this thread.

A request is acknowledged to the broker on the same connection right after its answer, never before: what a
killed orchestrator had not answered is delivered again to its successor.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from orchestrator.answers import (
    MSGPACK,
    Context,
    ItemResult,
    Shown,
    write_answer,
    write_error,
)
from orchestrator.core import dispatch_events as core
from orchestrator.core.dispatch import Dispatcher
from orchestrator.core.dispatch_settings import DispatchSettings
from orchestrator.core.dispatch_stats import Snapshot
from orchestrator.inputs import Input, parse_input
from shared.bus import DataBus, Message, Properties
from shared.codec import decode_msgpack, encode_msgpack
from shared.errors import BrokerUnreachableError, ErrorCode, JobError, ProtocolError
from shared.messages.job import Activation, StageResult
from shared.topics import Topics

log = logging.getLogger(__name__)

REPORT_S = 1.0
_LATENCIES = 4096


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What requests of a model are read by and its answers written by."""

    model: str
    input_names: tuple[str, ...]
    shown: Shown


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """A pipeline that becomes active; `hops_s` are its num_stages + 1 predicted hop times."""

    spec: ModelSpec
    pipeline: str
    generation: int
    num_stages: int
    throughput_per_s: float
    latency_s: float
    hops_s: list[float]


Command = ModelSpec | PipelineSpec | core.ModelStopped | core.PipelineDraining | core.PipelineLost


@dataclass(slots=True)
class StageSum:
    """Sums over the items of one stage since the last report."""

    items: int = 0
    cpu_s: float = 0.0
    compute_s: float = 0.0


StageKey = tuple[str, str, int, int, str]
"""Model, pipeline, generation, stage, node."""


@dataclass(frozen=True, slots=True)
class Report:
    """Once a second: what happened since the last one, and how things stand."""

    stages: dict[StageKey, StageSum]
    latencies_s: dict[str, list[float]]
    """Per model, of the requests answered well since the last report."""
    dropped: dict[str, int]
    """Messages that nobody could be told about, by reason, since the start."""
    snapshot: Snapshot
    interval_s: float
    cpu_s: float
    """CPU seconds of this thread since it started."""


Note = Report | core.PipelineDrained


@dataclass(slots=True)
class _Known:
    spec: ModelSpec
    hops: dict[int, list[float]] = field(default_factory=dict)


class DispatchThread(threading.Thread):
    """See the module. `start` it, `tell` it, and in the end `stop` it."""

    def __init__(
        self,
        bus: DataBus,
        topics: Topics,
        notify: Callable[[Note], None],
        settings: DispatchSettings | None = None,
    ) -> None:
        super().__init__(name="dispatcher", daemon=True)
        self.error: BaseException | None = None
        self._bus = bus
        self._topics = topics
        self._notify = notify
        self._settings = settings or DispatchSettings()
        self._core = Dispatcher(self._settings)
        self._commands: deque[Command] = deque()
        self._stopping = threading.Event()
        self._models: dict[str, _Known] = {}
        self._pipelines: dict[tuple[str, int], ModelSpec] = {}
        self._stages: dict[StageKey, StageSum] = {}
        self._latencies: dict[str, list[float]] = {}
        self._dropped: Counter[str] = Counter()
        self._epoch = 0
        self._sessions = 0

    # --- from other threads

    def tell(self, command: Command) -> None:
        """Hand over what the control plane decided."""
        self._commands.append(command)
        self._bus.wake()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread. The broker keeps what comes meanwhile in our session."""
        self._stopping.set()
        self._bus.wake()
        self.join(timeout_s)

    # --- in the thread

    def run(self) -> None:
        """Until `stop`."""
        try:
            self._loop()
        except BaseException as error:
            self.error = error
            log.exception("the dispatcher died")
            raise

    def _loop(self) -> None:
        for name in ("infer", "infer_311", "stage_result"):
            self._bus.subscribe(self._topics.pattern(name), 1)
        self._bus.connect()
        reported = time.monotonic()
        while not self._stopping.is_set():
            now = time.monotonic()
            due = min(self._core.next_wakeup() or now + REPORT_S, reported + REPORT_S)
            self._bus.poll(max(0.0, due - now))
            self._notice_reconnection()
            while self._commands:
                self._command(self._commands.popleft())
            while (message := self._bus.receive()) is not None:
                self._message(message)
            now = time.monotonic()
            wakeup = self._core.next_wakeup()
            if wakeup is not None and wakeup <= now:
                self._perform(self._core.step(core.Tick(now)))
            if now - reported >= REPORT_S:
                self._report(now - reported)
                reported = now
        self._bus.flush(1.0)
        self._bus.close()

    def _notice_reconnection(self) -> None:
        if self._bus.sessions == self._sessions:
            return
        first, self._sessions = self._sessions == 0, self._bus.sessions
        if not self._bus.session_present:
            self._epoch += 1  # packet ids begin anew: an old one names another delivery
        if not first:
            self._perform(self._core.step(core.BusReconnected(time.monotonic())))

    def _command(self, command: Command) -> None:
        now = time.monotonic()
        match command:
            case ModelSpec():
                self._models.setdefault(command.model, _Known(command)).spec = command
                self._perform(self._core.step(core.ModelServed(now, command.model)))
            case PipelineSpec():
                known = self._models.setdefault(command.spec.model, _Known(command.spec))
                known.hops[command.num_stages] = command.hops_s
                self._pipelines[command.pipeline, command.generation] = command.spec
                event = core.PipelineActivated(
                    now=now,
                    model=command.spec.model,
                    pipeline=command.pipeline,
                    generation=command.generation,
                    num_stages=command.num_stages,
                    throughput_per_s=command.throughput_per_s,
                    latency_s=command.latency_s,
                )
                self._perform(self._core.step(event))
            case core.ModelStopped() | core.PipelineDraining() | core.PipelineLost():
                self._perform(self._core.step(command))
            case _:
                assert_never(command)

    def _message(self, message: Message) -> None:
        try:
            name, levels = self._topics.parse(message.topic)
        except ProtocolError:
            self._drop(message, "stray_topic", message.topic)
            return
        match name:
            case "infer":
                self._request(message, levels["model"])
            case "infer_311":
                reply = self._topics.topic("result", client=levels["client"], job=levels["job"])
                self._request(message, levels["model"], reply, levels["job"])
            case "stage_result":
                self._result(message, levels["pipeline"], levels["generation"])
                self._bus.acknowledge(message)
            case _:
                self._drop(message, "stray_topic", message.topic)

    def _drop(self, message: Message, why: str, text: str) -> None:
        """Nobody can be told: count it, log it, and do not have it delivered again."""
        self._dropped[why] += 1
        log.warning("dropped a message (%s): %s", why, text[:300])
        self._bus.acknowledge(message)

    # --- requests

    def _request(
        self, message: Message, model: str, reply: str | None = None, job: str | None = None
    ) -> None:
        now = time.monotonic()
        properties = message.properties
        version_5 = reply is None
        if reply is None:
            reply = properties.response_topic
            if reply is None:
                self._drop(message, "no_response_topic", f"job on {message.topic}")
                return
            if not self._topics.may_answer_to(reply):
                self._drop(message, "forbidden_response_topic", reply)
                return
        correlation = properties.correlation_data
        key: str | bytes | None = job or properties.user_value("job") or correlation
        request_id = secrets.token_hex(8)
        context = Context(
            job=_readable(key) or request_id,
            correlation=correlation,
            msgpack=properties.user_value("accept") == MSGPACK,
            batch=False,
            version_5=version_5,
        )
        known = self._models.get(model)
        names = known.spec.input_names if known is not None else ("",)
        try:
            deadline = _deadline(now, properties)
            # A request that will be refused anyway, say for its size, need not be read.
            if known is None or len(message.payload) > self._settings.max_item_bytes:
                inputs: tuple[Input, ...] = (Input(size_bytes=len(message.payload)),)
            else:
                parsed = parse_input(message.payload, properties.content_type, names)
                inputs = parsed.items
                if parsed.batch:
                    context = Context(
                        context.job, correlation, context.msgpack, batch=True, version_5=version_5
                    )
        except JobError as error:
            self._dropped["bad_input"] += 1
            failure = core.Failure(
                code=error.code, message=error.message, expected=error.expected, got=error.got
            )
            self._publish(reply, write_error(model, context, failure), context)
            self._bus.acknowledge(message)
            return
        handle = message.handle
        event = core.RequestArrived(
            now=now,
            request_id=request_id,
            model=model,
            reply_to=reply,
            items=tuple(core.InputItem(item, item.size_bytes) for item in inputs),
            handle=message,
            job=key,
            deadline=deadline,
            client=reply.rsplit("/", 1)[0],
            delivery=None if handle is None else (self._epoch, handle.packet_id),
            context=context,
        )
        self._perform(self._core.step(event))

    # --- results

    def _result(self, message: Message, pipeline: str, generation: str) -> None:
        try:
            result = decode_msgpack(message.payload, StageResult)
            number = int(generation)
        except (ProtocolError, ValueError) as error:
            self._dropped["bad_result"] += 1
            log.warning("dropped a stage's result on %s: %s", message.topic, error)
            return
        outcome: core.Outcome
        if result.failure is not None:
            failure = result.failure
            outcome = core.Failure(
                code=failure.code,
                message=failure.message,
                retryable=failure.retryable,
                expected=failure.expected,
                got=failure.got,
            )
        else:
            size = sum(tensor.data.nbytes for tensor in result.tensors.values())
            outcome = core.Output(ItemResult(result.tensors, tuple(result.trace)), size)
            self._measure(pipeline, number, result)
        self._perform(
            self._core.step(
                core.ResultArrived(
                    now=time.monotonic(),
                    request_id=result.job,
                    item_index=result.item,
                    attempt=result.attempt,
                    pipeline=pipeline,
                    generation=number,
                    outcome=outcome,
                )
            )
        )

    def _measure(self, pipeline: str, generation: int, result: StageResult) -> None:
        spec = self._pipelines.get((pipeline, generation))
        if spec is None:
            return
        for stage in result.trace:
            key = (spec.model, pipeline, generation, stage.stage, stage.node)
            total = self._stages.get(key)
            if total is None:
                total = self._stages[key] = StageSum()
            total.items += 1
            total.cpu_s += stage.cpu_s
            total.compute_s += stage.compute_s

    # --- actions

    def _perform(self, actions: list[core.Action]) -> None:
        for action in actions:
            match action:
                case core.Dispatch():
                    self._dispatch(action)
                case core.Answer():
                    self._answer(action, action.context)
                    for handle in action.handles:
                        self._acknowledge(handle)
                    if action.failure is None:
                        latencies = self._latencies.setdefault(action.model, [])
                        if len(latencies) < _LATENCIES:
                            latencies.append(action.latency_s)
                case core.AnswerAgain():
                    self._answer(action.first, action.context)
                    self._acknowledge(action.handle)
                case core.Reject():
                    context = action.context
                    assert isinstance(context, Context)
                    payload = write_error(action.model, context, action.failure)
                    self._publish(action.reply_to, payload, context)
                    self._acknowledge(action.handle)
                case core.Acknowledge():
                    self._acknowledge(action.handle)
                case core.PipelineDrained():
                    self._pipelines.pop((action.pipeline, action.generation), None)
                    self._notify(action)
                case _:
                    assert_never(action)

    def _dispatch(self, action: core.Dispatch) -> None:
        item = action.payload
        assert isinstance(item, Input)
        activation = Activation(
            job=action.request_id,
            item=action.item_index,
            attempt=action.attempt,
            tensors=item.tensors or {},
            body=item.body,
            content_type=item.content_type,
        )
        topic = self._topics.topic(
            "activation", pipeline=action.pipeline, generation=action.generation, stage=0
        )
        self._send(topic, encode_msgpack(activation, action.size_bytes + 512), None)

    def _answer(self, answer: core.Answer, context: object) -> None:
        assert isinstance(context, Context)
        known = self._models.get(answer.model)
        # The model may have been stopped while its last jobs finished.
        shown = known.spec.shown if known is not None else Shown(None, "")
        hops = known.hops if known is not None else {}
        self._publish(answer.reply_to, write_answer(answer, context, shown, hops), context)

    def _publish(self, reply: str, payload: bytes, context: Context) -> None:
        properties = (
            Properties(
                correlation_data=context.correlation,
                content_type=MSGPACK if context.msgpack else "application/json",
                user=(("job", context.job),),
            )
            if context.version_5
            else None
        )
        self._send(reply, payload, properties)

    def _send(self, topic: str, payload: bytes | bytearray, properties: Properties | None) -> None:
        try:
            self._bus.publish(topic, payload, 1, properties=properties)
        except BrokerUnreachableError as error:
            # A dispatched item is sent again when it is overdue; a client asks again.
            self._dropped["send_queue_full"] += 1
            log.warning("could not send on %s: %s", topic, error)

    def _acknowledge(self, handle: object) -> None:
        assert isinstance(handle, Message)
        self._bus.acknowledge(handle)

    def _report(self, interval_s: float) -> None:
        stages, self._stages = self._stages, {}
        latencies, self._latencies = self._latencies, {}
        self._notify(
            Report(
                stages,
                latencies,
                dict(self._dropped),
                self._core.snapshot(),
                interval_s,
                time.thread_time(),
            )
        )


def _readable(key: str | bytes | None) -> str | None:
    """A job's name as text: correlation data is often text, and hexadecimal where it is not."""
    if isinstance(key, bytes):
        text = key.decode("utf-8", "replace")
        return text if text.isprintable() and "\ufffd" not in text else key.hex()
    return key


def _deadline(now: float, properties: Properties) -> float | None:
    """When the client stops waiting: the user property `deadline_ms`, or the message's expiry."""
    given = properties.user_value("deadline_ms")
    if given is None:
        return None if properties.expiry_s is None else now + properties.expiry_s
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = -1.0
    if not 0 < milliseconds < 1e9:
        raise JobError(
            ErrorCode.BAD_INPUT,
            "the user property deadline_ms cannot be used",
            expected="milliseconds, above 0",
            got=repr(given),
        )
    return now + milliseconds / 1000

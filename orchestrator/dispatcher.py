"""The thread that jobs pass through: one MQTT connection, one dispatch state machine.

It decides nothing: messages become events of `core.dispatch`, actions become publishes. It has a thread and
a connection of its own because a hop through the event loop costs twice the CPU (FACTS.md), and so that
planning never delays an answer. The control plane talks to it through `tell`, it talks back through
`notify`, which is called in this thread.

Rules of this file:

- A request is acknowledged on the connection that its answer went out on, right after it and never before:
  what a killed orchestrator had not answered is delivered again to its successor.
- A job that was accepted is in the store until its answer went out: where the broker lost its queue, our
  successor finds it there.
- A leader whose lease has run out takes nothing and says nothing, until it knows that no other leads.
- What goes wrong with one message or action stays with it: it is logged and counted, its sender told
  where one is known, and the thread goes on.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import assert_never

from orchestrator.core import dispatch_events as core
from orchestrator.core.dispatch import Dispatcher
from orchestrator.core.dispatch_settings import DispatchSettings, SettingsChanged
from orchestrator.dispatch_actions import Known, Performer, internal
from orchestrator.dispatch_notes import Command, ModelSpec, Note, PipelineSpec, Tally
from orchestrator.job_lives import JobLives
from orchestrator.job_requests import Envelope, Stray, open_envelope, read_request
from orchestrator.job_store import JobStore, Recovered
from orchestrator.replies import Replies
from orchestrator.stage_results import read_result
from shared.bus import DataBus, Message
from shared.codec import decode_msgpack
from shared.errors import ProtocolError
from shared.logs import get_log
from shared.messages.job import Progress, StageResult
from shared.pipeline_mac import PipelineKeys
from shared.topics import Topics

log = get_log(__name__)

REPORT_S = 1.0
_ASK_AGAIN_S = 0.02
_PAUSE_S = 0.2
"""After an error of our own, so that one that comes again at once cannot eat a core."""
_TOPICS = ("infer", "infer_311", "stage_result")
_MOST_TOPICS = 1024


class DispatchThread(threading.Thread):
    """See the module. `start` it, `tell` it, and in the end `stop` it.

    Args:
        bus: with manual acknowledgement and a session that outlives us. Its receive maximum must be larger
            than the number of requests that may wait, or they keep the results out that they wait for.
        topics: the table.
        notify: called in this thread with what the control plane has to know.
        settings: the bounds of the queue.
        store: keeps accepted jobs over our death; None where nothing outlives us.
        keys: of the pipelines, on a closed cluster: what is sent to them is sealed, what comes is checked.
        leads: whether we lead, as far as anybody can know.
    """

    def __init__(
        self,
        bus: DataBus,
        topics: Topics,
        notify: Callable[[Note], None],
        settings: DispatchSettings | None = None,
        store: JobStore | None = None,
        *,
        keys: PipelineKeys | None = None,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(name="dispatcher", daemon=True)
        self.error: BaseException | None = None
        self.lives = JobLives()
        self._bus = bus
        self._topics = topics
        self._notify = notify
        self._settings = settings or DispatchSettings()
        self._core = Dispatcher(self._settings)
        self._store = store
        self._leads = leads
        self._resigned = False
        self._recovered = Recovered()
        self._broker_lost = False
        self._forget_answers_at = 0.0
        self._commands: deque[Command] = deque()
        self._stopping = threading.Event()
        self._known = Known()
        self._tally = Tally()
        self._replies = Replies(bus)
        self._performer = Performer(
            machine=self._core,
            bus=bus,
            topics=topics,
            replies=self._replies,
            known=self._known,
            tally=self._tally,
            notify=notify,
            store=store,
            keys=keys,
            lives=self.lives,
        )
        self._keys = keys
        self._parsed: dict[str, tuple[str, dict[str, str]]] = {}
        self._sessions = 0
        self._reported = 0.0

    # --- from other threads

    def tell(self, command: Command) -> None:
        """Hand over what the control plane decided."""
        self._commands.append(command)
        self._bus.wake()

    def take_over(self, recovered: Recovered, *, broker_lost: bool) -> None:
        """Before the start: what an earlier orchestrator left, and whether the broker lost what it held."""
        self._recovered, self._broker_lost = recovered, broker_lost

    def stop(self, timeout_s: float = 5.0, *, resigned: bool = False) -> None:
        """End the thread, if it was started. The broker keeps what comes meanwhile in our session.

        One that has resigned leaves at once: what it has to say is another's to say.
        """
        self._resigned = self._resigned or resigned
        self._stopping.set()
        if self.ident is None:
            self._bus.close()
            return
        self._bus.wake()
        self.join(timeout_s)

    # --- in the thread

    def run(self) -> None:
        """Until `stop`."""
        try:
            for name in _TOPICS:
                self._bus.subscribe(self._topics.pattern(name), 1)
            self._bus.connect()
            self._reported = time.monotonic()
            while not self._stopping.is_set():
                try:
                    self._turn()
                except Exception:
                    self._tally.dropped["internal_error"] += 1
                    log.exception("a turn of the dispatcher failed")
                    self._stopping.wait(_PAUSE_S)
            if not self._resigned:
                self._bus.flush(1.0)
            self._bus.close()
            if self._store is not None:
                self._store.close(resigned=self._resigned)
        except BaseException as error:
            self.error = error
            log.exception("the dispatcher died")
            raise

    def _turn(self) -> None:
        if not self._leads():
            self._stopping.wait(_ASK_AGAIN_S)
            return
        now = time.monotonic()
        due = min(self._core.next_wakeup() or now + REPORT_S, self._reported + REPORT_S)
        if self._replies.waiting:
            due = min(due, now + _PAUSE_S)
        self._bus.poll(max(0.0, due - now))
        self._notice_reconnection()
        while self._commands:
            self._command(self._commands.popleft())
        self._replies.send_waiting()
        while (message := self._bus.receive()) is not None:
            self._message(message)
        now = time.monotonic()
        if now - self._reported >= REPORT_S:
            interval_s, self._reported = now - self._reported, now
            snapshot, cpu_s = self._core.snapshot(), time.thread_time()
            self._notify(self._tally.report(now, interval_s, snapshot, cpu_s))
        wakeup = self._core.next_wakeup()
        if wakeup is not None and wakeup <= now:
            # Last: a result that is here does not lose against a timeout.
            self._performer.perform(self._core.step(core.Tick(now)))

    def _notice_reconnection(self) -> None:
        if self._bus.sessions == self._sessions:
            return
        first, self._sessions = self._sessions == 0, self._bus.sessions
        self._replies.session_began(present=self._bus.session_present)
        if first:
            self._recover()
        else:
            self._performer.perform(self._core.step(core.BusReconnected(time.monotonic())))

    def _recover(self) -> None:
        """Go on with the jobs that an earlier orchestrator had accepted and the broker has lost.

        A broker that lost nothing delivers them again, and knows better which were answered.
        """
        self._forget_answers_at = time.monotonic() + self._settings.repeat_window_s
        jobs, session = self._recovered.jobs, self._bus.session_present
        self._recovered = replace(self._recovered, jobs=())
        if not jobs or (session and not self._broker_lost):
            return
        while self._commands:  # the models that were served: a job of any other is refused
            self._command(self._commands.popleft())
        log.warning("the broker has lost jobs that were accepted: they go on", jobs=len(jobs))
        for number, message in enumerate(jobs):
            name, levels = self._parse(message.topic)
            self._request(message, name, levels, self._replies.stored(message, number))

    def _command(self, command: Command) -> None:
        now = time.monotonic()
        try:
            match command:
                case ModelSpec():
                    self._known.models[command.model] = command
                    actions = self._core.step(core.ModelServed(now, command.model, command.cache))
                case PipelineSpec():
                    self._known.add(command)
                    actions = self._core.step(_activated(now, command))
                case core.ModelStopped():
                    self._known.models.pop(command.model, None)
                    self._performer.forget(command.model)
                    actions = self._core.step(command)
                case SettingsChanged(settings=settings):
                    self._settings = settings
                    actions = self._core.step(command)
                case core.PipelineDraining() | core.PipelineLost() | core.PipelineFigures():
                    if isinstance(command, core.PipelineLost):
                        self.lives.lost(command.pipeline, command.generation, command.crashed)
                    actions = self._core.step(command)
                case _:
                    assert_never(command)
        except Exception:
            self._tally.dropped["internal_error"] += 1
            log.exception("a command failed", command=command)
            return
        self._performer.perform(actions)

    # --- what comes in

    def _message(self, message: Message) -> None:
        try:
            name, levels = self._parse(message.topic)
        except ProtocolError:
            self._drop(message, "stray_topic", message.topic)
            return
        match name:
            case "infer" | "infer_311":
                self._request(message, name, levels)
            case "stage_result":
                try:
                    self._result(message, levels["pipeline"], levels["generation"])
                except Exception:
                    self._tally.dropped["internal_error"] += 1
                    log.exception("a result failed", topic=message.topic)
                self._bus.acknowledge(message)
            case _:
                self._drop(message, "stray_topic", message.topic)

    def _parse(self, topic: str) -> tuple[str, dict[str, str]]:
        """Topics of the table are few, but for the 3.1.1 ones, and matching them costs 10 us."""
        known = self._parsed.get(topic)
        if known is None:
            if len(self._parsed) >= _MOST_TOPICS:
                self._parsed.clear()
            known = self._parsed[topic] = self._topics.parse(topic)
        return known

    def _drop(self, message: Message, why: str, text: str) -> None:
        """Nobody can be told: count it, log it, and do not have it delivered again."""
        if self._tally.drop(why, text):
            log.warning("dropped a message", kind=why, text=text[:300])
        self._bus.acknowledge(message)

    def _request(
        self,
        message: Message,
        name: str,
        levels: dict[str, str],
        delivery: Hashable | None = None,
    ) -> None:
        """A job as it came; `delivery` names that of one from the store."""
        now = time.monotonic()
        request_id = secrets.token_hex(8)
        envelope = open_envelope(self._topics, message, name, levels, request_id)
        if isinstance(envelope, Stray):
            self._drop(message, envelope.why, envelope.text)
            return
        if self._replies.answered_before(message):
            return
        if self._recovered.answers and self._answered_earlier(envelope, message):
            return
        spec = self._known.models.get(envelope.model)
        try:
            request = read_request(
                now,
                message,
                envelope,
                request_id,
                input_names=None if spec is None else spec.input_names,
                input_shapes={} if spec is None else spec.input_shapes,
                max_item_bytes=self._settings.max_item_bytes,
                delivery=delivery or self._replies.delivery(message),
                cache=None if spec is None or spec.cache is None else spec.cache.identity,
            )
            if isinstance(request, core.Failure):
                self._tally.refused[request.code] += 1
                self._tally.refuse("" if spec is None else envelope.model, request.code)
                self._performer.refuse(request_id, envelope, request, message)
                return
            actions = self._core.step(request)
        except Exception as error:
            self._tally.dropped["internal_error"] += 1
            log.exception("a job failed", topic=message.topic, request=request_id)
            self._performer.refuse(request_id, envelope, internal(error), message)
            return
        if self._core.holds(request_id):
            self.lives.accepted(request)
            if self._store is not None:
                self._store.accepted(request_id, message)
        self._performer.perform(actions)

    def _answered_earlier(self, envelope: Envelope, message: Message) -> bool:
        """Whether an earlier orchestrator had answered this job; then it gets that answer again."""
        if time.monotonic() >= self._forget_answers_at:
            self._recovered = Recovered()
            return False
        key = envelope.key
        earlier = None if key is None else self._recovered.answers.get((envelope.reply_to, key))
        if earlier is None or earlier.msgpack != envelope.context.msgpack:
            return False
        self._replies.send(envelope.reply_to, earlier.payload, envelope.context, (message,))
        return True

    def _result(self, message: Message, pipeline: str, generation: str) -> None:
        try:
            number = int(generation)
            if self._keys is not None and not self._keys.mac(pipeline, number).holds(message):
                if self._tally.drop("forged_result", f"{message.topic}: not of this pipeline"):
                    log.warning(
                        "dropped a result that is not of this pipeline", topic=message.topic
                    )
                return
            result = decode_msgpack(message.payload, StageResult)
        except (ProtocolError, ValueError) as error:
            if self._tally.drop("bad_result", f"{message.topic}: {error}"):
                log.warning("dropped a stage's result", topic=message.topic, error=error)
            return
        if result.progress is not None:
            self._progressed(result, pipeline, number, result.progress)
            return
        items = read_result(result)
        spec = self._known.pipelines.get((pipeline, number))
        if spec is not None and isinstance(items[0].outcome, core.Output):
            self._tally.measure(spec.model, pipeline, number, result)
        stage_cpu_s = tuple(stage.cpu_s for stage in result.trace)
        for item in items:
            if isinstance(item.outcome, core.Failure):
                self.lives.failed(
                    result.job, item.item, item.attempt, item.outcome, (pipeline, number)
                )
            self._performer.perform(
                self._core.step(
                    core.ResultArrived(
                        now=time.monotonic(),
                        request_id=result.job,
                        item_index=item.item,
                        attempt=item.attempt,
                        pipeline=pipeline,
                        generation=number,
                        outcome=item.outcome,
                        size=len(items),
                        stage_cpu_s=stage_cpu_s if item is items[0] else (),
                    )
                )
            )

    def _progressed(
        self, result: StageResult, pipeline: str, generation: int, progress: Progress
    ) -> None:
        self._performer.perform(
            self._core.step(
                core.ItemProgressed(
                    now=time.monotonic(),
                    request_id=result.job,
                    item_index=result.item,
                    attempt=result.attempt,
                    pipeline=pipeline,
                    generation=generation,
                    node=progress.node if progress.begun else None,
                )
            )
        )


def _activated(now: float, spec: PipelineSpec) -> core.PipelineActivated:
    return core.PipelineActivated(
        now=now,
        model=spec.model,
        pipeline=spec.pipeline,
        generation=spec.generation,
        num_stages=spec.num_stages,
        throughput_per_s=spec.throughput_per_s,
        latency_s=spec.latency_s,
        identity=spec.identity,
        micro_batch=spec.micro_batch,
    )
